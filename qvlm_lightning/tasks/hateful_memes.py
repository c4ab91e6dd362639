"""Hateful Memes: is a meme hateful? Accuracy, and how well confidences rank."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.binary import auroc
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json_lines
from qvlm_lightning.tasks.prompts import ANSWER_SHORT
from qvlm_lightning.tasks.release import image_file

_YES_NO = re.compile(r"\W*([Yy][Ee][Ss]|[Nn][Oo])\b")
_HATEFUL, _BENIGN = "yes", "no"


def yes_no(row: Row) -> str:
    r"""Ask for yes or no about the image and the text written on it.

    Args:
        row: ``text``, what is written on the image.

    Example:
        >>> yes_no({"text": "hi there"}).partition("\n")[0]
        'This is an image with "hi there" written on it. Is it hateful?'
    """
    return f'This is an image with "{row["text"]}" written on it. Is it hateful?\n{ANSWER_SHORT}'


class HatefulMemes(Task):
    """Hateful Memes; two thirds of the memes are benign, and some differ in a word or image only.

    Ids are those of the release. ``auroc`` is given where there are confidences that a meme is
    hateful; a meme without one ranks on the wrong side of all others.

    Args:
        mode: ``yes_no`` reads an answer that begins with yes or no; ``probability`` reads the
            probability of being hateful, as in files of the challenge, hateful above 0.5.
        prompt: which prompt.
    """

    name = "hateful_memes"
    modes = ("yes_no", "probability")
    prompts: ClassVar[Mapping[str, Prompt]] = MappingProxyType({"yes_no": yes_no})
    splits = ("dev_seen", "dev_unseen", "test_seen", "test_unseen", "dev", "train")
    layout = "a folder with <split>.jsonl (id, img, label, text) and the images in img/"

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read JSON lines of the release.

        Args:
            path: the folder, or one split's file in it.
            split: one of :attr:`splits`; a file holds one and ignores it.

        Raises:
            InputError: nothing readable there, or a line without a label.
        """
        file = path / f"{self.split(split)}.jsonl" if path.is_dir() else path
        questions = []
        for row in read_json_lines(file, self.layout):
            missing = [key for key in ("id", "text", "label") if row.get(key) is None]
            if missing:
                raise InputError(f"a line of {str(file)!r} has no {missing[0]!r}")
            image = image_file(file.parent, row.get("img", f"img/{row['id']}.png"))
            questions.append(_question(row, image if image.is_file() else None))
        if not questions:
            raise InputError(f"{str(file)!r} holds no memes; needed is {self.layout}")
        return questions

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row with the release's keys and its ``image``.

        Args:
            row: the columns.
        """
        return _question(row, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare yes or no with the label.

        Args:
            text: what was generated.
            target: what is expected.
        """
        if self.mode == "probability":
            value = probability(text)
            parsed = None if value is None else _HATEFUL if value > 0.5 else _BENIGN
        else:
            found = _YES_NO.match(text)
            parsed = found.group(1).lower() if found else None
        return Judgement(WHOLE if parsed in target.answers else 0, parsed)

    def scores(
        self,
        texts: Sequence[str | None],
        targets: Sequence[Target],
        confidences: Sequence[float | None] | None = None,
    ) -> dict[str, float]:
        """Add the area under the ROC curve to accuracies, where there are confidences.

        Args:
            texts: one answer per target; None where none was given.
            targets: what is expected.
            confidences: how sure the model is that a meme is hateful, on any scale; mode
                ``probability`` reads them from the texts.
        """
        values = super().scores(texts, targets)
        if self.mode == "probability":
            confidences = [None if text is None else probability(text) for text in texts]
        if confidences is not None and any(x is not None for x in confidences):
            values["auroc"] = auroc(confidences, [_HATEFUL in t.answers for t in targets])
        return values


def probability(text: str) -> float | None:
    """Read a number between 0 and 1, and nothing else.

    Args:
        text: a decimal number.

    Example:
        >>> probability(" 0.25"), probability("1.5"), probability("likely")
        (0.25, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if not math.isnan(value) and 0 <= value <= 1 else None


def _question(row: Row, image: Any) -> Question:
    hateful = int(row["label"]) == 1
    target = Target(
        answers=(_HATEFUL if hateful else _BENIGN,),
        groups=(f"label/{'hateful' if hateful else 'benign'}",),
    )
    return Question(str(row["id"]), target, {"text": row["text"]}, image)
