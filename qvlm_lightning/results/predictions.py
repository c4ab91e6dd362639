"""Answers on disk: every number of a report is computed from these files alone.

Per variant there are ``<name>.jsonl`` (one question per line), ``<name>.safetensors`` (the answer
token's log-probabilities) and ``<name>.json``, written last: where it lies, the others are whole.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.files import stepping_aside, write_json, write_whole, writing
from qvlm_lightning.metrics.answers import is_correct, parse_answer
from qvlm_lightning.metrics.target import WHOLE, Judgement
from qvlm_lightning.results.variant import Control, Variant, file_name
from qvlm_lightning.tensor_files import put_tensors


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
    split: str = ""
    """Split of the questions; empty where the data names none."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """How the variant was searched, as its artifact says (see :func:`search_facts`)."""
    benchmark: str = ""
    """Name of the benchmark."""
    mode: str = "exact"
    """Name of the scoring rule."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """The benchmark's own figures by name, percent; None where there is nothing to divide by."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What the answers depend on, in plain values (see ``VQAEvaluation.key``)."""
    points: list[int] = field(default_factory=list)
    """Points of each answer, 0 to 10; by the exact rule where not given."""
    parsed: list[str | None] = field(default_factory=list)
    """What was read from each text; None where nothing could be read."""
    groups: list[list[str]] = field(default_factory=list)
    """Groups that each question also counts for; its family where not given."""
    clusters: list[str] = field(default_factory=list)
    """Cluster of each question, within which questions only count together; empty: alone."""

    def __post_init__(self) -> None:
        rows = zip(self.texts, self.answers, self.choices, strict=True)
        if not self.points:
            judged = [(is_correct(t, a, c), parse_answer(t, c)) for t, a, c in rows]
            self.points = [WHOLE * right for right, _ in judged]
            self.parsed = [parsed for _, parsed in judged]
        self.groups = self.groups or [[name] if name else [] for name in self.families]
        self.clusters = self.clusters or [""] * len(self.ids)

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        texts: Sequence[str],
        judgements: Sequence[Judgement],
        **rest: Any,
    ) -> "Predictions":
        """Put generated texts beside their samples.

        Args:
            samples: the questions.
            texts: what was answered, one text per sample.
            judgements: what the benchmark's rule says of each text.
            rest: the other fields.
        """
        targets = [s.target for s in samples]
        families = [[s.family] if s.family else [] for s in samples]
        pairs = list(zip(targets, families, strict=True))
        return cls(
            ids=[s.id for s in samples],
            texts=list(texts),
            answers=[s.answer for s in samples],
            choices=[len(s.choices) for s in samples],
            families=[s.family for s in samples],
            points=[judgement.points for judgement in judgements],
            parsed=[judgement.parsed for judgement in judgements],
            groups=[family if t is None else list(t.groups) for t, family in pairs],
            clusters=["" if t is None else t.cluster for t in targets],
            **rest,
        )

    @property
    def name(self) -> str:
        """File name without ending."""
        return file_name(self.variant, self.control, self.split)

    def save(self, folder: Path) -> None:
        """Write the files into a folder, the one that marks them whole last.

        Raises:
            InputError: the system refuses to write; what is stored there stays.
        """
        columns = [getattr(self, name) for name in COLUMNS.values()]
        rows = (dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True))
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        about = {
            "variant": asdict(self.variant),
            "control": self.control,
            "split": self.split,
            "search": self.search,
            "benchmark": self.benchmark,
            "mode": self.mode,
            "scores": self.scores,
            "source": self.source,
            "base": self.base,
            "asked": self.asked,
            "seconds": self.seconds,
            "n": len(self.ids),
            "log_probs": self.log_probs is not None,
        }
        mark, tensors, texts = (
            folder / f"{self.name}.{e}" for e in ("json", "safetensors", "jsonl")
        )
        # renamed in the opposite order; what fails meanwhile brings the older ones back
        with ExitStack() as older, ExitStack() as renamed:
            write_json(renamed.enter_context(writing(mark)), about)
            if self.log_probs is not None:
                scratch = renamed.enter_context(writing(tensors))
                put_tensors(scratch, {"log_probs": self.log_probs}, metadata=None)
            write_whole(renamed.enter_context(writing(texts)), lines)
            older.enter_context(stepping_aside(mark, tensors, texts))

    @classmethod
    def load(cls, folder: Path, name: str) -> "Predictions":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the files are damaged.
        """
        try:
            about = parse_json((folder / f"{name}.json").read_text(encoding="utf-8"))
            with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
                rows = [parse_json(line) for line in file]
            count = about.pop("n")
            if len(rows) != count:
                raise ValueError(f"{len(rows)} lines instead of {count}")
            about["variant"] = Variant(**about["variant"])
            about["log_probs"] = (
                load_file(folder / f"{name}.safetensors")["log_probs"]
                if about["log_probs"]
                else None
            )
            columns: dict[str, Any] = {
                column: [row[key] for row in rows] for key, column in COLUMNS.items()
            }
            return cls(**columns, **about)
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(
                f"stored predictions {str(folder / name)!r} are damaged ({error}); remove them, "
                "they are made again"
            ) from error


COLUMNS = {
    "id": "ids",
    "text": "texts",
    "answer": "answers",
    "choices": "choices",
    "family": "families",
    "points": "points",
    "parsed": "parsed",
    "groups": "groups",
    "cluster": "clusters",
}
"""Key of a line in ``<name>.jsonl`` -> field of :class:`Predictions`."""


def search_facts(manifest: Mapping[str, Any], run: Path | None = None) -> dict[str, Any]:
    """Take from an artifact's manifest what every row says of its search.

    Args:
        manifest: ``quantization.json``.
        run: folder of the run, whose ``report.json``, if it is there, knows the seconds.

    Returns:
        ``objective`` (``normalized`` or ``plain``), ``candidates`` (a list of numbers),
        ``layer_forwards`` and ``search_seconds``; None where the artifact does not say.

    Example:
        >>> search_facts({"objective": "plain", "search": {"layer_forwards": 192}})
        {'objective': 'plain', 'candidates': None, 'layer_forwards': 192, 'search_seconds': None}
    """
    cost = manifest.get("search") or {}
    report = None if run is None else run / "report.json"
    if report is not None and report.is_file():
        cost |= {"seconds": parse_json(report.read_text(encoding="utf-8"))["search"]["seconds"]}
    return {
        "objective": manifest.get("objective"),
        "candidates": manifest.get("candidates"),
        "layer_forwards": cost.get("layer_forwards"),
        "search_seconds": cost.get("seconds"),
    }


def stored(folder: Path) -> list[str]:
    """Return the names of all whole predictions in a folder, sorted."""
    return sorted(path.name.removesuffix(".json") for path in folder.glob("*.json"))


def is_stored(
    folder: Path,
    name: str,
    source: str,
    ids: Sequence[str],
    key: Mapping[str, Any] | None = None,
) -> bool:
    """Say whether these answers are there, by the same weights to the same questions.

    Args:
        folder: where predictions lie.
        name: their file name without ending.
        source: fingerprint of the weights and quantizers.
        ids: ids of the questions.
        key: what else the answers depend on; None trusts the names.
    """
    if name not in stored(folder):
        return False
    answered = Predictions.load(folder, name)
    same = key is None or answered.asked == key
    return same and answered.source == source and answered.ids == list(ids)
