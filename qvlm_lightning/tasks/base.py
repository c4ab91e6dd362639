"""What a benchmark is: questions of its release, prompts, and a rule that scores answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.grouped import UNPARSED, GroupedScore
from qvlm_lightning.metrics.target import Judgement, Target

Row = Mapping[str, Any]

_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, whichever layout it was read from."""

    id: str
    """The id that predictions are joined by (``docs/adding_a_task.md``)."""
    target: Target
    """What is expected."""
    row: Row = field(default_factory=dict)
    """What prompts are made of: ``question`` and what the benchmark adds, such as ``hint``; and
    an empty ``image`` for a question that never had one."""
    image: Path | Image.Image | LazyImage | None = None
    """The image or its file; None for a question without one, or where only annotations lie."""


Prompt = Callable[[Row], str]


class Task(ABC):
    """One benchmark.

    Args:
        mode: which published scoring rule; the first of ``modes`` by default.
        prompt: which prompt; the first of ``prompts`` by default.

    Raises:
        InputError: an unknown mode or prompt.
    """

    name: ClassVar[str]
    """Name on the command line and in results."""
    modes: ClassVar[tuple[str, ...]] = ("official",)
    """Scoring rules; every result names the one that made it."""
    prompts: ClassVar[Mapping[str, Prompt]]
    """Name -> function of a question's row that writes the text after the image."""
    splits: ClassVar[tuple[str, ...]]
    """Splits of the release that have answers, the one to evaluate by default first."""
    train_split: ClassVar[str | None] = "train"
    """Split to calibrate on; None where the release has none."""
    layout: ClassVar[str]
    """What a local folder holds, in one sentence, for messages."""
    max_new_tokens: int = 16
    """Longest answer worth waiting for; a prompt that asks for reasoning needs more."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Strings that end an answer."""

    def __init__(self, mode: str | None = None, prompt: str | None = None) -> None:
        self.mode = _allowed(f"mode of {self.name}", mode, self.modes)
        self.prompt = _allowed(f"prompt of {self.name}", prompt, tuple(self.prompts))

    @abstractmethod
    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read questions from a file of the official release, or a folder with :attr:`layout`.

        Args:
            path: file or folder.
            split: one of the release's splits; the first of :attr:`splits` by default. A file that
                holds one split ignores it.

        Raises:
            InputError: nothing readable there (the message tells the layout), or no such split.
        """

    @abstractmethod
    def from_hub(self, row: Row) -> Question:
        """Make a question of one row in the columns of the hub's copy.

        Args:
            row: the columns; an image is a :class:`LazyImage`, to be handed on, or None.
        """

    @abstractmethod
    def judge(self, text: str, target: Target) -> Judgement:
        """Score one answer by the rule of :attr:`mode`; never raises and never guesses.

        Args:
            text: what was generated.
            target: what is expected.
        """

    def text(self, question: Question) -> str:
        """Write the prompt's text (without image placeholder and chat template).

        Args:
            question: the question.

        Raises:
            InputError: the question was read from annotations that hold nothing to ask.
        """
        try:
            return self.prompts[self.prompt](question.row)
        except KeyError as error:
            raise InputError(
                f"question {question.id!r} of {self.name} has no {error.args[0]!r} that prompt "
                f"{self.prompt!r} could be made of; such annotations can only be scored against"
            ) from error

    def split(self, name: str | None) -> str:
        """Return the split to read, checked.

        Args:
            name: one of :attr:`splits`, the first by default; "val", "valid" and "validation" are
                one split.

        Raises:
            InputError: no such split.
        """
        if name in _VALIDATION and name not in self.splits:
            name = next((known for known in self.splits if known in _VALIDATION), name)
        return _allowed(f"split of {self.name}", name, self.splits)

    def metric(self, targets: Iterable[Target]) -> GroupedScore:
        """Return an empty metric for questions with these targets.

        Args:
            targets: all targets that will be asked.
        """
        return GroupedScore(sorted({group for t in targets for group in t.groups}))

    @property
    def rule(self) -> str:
        """Name of the scoring rule in results: the mode, and any option that changes points."""
        return self.mode

    def judged(self, texts: Sequence[str | None], targets: Sequence[Target]) -> list[Judgement]:
        """Score answers one by one.

        Args:
            texts: one answer per target; None where none was given, which is wrong under any rule
                (some rules read an empty text as an answer).
            targets: what is expected.
        """
        pairs = zip(texts, targets, strict=True)
        return [Judgement(0, None) if x is None else self.judge(x, t) for x, t in pairs]

    def scores(
        self,
        texts: Sequence[str | None],
        targets: Sequence[Target],
        confidences: Sequence[float | None] | None = None,
    ) -> dict[str, float]:
        """Score answers: percentages by name, ``unparsed`` as a count.

        Args:
            texts: one answer per target; None where none was given.
            targets: what is expected.
            confidences: how sure the model says it is of what the benchmark ranks answers by, one
                per target; only benchmarks that rank use it.
        """
        metric = self.metric(targets)
        metric.update(self.judged(texts, targets), [t.groups for t in targets])
        values = {name: float(value) for name, value in metric.compute().items()}
        return values | {UNPARSED: int(metric.unparsed)}


def _allowed(what: str, given: str | None, allowed: tuple[str, ...]) -> str:
    if given is None:
        return allowed[0]
    if given not in allowed:
        raise InputError(f"{what} is {given!r}; allowed are {', '.join(allowed)}")
    return given
