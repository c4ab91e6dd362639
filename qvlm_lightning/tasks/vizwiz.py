"""VizWiz: questions and photographs by blind people, many of which cannot be answered."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.annotators import AnnotatorRule, m4c, official_vizwiz
from qvlm_lightning.metrics.answerability import ANSWERABLE, UNANSWERABLE, AnswerabilityScore
from qvlm_lightning.metrics.grouped import UNPARSED
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
)

_RULES: Mapping[str, AnnotatorRule] = {"official": official_vizwiz, "lmms": m4c}
SAY_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def or_unanswerable(row: Row) -> str:
    r"""LLaVA-1.5's and lmms-eval's prompt; both write the question's first letter only large.

    Example:
        >>> print(or_unanswerable({"question": "what does this Box say?"}))
        What does this box say?
        When the provided information is insufficient, respond with 'Unanswerable'.
        Answer the question using a single word or phrase.
    """
    return f"{row['question'].capitalize()}\n{SAY_UNANSWERABLE}\n{ANSWER_SHORT}"


class VizWiz(Task):
    """VizWiz, by the official rule, or as lmms-eval scores it.

    Confidences are the probability that a question can be answered.
    """

    name = "vizwiz"
    modes: ClassVar[tuple[str, ...]] = tuple(_RULES)
    prompts: ClassVar[Mapping[str, Prompt]] = {"unanswerable": or_unanswerable}
    splits: ClassVar[tuple[str, ...]] = ("val", "train")
    layout: ClassVar[str] = (
        "a folder with Annotations/val.json or annotations.json of the release, images in val/ "
        "or images/"
    )

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read an annotation file; see :meth:`Task.read`."""
        name = self.split(split)
        names = [f"Annotations/{name}.json", f"{name}.json", f"VizWiz_VQA_v2_{name}.json"]
        if name == self.splits[0]:  # it does not name its split
            names.append("annotations.json")
        found = find_file(path, names, self.layout)
        images = image_folder(found.parent, [name, "images", f"../{name}", f"../Images/{name}"])
        content = read_json(found, self.layout)
        with rows_of(found, self.layout):
            return [
                _question(r, r["image"], images and image_file(images, r["image"])) for r in content
            ]

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of the hub's copy; see :meth:`Task.from_hub`.

        The copy does not tell which questions can be answered.
        """
        name = str(row["question_id"])
        image_name = name if name.endswith(".jpg") else f"{name}.jpg"
        return _question(row, image_name, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Score one answer against its annotators; see :meth:`Task.judge`."""
        return _RULES[self.mode](text, target.answers)

    def metric(self, targets: Iterable[Target]) -> AnswerabilityScore:
        """Return an empty metric; see :meth:`Task.metric`."""
        return AnswerabilityScore(sorted({group for t in targets for group in t.groups}))

    def scores(
        self,
        texts: Sequence[str | None],
        targets: Sequence[Target],
        confidences: Sequence[float | None] | None = None,
    ) -> dict[str, float]:
        """Score answers, and the detection of unanswerable questions; see :meth:`Task.scores`.

        Raises:
            InputError: a confidence is no probability.
        """
        metric = self.metric(targets)
        given = [None] * len(targets) if confidences is None else confidences
        wrong = [x for x in given if x is not None and not 0 <= x <= 1]
        if wrong:
            raise InputError(
                f"confidence of vizwiz is {wrong[0]}; allowed are 0 to 1, the probability that a "
                "question can be answered"
            )
        sure = [
            # no answer at all is wrong here, too: neither may rank, nor be counted, as a right one
            float(UNANSWERABLE in target.groups) if text is None else confidence
            for text, target, confidence in zip(texts, targets, given, strict=True)
        ]
        metric.update(self.judged(texts, targets), [t.groups for t in targets], sure)
        values = {name: float(value) for name, value in metric.compute().items()}
        return values | {UNPARSED: int(metric.unparsed)}


def _question(row: Row, image_name: str, image: Any) -> Question:
    groups = []
    kind = row.get("answer_type") or row.get("category")
    if kind:
        groups.append(f"answer_type/{kind}")
    if row.get("answerable") is not None:
        groups.append(ANSWERABLE if row["answerable"] else UNANSWERABLE)
    return Question(
        id=image_name,
        target=Target(annotators_of(row, "question"), groups=tuple(groups)),
        row={"question": row["question"]},
        image=image,
    )
