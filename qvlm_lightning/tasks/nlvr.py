"""NLVR: is a sentence true of a picture of coloured objects? (Suhr et al. 2017)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json_lines
from qvlm_lightning.tasks.release import find_file, image_file, image_folder, rows_of

_WORDS = re.compile(r"[a-z]+")
_LABELS = frozenset({"true", "false"})


def true_or_false(row: Row) -> str:
    r"""Ask whether the sentence holds; NLVR prescribes no prompt, this one is ours.

    Example:
        >>> true_or_false({"question": "There is a tower with four blocks."})
        'There is a tower with four blocks.\nIs this sentence true or false? Answer with one word.'
    """
    return f"{row['question']}\nIs this sentence true or false? Answer with one word."


class NLVR(Task):
    """Share of sentences judged right."""

    name = "nlvr"
    modes: ClassVar[tuple[str, ...]] = ("exact",)
    prompts: ClassVar[Mapping[str, Prompt]] = {"true_or_false": true_or_false}
    splits: ClassVar[tuple[str, ...]] = ("dev", "train", "test")
    layout: ClassVar[str] = "a folder with dev.jsonl and images/, or dev/dev.json of the release"

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read a file of sentences, with the first arrangement of each; see :meth:`Task.read`."""
        name = self.split(split)
        found = find_file(
            path, [f"{name}.jsonl", f"{name}.json", f"{name}/{name}.json"], self.layout
        )
        name = found.name.partition(".")[0]
        images = image_folder(found.parent, ["images"])
        rows = read_json_lines(found, self.layout)
        with rows_of(found, self.layout):
            return [_question(r, images and image_file(images, _image(r, name))) for r in rows]

    def from_hub(self, row: Row) -> Question:
        """Make a question of the release's columns and ``image``; see :meth:`Task.from_hub`."""
        return _question(row, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Read the one of "true" and "false" that occurs as a word; both or neither is unread."""
        said = _LABELS.intersection(_WORDS.findall(text.lower()))
        if len(said) != 1:
            return Judgement(0, None)
        (answer,) = said
        return Judgement(WHOLE * (answer in target.answers), answer)


def _image(row: Row, split: str) -> str:
    if "image" in row:
        return str(row["image"])
    return f"{row['directory']}/{split}-{row['identifier']}-0.png"


def _question(row: Row, image: Any) -> Question:
    label = str(row["label"]).lower()
    return Question(
        id=str(row["identifier"]),
        target=Target((label,), groups=(f"label/{label}",)),
        row={"question": row["sentence"]},
        image=image,
    )
