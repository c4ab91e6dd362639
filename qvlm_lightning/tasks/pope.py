"""POPE: is an object in the image? Yes or no, against three ways of choosing absent objects."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.binary import BinaryCounts
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json_lines
from qvlm_lightning.tasks.prompts import short_answer
from qvlm_lightning.tasks.release import image_file

_CATEGORIES = ("adversarial", "popular", "random")
_NO = {"No", "not", "no"}


def official(text: str) -> bool:
    """Say whether a text means yes by the official rule: everything does that does not say no.

    Only the first sentence counts, and only the words No, no and not, standing between blanks:
    "NO" means yes. POPE's ``evaluate.py`` and LLaVA's ``eval_pope.py`` agree on this.

    Args:
        text: generated text.

    Example:
        >>> official("Yes, it is."), official("No, there is none."), official("NO")
        (True, False, True)
    """
    return _NO.isdisjoint(text.partition(".")[0].replace(",", "").split(" "))


class POPE(Task):
    """POPE; 3,000 questions about COCO images in each of three categories.

    Ids are ``category:image:question``: question ids repeat over the categories, and the order of
    the lines differs between copies of the release. The headline of LLaVA is ``f1``, the mean over
    categories.

    Args:
        mode: ``official`` reads everything that does not say no as yes; ``exact`` reads whole
            answers yes and no in any case, and nothing else (as lmms-eval does).
        prompt: which prompt.
    """

    name = "pope"
    modes = ("official", "exact")
    prompts: ClassVar[Mapping[str, Prompt]] = MappingProxyType({"short": short_answer})
    splits = ("test", "llava_copy")
    train_split = None
    layout = (
        "a folder with coco_pope_adversarial.json, coco_pope_popular.json and "
        "coco_pope_random.json, or with official/ and llava_copy/ that hold them, and COCO's "
        "images in val2014/"
    )

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read one category's file, a folder of them, or a folder of copies of the release.

        Args:
            path: the file or folder.
            split: ``test`` for the official files, in ``official/`` if there are several copies;
                ``llava_copy`` for those that LLaVA was scored with.

        Raises:
            InputError: nothing readable there.
        """
        split = self.split(split)
        copy = path / {"test": "official"}.get(split, split)
        folder = copy if copy.is_dir() else path
        files = sorted(folder.glob("coco_pope_*.json")) if folder.is_dir() else [path]
        if not files:
            raise InputError(f"{str(folder)!r} holds no questions; needed is {self.layout}")
        images = next(
            (p / "val2014" for p in (path, *path.parents[:1]) if (p / "val2014").is_dir()), None
        )
        questions = []
        for file in files:
            category = file.stem.rpartition("_")[2]
            if category not in _CATEGORIES:
                raise InputError(
                    f"{file.name!r} names no category of POPE; allowed are names that end in "
                    f"{', '.join(f'_{name}.json' for name in _CATEGORIES)}"
                )
            for row in read_json_lines(file, self.layout):
                missing = [key for key in ("image", "text", "label") if row.get(key) is None]
                if missing:
                    raise InputError(f"a line of {str(file)!r} has no {missing[0]!r}")
                image = image_file(images, row["image"]) if images else None
                image = image if image and image.is_file() else None
                questions.append(
                    _question(category, row["image"], row["text"], row["label"], image)
                )
        return questions

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of ``lmms-lab/POPE``.

        Args:
            row: the columns.
        """
        name = row["image_source"]
        name = name if Path(name).suffix else f"{name}.jpg"
        return _question(row["category"], name, row["question"], row["answer"], row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare yes or no with what is expected.

        Args:
            text: what was generated.
            target: what is expected.
        """
        if self.mode == "official":
            word = "yes" if official(text) else "no"
        else:
            word = text.strip().lower()
        parsed = word if word in ("yes", "no") else None
        return Judgement(WHOLE if parsed in target.answers else 0, parsed)

    def scores(
        self,
        texts: Sequence[str | None],
        targets: Sequence[Target],
        confidences: Sequence[float | None] | None = None,
    ) -> dict[str, float]:
        """Add mean F1 and, per category, precision, recall, F1 and share of yes to accuracies.

        Args:
            texts: one answer per target; None where none was given.
            targets: what is expected.
            confidences: not used.
        """
        counts = BinaryCounts(_groups(targets))
        judged = self.judged(texts, targets)
        answers = [None if j.parsed is None else j.parsed == "yes" for j in judged]
        counts.update(answers, ["yes" in t.answers for t in targets], [t.groups for t in targets])
        values = super().scores(texts, targets)
        found = {name: table.figures() for name, table in counts.tables().items()}
        by_category = [found[name]["f1"] for name in counts.groups]
        values["f1"] = sum(by_category) / len(by_category) if by_category else float("nan")
        for name, figures in found.items():
            if name != OVERALL:
                values |= {f"{name}/{k}": v for k, v in figures.items() if k != "accuracy"}
        return values


def _groups(targets: Iterable[Target]) -> list[str]:
    return sorted({group for target in targets for group in target.groups})


def _question(category: str, name: str, text: str, label: str, image: Any) -> Question:
    target = Target(answers=(str(label).strip().lower(),), groups=(f"category/{category}",))
    return Question(f"{category}:{name}:{text}", target, {"question": text, "image": name}, image)
