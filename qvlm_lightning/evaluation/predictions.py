"""Answers on disk: every number of a report is computed from these files alone.

Per variant there are ``<name>.jsonl`` (one question per line), ``<name>.safetensors`` (the answer
token's log-probabilities) and ``<name>.json``, written last: where it lies, the others are whole.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError

Control = Literal["", "blind", "shuffled"]


@dataclass(frozen=True)
class Variant:
    """Which model answered."""

    model: str
    """Name of the model."""
    method: str = "fp"
    """Calibration method, or ``fp`` for full precision."""
    scheme: str = "fp"
    """Such as ``w4a4``, or ``fp``."""
    activation_mode: str = "none"
    """Such as ``static_tensor``; ``none`` for full precision."""
    outlier_scale: float = 1.0
    """Above 1: a stress variant with outlier channels."""
    seed: int | None = None
    """Calibration seed; None for full precision."""

    @property
    def name(self) -> str:
        """File name of its predictions, without ending.

        Example:
            >>> Variant("tiny").name, Variant("tiny", "qvlm", "w4a4", "static_tensor", 10, 1).name
            ('fp-k1', 'qvlm-w4a4-static_tensor-k10-s1')
        """
        parts = ["fp"] if self.is_fp else [self.method, self.scheme, self.activation_mode]
        seed = [] if self.seed is None else [f"s{self.seed}"]
        return "-".join([*parts, f"k{self.outlier_scale:g}", *seed])

    @property
    def is_fp(self) -> bool:
        """Whether this is the model in full precision."""
        return self.method == "fp"

    @property
    def reference(self) -> "Variant":
        """The same model in full precision."""
        return Variant(self.model, outlier_scale=self.outlier_scale)


@dataclass
class Predictions:
    """What one variant answered, beside what was expected."""

    variant: Variant
    """Which model answered."""
    source: str
    """Fingerprint of the weights and quantizers that answered."""
    base: str
    """Fingerprint of the full-precision model; predictions are comparable where it is the same."""
    seconds: float
    """Wall time of answering."""
    ids: list[str]
    """Ids of the questions."""
    texts: list[str]
    """Generated texts."""
    answers: list[str]
    """Expected answers."""
    choices: list[int]
    """Number of options of each multiple choice, 0 for an open question."""
    families: list[str]
    """Family of each question."""
    log_probs: Tensor | None = None
    """[n, V] log-probabilities of the first answer token, float32."""
    control: Control = ""
    """``blind`` or ``shuffled`` for the controls of the full-precision model."""

    @classmethod
    def of(cls, samples: Sequence[Sample], texts: Sequence[str], **rest: Any) -> "Predictions":
        """Put generated texts beside their samples.

        Args:
            samples: the questions.
            texts: what was answered, one text per sample.
            rest: the other fields.
        """
        return cls(
            ids=[s.id for s in samples],
            texts=list(texts),
            answers=[s.answer for s in samples],
            choices=[len(s.choices) for s in samples],
            families=[s.family for s in samples],
            **rest,
        )

    @property
    def name(self) -> str:
        """File name without ending."""
        return file_name(self.variant, self.control)

    def save(self, folder: Path) -> None:
        """Write the files into a folder, the one that marks them whole last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").unlink(missing_ok=True)
        columns = zip(self.ids, self.texts, self.answers, self.choices, self.families, strict=True)
        keys = ("id", "text", "answer", "choices", "family")
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in columns]
        write_whole(folder / f"{self.name}.jsonl", "".join(f"{line}\n" for line in lines))
        tensors = folder / f"{self.name}.safetensors"
        if self.log_probs is None:
            tensors.unlink(missing_ok=True)
        else:
            write_whole(tensors, save({"log_probs": self.log_probs.contiguous()}))
        about = {
            "variant": asdict(self.variant),
            "control": self.control,
            "source": self.source,
            "base": self.base,
            "seconds": self.seconds,
            "n": len(self.ids),
            "log_probs": self.log_probs is not None,
        }
        write_whole(folder / f"{self.name}.json", json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, name: str) -> "Predictions":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the files are damaged.
        """
        try:
            about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            log_probs = None
            if about["log_probs"]:
                log_probs = load_file(folder / f"{name}.safetensors")["log_probs"]
            if len(rows) != about["n"]:
                raise ValueError(f"{len(rows)} lines instead of {about['n']}")
            return cls(
                variant=Variant(**about["variant"]),
                source=about["source"],
                base=about["base"],
                seconds=about["seconds"],
                ids=[row["id"] for row in rows],
                texts=[row["text"] for row in rows],
                answers=[row["answer"] for row in rows],
                choices=[row["choices"] for row in rows],
                families=[row["family"] for row in rows],
                log_probs=log_probs,
                control=about["control"],
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(
                f"stored predictions {str(folder / name)!r} are damaged ({error}); remove them, "
                "they are made again"
            ) from error


def file_name(variant: Variant, control: Control = "") -> str:
    """Name the files of a variant's predictions.

    Example:
        >>> file_name(Variant("tiny"), "blind")
        'fp-k1.blind'
    """
    return f"{variant.name}.{control}" if control else variant.name


def stored(folder: Path) -> list[str]:
    """Return the names of all whole predictions in a folder, sorted."""
    return sorted(path.name.removesuffix(".json") for path in folder.glob("*.json"))


def is_stored(folder: Path, name: str, source: str, ids: Sequence[str]) -> bool:
    """Say whether these answers are there, by the same weights to the same questions."""
    if name not in stored(folder):
        return False
    found = Predictions.load(folder, name)
    return found.source == source and found.ids == list(ids)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(scratch, path)
