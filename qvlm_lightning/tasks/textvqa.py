"""TextVQA: questions that need the text in the picture read, ten annotators each."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.annotators import AnnotatorScore, m4c
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json
from qvlm_lightning.tasks.prompts import ANSWER_SHORT
from qvlm_lightning.tasks.release import (
    annotators_of,
    find_file,
    image_file,
    image_folder,
    rows_of,
    sibling,
)


def with_ocr(row: Row) -> str:
    r"""LLaVA-1.5's prompt: the question as released, and the words that an OCR system read.

    Example:
        >>> print(with_ocr({"question": "what brand is it?", "ocr_tokens": ["DAKOTA", "SLR"]}))
        what brand is it?
        Reference OCR token: DAKOTA, SLR
        Answer the question using a single word or phrase.
    """
    if row.get("ocr_tokens") is None:
        raise InputError(
            "no OCR tokens were found for TextVQA; put TextVQA_Rosetta_OCR_v0.2_val.json beside "
            "the questions, or use the prompt 'plain'"
        )
    tokens = ", ".join(row["ocr_tokens"])
    return f"{row['question']}\nReference OCR token: {tokens}\n{ANSWER_SHORT}"


def plain(row: Row) -> str:
    r"""lmms-eval's prompt: no OCR, and of the question only the first letter large.

    Example:
        >>> plain({"question": "what brand is it?"})
        'What brand is it?\nAnswer the question using a single word or phrase.'
    """
    return f"{row['question'].capitalize()}\n{ANSWER_SHORT}"


class TextVQA(Task):
    """TextVQA by M4C's evaluator, which LLaVA and lmms-eval use as well."""

    name = "textvqa"
    prompts: ClassVar[Mapping[str, Prompt]] = {"ocr": with_ocr, "plain": plain}
    splits: ClassVar[tuple[str, ...]] = ("val", "train")
    layout: ClassVar[str] = (
        "a folder with TextVQA_0.5.1_val.json, for the prompt 'ocr' also "
        "TextVQA_Rosetta_OCR_v0.2_val.json, images in train_images/"
    )

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read a question file and the OCR tokens beside it; see :meth:`Task.read`."""
        name = self.split(split)
        found = find_file(path, [f"TextVQA_0.5.1_{name}.json", f"{name}.json"], self.layout)
        if found.stem.endswith("_train"):
            name = "train"
        ocr = sibling(found.parent, [f"TextVQA_Rosetta_OCR_v0.2_{name}.json"])
        tokens = {} if ocr is None else self._tokens(ocr)
        # both splits with answers come from the training images
        images = image_folder(found.parent, ["train_images", "images"])
        content = read_json(found, self.layout)
        with rows_of(found, self.layout):
            return [
                _question(
                    {"ocr_tokens": tokens.get(r["image_id"])} | r,
                    images and image_file(images, f"{r['image_id']}.jpg"),
                )
                for r in content["data"]
            ]

    def _tokens(self, path: Path) -> dict[str, list[str]]:
        content = read_json(path, self.layout)
        with rows_of(path, self.layout):
            return {row["image_id"]: row["ocr_tokens"] for row in content["data"]}

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of the hub's copy; see :meth:`Task.from_hub`."""
        return _question(row, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Score one answer against its annotators; see :meth:`Task.judge`."""
        return m4c(text, target.answers)

    def metric(self, targets: Iterable[Target]) -> AnnotatorScore:
        """Return an empty metric; see :meth:`Task.metric`."""
        return AnnotatorScore(sorted({group for t in targets for group in t.groups}))


def _question(row: Row, image: Any) -> Question:
    return Question(
        id=str(row["question_id"]),
        target=Target(annotators_of(row, "question_id")),
        row={"question": row["question"], "ocr_tokens": row.get("ocr_tokens")},
        image=image,
    )
