"""GQA: compositional questions generated from scene graphs (Hudson and Manning 2019)."""

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json
from qvlm_lightning.tasks.prompts import short_answer
from qvlm_lightning.tasks.release import (
    find_file,
    image_file,
    image_folder,
    rows_of,
)

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def as_written(text: str) -> str:
    """Official: the text must equal the answer to the letter.

    Example:
        >>> as_written("No.")
        'No.'
    """
    return text


def llava(text: str) -> str:
    """LLaVA's conversion for the official scorer (``convert_gqa_for_eval.py``).

    Example:
        >>> llava("No."), llava("No. ")
        ('no', 'no. ')
    """
    return text.rstrip(".").lower()


def lmms(text: str) -> str:
    """lmms-eval's comparison, on both sides: neither case nor ASCII punctuation counts.

    Example:
        >>> lmms("It's"), lmms("No. ")
        ('its', 'no ')
    """
    return text.lower().translate(_NO_PUNCTUATION)


# what is made of the text, and what of the answer
_RULES: Mapping[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "official": (as_written, as_written),
    "llava": (llava, as_written),
    "lmms": (lmms, lmms),
}


class GQA(Task):
    """GQA's accuracy over balanced questions.

    Consistency, validity and plausibility need files that the release (v1.2) does not hold.
    """

    name = "gqa"
    modes: ClassVar[tuple[str, ...]] = tuple(_RULES)
    prompts: ClassVar[Mapping[str, Prompt]] = {"short": short_answer}
    splits: ClassVar[tuple[str, ...]] = ("testdev", "val", "train")
    layout: ClassVar[str] = "a folder with testdev_balanced_questions.json, images in images/"

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read a question file, balanced questions only; see :meth:`Task.read`."""
        name = self.split(split)
        names = [f"{name}_{kind}_questions.json" for kind in ("balanced", "all")]
        found = find_file(path, [*names, *(f"questions1.2/{n}" for n in names)], self.layout)
        images = image_folder(found.parent, ["images", "../images"])
        content = read_json(found, self.layout)
        with rows_of(found, self.layout):
            return [
                _question(r | {"id": id_}, images and image_file(images, f"{r['imageId']}.jpg"))
                for id_, r in content.items()
                if r["isBalanced"]
            ]

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of the hub's copy; see :meth:`Task.from_hub`.

        The copy keeps images in a configuration of their own, by ``imageId``.
        """
        return _question(row, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare with the one answer; see :meth:`Task.judge`."""
        read, expected = _RULES[self.mode]
        answer = read(text)
        if not answer.strip() or not target.answers:
            return Judgement(0, None)
        return Judgement(WHOLE * (answer == expected(target.answers[0])), answer)


def _question(row: Row, image: Any) -> Question:
    types = row["types"]
    kind = "open" if types["structural"] == "query" else "binary"
    described = [f"{name}/{types[name]}" for name in ("structural", "semantic")]
    return Question(
        id=str(row["id"]),
        target=Target((row["answer"],), groups=(f"kind/{kind}", *described)),
        row={"question": row["question"]},
        image=image,
    )
