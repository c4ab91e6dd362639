"""VQA v2: open questions on COCO images, ten annotators each (Goyal et al. 2017)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from qvlm_lightning.metrics.annotators import (
    AnnotatorRule,
    AnnotatorScore,
    evalai_vqa,
    lmms_vqa,
    official_vqa,
)
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json
from qvlm_lightning.tasks.prompts import short_answer
from qvlm_lightning.tasks.release import (
    annotators_of,
    find_file,
    image_folder,
    rows_of,
    sibling,
)

_SPELLED = {"val": ("val", "valid", "validation"), "train": ("train",)}
_OTHER = {"annotations": "questions", "questions": "annotations"}
_RULES: Mapping[str, AnnotatorRule] = {
    "official": official_vqa,
    "evalai": evalai_vqa,
    "lmms": lmms_vqa,
}


class VQAv2(Task):
    """VQA v2, by its own rule (``official``), as LLaVA submits it, or as lmms-eval scores it."""

    name = "vqav2"
    modes: ClassVar[tuple[str, ...]] = tuple(_RULES)
    prompts: ClassVar[Mapping[str, Prompt]] = {"short": short_answer}
    splits: ClassVar[tuple[str, ...]] = ("val", "train")
    layout: ClassVar[str] = (
        "a folder with v2_mscoco_val2014_annotations.json and "
        "v2_OpenEnded_mscoco_val2014_questions.json, or with val_annotations.json and "
        "val_questions.json (.gz allowed), images in val2014/"
    )

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read annotations and the questions beside them; see :meth:`Task.read`.

        Annotations without questions can be scored, but not asked.
        """
        name = self.split(split)
        found = find_file(path, _names("annotations", name), self.layout)
        content = read_json(found, self.layout)
        with rows_of(found, self.layout):
            kind = "questions" if "questions" in content else "annotations"
            other = sibling(found.parent, _siblings(found.name, kind))
            both = {kind: content[kind]}
            if other is not None:
                both |= {_OTHER[kind]: read_json(other, self.layout)[_OTHER[kind]]}
            questions = {q["question_id"]: q["question"] for q in both.get("questions", ())}
            part = _part(found.name, name)
            images = image_folder(
                found.parent, [part, f"images/{part}", f"../Images/{part}", "images"]
            )
            return [
                _question(a, questions.get(a["question_id"]), _image(images, part, a))
                for a in both["annotations"]
            ]

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of the hub's copy; see :meth:`Task.from_hub`."""
        return _question(row, row["question"], row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Score one answer against its annotators; see :meth:`Task.judge`."""
        return _RULES[self.mode](text, target.answers)

    def metric(self, targets: Iterable[Target]) -> AnnotatorScore:
        """Return an empty metric; see :meth:`Task.metric`."""
        return AnnotatorScore(sorted({group for t in targets for group in t.groups}))


def _question(row: Row, question: str | None, image: Any) -> Question:
    types = {name: row[name] for name in ("answer_type", "question_type")}
    return Question(
        id=str(row["question_id"]),
        target=Target(
            answers=annotators_of(row, "question_id"),
            groups=tuple(f"{name}/{value}" for name, value in types.items() if value),
        ),
        row={} if question is None else {"question": question},
        image=image,
    )


def _names(kind: str, split: str) -> list[str]:
    official = {
        "annotations": f"v2_mscoco_{split}2014_annotations.json",
        "questions": f"v2_OpenEnded_mscoco_{split}2014_questions.json",
    }
    spelled = [f"{name}_{kind}.json" for name in _SPELLED[split]]
    return [official[kind], *spelled, f"{kind.capitalize()}/{official[kind]}"]


def _siblings(name: str, kind: str) -> list[str]:
    other = _OTHER[kind]
    if kind not in name:  # a file of any other name has no known sibling
        return []
    plain = name.removesuffix(".gz").replace(kind, other)
    if other == "questions":
        official = plain.replace("v2_mscoco", "v2_OpenEnded_mscoco")
    else:
        official = plain.replace("v2_OpenEnded_mscoco", "v2_mscoco")
    # the official archives unpack beside each other
    folder = f"../{other.capitalize()}/"
    return [official, plain, folder + official]


def _part(file: str, split: str) -> str:
    """Name the part of COCO that a file or split is about."""
    named = [part for part in ("train", "val") if part in file]
    return f"{named[0] if named else split}2014"


def _image(folder: Path | None, part: str, row: Row) -> Path | None:
    return None if folder is None else folder / f"COCO_{part}_{row['image_id']:012}.jpg"
