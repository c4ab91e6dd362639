"""VQA-RAD: questions by clinicians on radiological images (Lau et al. 2018)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qvlm_lightning.data.image import content_of
from qvlm_lightning.metrics.normalise import evalai_answer
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json
from qvlm_lightning.tasks.prompts import bare, short_answer
from qvlm_lightning.tasks.release import (
    find_file,
    image_file,
    image_folder,
    rows_of,
)

_PUBLIC = "VQA_RAD Dataset Public.json"  # all questions; phrase_type tells those of the test


class VQARad(Task):
    """Share of answers equal to the expected one after EvalAI's normalisation of both.

    There is no official scorer, and open answers are phrases: equality is the strictest reading.
    """

    name = "vqa_rad"
    modes: ClassVar[tuple[str, ...]] = ("exact",)
    prompts: ClassVar[Mapping[str, Prompt]] = {"short": short_answer, "bare": bare}
    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    layout: ClassVar[str] = f"a folder with test.json and images/, or with {_PUBLIC!r}"

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read a question file; see :meth:`Task.read`. The public file holds both splits."""
        name = self.split(split)
        found = find_file(path, [f"{name}.json", _PUBLIC], self.layout)
        images = image_folder(found.parent, ["images", "VQA_RAD Image Folder"])
        content = read_json(found, self.layout)
        with rows_of(found, self.layout):
            if found.name == _PUBLIC:
                wanted = name == "test"
                content = [r for r in content if r["phrase_type"].startswith("test") == wanted]
            return [_question(r, images and image_file(images, r["image_name"])) for r in content]

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of the hub's copy; see :meth:`Task.from_hub`.

        The copy has image, question and answer only: the id is their digest, and no groups.
        """
        return _question({"qid": _digest(row), **row}, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare with the expected answer; see :meth:`Task.judge`."""
        answer = evalai_answer(text)
        right = any(answer == evalai_answer(expected) for expected in target.answers)
        return Judgement(WHOLE * right, answer) if answer else Judgement(0, None)


def _digest(row: Row) -> str:
    words = f"{row['question']}\n{row['answer']}\n".encode()
    return hashlib.blake2b(words + content_of(row.get("image")), digest_size=8).hexdigest()


def _question(row: Row, image: Any) -> Question:
    # "CLOSED " occurs, too
    told = {"kind": row.get("answer_type"), "organ": row.get("image_organ")}
    groups = {name: value.strip() for name, value in told.items() if value}
    if "kind" in groups:
        groups["kind"] = groups["kind"].lower()
    return Question(
        id=str(row["qid"]),
        target=Target(
            (str(row["answer"]),), groups=tuple(f"{name}/{x}" for name, x in groups.items())
        ),
        row={"question": row["question"]},
        image=image,
    )
