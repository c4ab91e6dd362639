"""How far a variant's text is from full precision's, as it lies on the disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import parse_json
from qvlm_lightning.files import write_whole


@dataclass(frozen=True)
class Fidelity:
    """How far a variant's text is from full precision's."""

    kl: list[float]
    """Mean divergence over the text tokens of each prompt and full precision's answer to it, nats
    (:func:`~qvlm_lightning.metrics.fidelity.token_kl`)."""
    tokens: int
    """Text tokens of all prompts and answers."""
    same_tokens: list[float]
    """Share of equal tokens of both greedy answers to each prompt."""
    first_differences: list[int | None]
    """Place of the first token that differs; None where the answers are equal."""
    passage_kl: float
    """Mean divergence over the tokens of the passage, nats."""
    passage_tokens: int
    """Tokens of the passage."""
    perplexity: float
    """Of the passage's tokens behind the first."""
    seconds: float
    """Wall time of measuring."""


def stored_fidelity(path: Path, key: dict[str, Any]) -> Fidelity | None:
    """Return a stored result, or None where there is none of these weights and inputs.

    Args:
        path: its JSON file.
        key: of what it must be.
    """
    try:
        about = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return Fidelity(**about["fidelity"]) if about.get("key") == key else None


def store_fidelity(path: Path, key: dict[str, Any], fidelity: Fidelity) -> None:
    """Write a result, as a whole or not at all.

    Args:
        path: its JSON file.
        key: what it depends on, in plain values: digests of the variant and of the reference.
        fidelity: the result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"key": key, "fidelity": asdict(fidelity)}) + "\n")
