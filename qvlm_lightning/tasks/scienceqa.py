"""ScienceQA: multiple choice about science, with or without an image, by subject and grade."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any, ClassVar

from qvlm_lightning.data.image import content_of
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.letters import PARSERS
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json
from qvlm_lightning.tasks.prompts import ANSWER_LETTER, bracketed, lettered
from qvlm_lightning.tasks.release import image_file, rows_of

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_GRADES = {f"grade{i}": "G1-6" if i <= 6 else "G7-12" for i in range(1, 13)}
_REASONING_TOKENS = 1024  # what LLaVA generates at most; a chain ends with the answer
# Prompts that ask for an answer of a certain form -> the parser of that form.
_FORMS = {"qcm_lepa": "qcm_lepa", "qcm_ale": "answer_is"}


def llava(row: Row) -> str:
    r"""Write LLaVA-1.5's prompt (``llava_test_CQM-A.json`` with its last line added).

    Args:
        row: ``question``, ``hint``, ``choices``; or ``llava``, the text without the last line.

    Example:
        >>> llava({"question": "Which?", "hint": "", "choices": ["a", "b"]})
        "Which?\nA. a\nB. b\nAnswer with the option's letter from the given choices directly."
    """
    if "llava" in row:
        return f"{row['llava']}\n{ANSWER_LETTER}"
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    text = f"{context}{row['question']}\n{lettered(row['choices'])}"
    return f"{text.replace('  ', ' ').strip()}\n{ANSWER_LETTER}"


def qwen_vl(row: Row) -> str:
    r"""Write lmms-eval's prompt in the format ``qwen_vl``.

    Args:
        row: ``question``, ``hint``, ``choices``.

    Example:
        >>> qwen_vl({"question": "Which?", "hint": "", "choices": ["a", "b"]})
        'Context: N/A\nQuestion: Which?\nOptions: A. a\nB. b\nAnswer:'
    """
    return (
        f"Context: {row['hint'] or 'N/A'}\nQuestion: {row['question']}\n"
        f"Options: {lettered(row['choices'])}\nAnswer:"
    )


def qcm_lepa(row: Row) -> str:
    r"""Write the prompt of models fine-tuned to lecture first (LLaVA v0 and v1.3, Q-VLM).

    Args:
        row: ``question``, ``hint``, ``choices``.

    Example:
        >>> qcm_lepa({"question": "Which?", "hint": "", "choices": ["a", "b"]})
        'Question: Which?\nContext: N/A\nOptions: (A) a (B) b'
    """
    context = row["hint"].strip() or "N/A"
    text = f"Question: {row['question']}\nContext: {context}\nOptions: {bracketed(row['choices'])}"
    return text.replace("  ", " ").strip()


def qcm_ale(row: Row) -> str:
    r"""Write GPT-3's prompt without examples (ScienceQA's ``models/base_prompt.py``).

    Args:
        row: ``question``, ``hint``, ``choices``.

    Example:
        >>> qcm_ale({"question": "Which?", "hint": "", "choices": ["a", "b"]})
        'Question: Which?\nContext: N/A\nOptions: (A) a (B) b\nAnswer:'
    """
    return f"{qcm_lepa(row)}\nAnswer:"


class ScienceQA(Task):
    """ScienceQA; 4,241 test questions, of which texts and images overlap.

    Groups are those of the official ``evaluate_acc.py``: ``subject/``, ``context/`` (TXT and IMG
    overlap), ``grade/`` and ``topic/``. Ids are pids; rows of the hub, which have none, get a
    digest of their content.

    Args:
        mode: the parser of answers (``metrics/letters.py``); by default that of the form that the
            prompt asks for, ``llava`` for a letter. ``index`` reads the ``results`` of result
            files, which were parsed already.
        prompt: which prompt.
        random_fallback: seed of a random option where nothing can be parsed, as in the published
            figures of GPT-3 and Q-VLM. Not given, what cannot be parsed is wrong. A guess depends
            on the seed and the question only, and still counts as unparsed.
    """

    name = "scienceqa"
    modes = ("llava", "letter", "answer_is", "qcm_lepa", "index")
    prompts: ClassVar[Mapping[str, Prompt]] = MappingProxyType(
        {p.__name__: p for p in (llava, qwen_vl, qcm_lepa, qcm_ale)}
    )
    splits = ("test", "val", "train", "minitest", "minival", "minitrain", "trainval")
    layout = (
        "a folder with problems.json, pid_splits.json and images/<split>/<pid>/image.png "
        "(instead of problems.json also problems_subset.json, test_labels.json and "
        "llava_test_CQM-A.json)"
    )

    def __init__(
        self,
        mode: str | None = None,
        prompt: str | None = None,
        random_fallback: int | None = None,
    ) -> None:
        super().__init__(_FORMS.get(prompt or "") if mode is None else mode, prompt)
        self.random_fallback = random_fallback
        if self.prompt == "qcm_lepa":
            self.max_new_tokens = _REASONING_TOKENS

    @property
    def rule(self) -> str:
        """The mode, and whether it guesses."""
        if self.random_fallback is None:
            return self.mode
        return f"{self.mode}, random_fallback={self.random_fallback}"

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read a release's folder, its ``problems.json``, or ``test_labels.json``.

        Args:
            path: the folder or file.
            split: one of :attr:`splits`.

        Raises:
            InputError: nothing readable there, or no question of that split.
        """
        split = self.split(split)
        release = _Release(path, self.layout)
        with rows_of(path, self.layout):
            questions = list(release.questions(split))
        if not questions:
            raise InputError(f"{str(path)!r} holds no question of split {split}")
        return questions

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of ``derek-thomas/ScienceQA`` or a copy.

        Args:
            row: the columns; a ``pid`` is used where there is one.
        """
        image = row.get("image")
        pid = str(row["pid"]) if row.get("pid") else _digest(row)
        return _question(pid, row, image)

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare the parsed letter with the expected one.

        Args:
            text: what was generated.
            target: what is expected.
        """
        letters = ascii_uppercase[: len(target.choices)]
        parsed = PARSERS[self.mode](text, len(letters))
        letter = parsed
        if parsed is None and letters and self.random_fallback is not None:
            draw = random.Random(f"{self.random_fallback}:{target.extra.get('pid')}")
            letter = draw.choice(letters)
        return Judgement(WHOLE if letter in target.answers else 0, parsed)


class _Release:
    """Problems of a release, however complete."""

    def __init__(self, path: Path, layout: str) -> None:
        self.folder = path if path.is_dir() else path.parent
        self.problems: Mapping[str, Any] = {}
        self.labels: Mapping[str, Any] = {}
        self.prompts: dict[str, str] = {}
        names = ("problems.json", "problems_subset.json", "test_labels.json")
        files = [path] if not path.is_dir() else [f for n in names if (f := path / n).is_file()]
        if not files:
            raise InputError(f"{str(path)!r} holds no problems; needed is {layout}")
        for file in files:
            held = read_json(file, layout)
            if not isinstance(held, dict) or not all(isinstance(x, dict) for x in held.values()):
                raise InputError(f"{str(file)!r} is no object of problems; needed is {layout}")
            if any("num_choices" in entry for entry in held.values()):
                self.labels = held
            else:
                self.problems = self.problems or held
        splits = self.folder / "pid_splits.json"
        self.splits = read_json(splits, layout) if splits.is_file() else None
        shipped = self.folder / "llava_test_CQM-A.json"
        if self.labels and shipped.is_file():
            turns = ((x["id"], x["conversations"][0]["value"]) for x in read_json(shipped, layout))
            self.prompts = {pid: text.removeprefix("<image>\n") for pid, text in turns}
        self.complete = path.name == "problems.json" or files[0].name == "problems.json"

    def questions(self, split: str) -> Iterator[Question]:
        for pid in self._pids(split):
            if pid in self.problems:
                problem = self.problems[pid]
                yield _question(pid, problem, self._image(pid, problem))
            elif pid in self.labels and split in ("test", "minitest"):
                yield self._labelled(pid, self.labels[pid])
            elif self.complete:
                raise InputError(f"problem {pid!r} of split {split} is not in problems.json")

    def _pids(self, split: str) -> list[str]:
        if self.splits is not None:
            return list(self.splits[split])
        if split == "test" and self.labels:
            return list(self.labels)
        return [pid for pid, problem in self.problems.items() if problem["split"] == split]

    def _image(self, pid: str, problem: Row) -> Path | None:
        if not problem["image"]:
            return None
        inner = Path(problem["split"], pid, problem["image"])
        files = (image_file(folder, inner) for folder in (self.folder / "images", self.folder))
        return next((file for file in files if file.is_file()), None)

    def _labelled(self, pid: str, label: Row) -> Question:
        """Make a question of its label and, where it is shipped, LLaVA's prompt."""
        text = self.prompts.get(pid)
        image = "image.png" if label["has_image"] else ""
        count = label["num_choices"]
        problem = {
            **label,
            "hint": "given" if label["has_text"] else "",
            "image": image,
            "split": "test",
            "choices": _choices(text, count) if text else tuple(ascii_uppercase[:count]),
        }
        question = _question(pid, problem, self._image(pid, problem))
        # hint and question cannot be told apart in LLaVA's text: only its own prompt can be made
        row = {"image": image} | ({"llava": text} if text else {})
        return Question(pid, question.target, row, question.image)


def _question(pid: str, problem: Row, image: Any) -> Question:
    hint, grade, topic = problem["hint"], problem.get("grade"), problem.get("topic")
    has_image = bool(problem["image"])
    groups = [f"subject/{_SUBJECTS[problem['subject']]}"]
    contexts = {"TXT": hint, "IMG": has_image, "NO": not hint and not has_image}
    groups += [f"context/{name}" for name, given in contexts.items() if given]
    if grade:
        groups.append(f"grade/{_GRADES[grade]}")
    if topic:
        groups.append(f"topic/{topic}")
    target = Target(
        answers=(ascii_uppercase[problem["answer"]],),
        choices=tuple(problem["choices"]),
        groups=tuple(groups),
        extra={"pid": pid},
    )
    row = {"question": problem.get("question"), "hint": hint, "choices": target.choices}
    return Question(pid, target, row | {"image": "image.png" if has_image else ""}, image)


def _choices(prompt: str, count: int) -> tuple[str, ...]:
    choices = []
    for letter in reversed(ascii_uppercase[:count]):
        prompt, _, choice = prompt.rpartition(f"\n{letter}. ")
        choices.append(choice)
    return tuple(reversed(choices))


def _digest(row: Row) -> str:
    """Name a row by its content, its image included: texts repeat over images."""
    content = hashlib.blake2b(digest_size=8)
    content.update(repr((row["question"], row["hint"], tuple(row["choices"]))).encode())
    content.update(content_of(row.get("image")))
    return content.hexdigest()
