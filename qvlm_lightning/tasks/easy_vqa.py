"""easy-VQA: one coloured shape per picture, thirteen answers; a test of pipelines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

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

_KINDS = {
    "shape": ("circle", "rectangle", "triangle"),
    "colour": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
    "yes-no": ("no", "yes"),
}
_KIND_OF = {answer: kind for kind, answers in _KINDS.items() for answer in answers}


class EasyVQA(Task):
    """Share of right answers among the thirteen; a text that is none of them is unparsed."""

    name = "easy_vqa"
    modes: ClassVar[tuple[str, ...]] = ("exact",)
    prompts: ClassVar[Mapping[str, Prompt]] = {"short": short_answer, "bare": bare}
    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    layout: ClassVar[str] = "a folder with test/questions.json and test/images/"

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read a question file; see :meth:`Task.read`.

        Ids are ``test:0``, ``test:1`` ... by the place in the file, for the release has none; the
        split of a file is the name of its folder.
        """
        name = self.split(split)
        found = find_file(
            path, [f"{name}/questions.json", f"data/{name}/questions.json"], self.layout
        )
        name = found.parent.name if found.parent.name in self.splits else name
        images = image_folder(found.parent, ["images"])
        content = read_json(found, self.layout)
        with rows_of(found, self.layout):
            rows = [dict(zip(("question", "answer", "image_id"), r, strict=True)) for r in content]
            return [
                _question(
                    r | {"id": f"{name}:{i}"}, images and image_file(images, f"{r['image_id']}.png")
                )
                for i, r in enumerate(rows)
            ]

    def from_hub(self, row: Row) -> Question:
        """Make a question of ``id``, ``question``, ``answer`` and ``image``; see the base."""
        return _question(row, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare what is one of the thirteen answers, but for case, articles and stops."""
        answer = evalai_answer(text)
        if answer not in _KIND_OF:
            return Judgement(0, None)
        return Judgement(WHOLE * (answer in target.answers), answer)


def _question(row: Row, image: Any) -> Question:
    kind = _KIND_OF[row["answer"]]
    return Question(
        id=str(row["id"]),
        target=Target((row["answer"],), groups=(f"kind/{kind}",)),
        row={"question": row["question"]},
        image=image,
    )
