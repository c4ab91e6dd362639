"""MMMU: college exams over 30 subjects, multiple choice and open."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any, ClassVar

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.mmmu import choice, matches, open_answers
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json
from qvlm_lightning.tasks.prompts import ANSWER_LETTER, ANSWER_SHORT, lettered
from qvlm_lightning.tasks.release import rows_of

_MULTIPLE_CHOICE = "multiple-choice"
_DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
        "Public_Health"
    ),
    "Humanities and Social Science": "History Literature Psychology Sociology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
        "Materials Mechanical_Engineering"
    ),
}
_DOMAIN = {subject: name for name, subjects in _DOMAINS.items() for subject in subjects.split()}


def lmms(row: Row) -> str:
    r"""Write lmms-eval's prompt.

    Args:
        row: ``question`` and ``choices``, empty for an open question.

    Example:
        >>> lmms({"question": "Who?", "choices": []})
        'Who?\n\nAnswer the question using a single word or phrase.'
        >>> lmms({"question": "Who?", "choices": ["a", "b"]})
        "Who?\nA. a\nB. b\n\nAnswer with the option's letter from the given choices directly."
    """
    if not row["choices"]:
        return f"{row['question']}\n\n{ANSWER_SHORT}"
    return f"{row['question']}\n{lettered(row['choices'])}\n\n{ANSWER_LETTER}"


class MMMU(Task):
    """MMMU; 900 validation questions, of which 847 are multiple choice.

    Ids are those of the release, such as ``validation_Math_15``. Of a question with several images
    only the first is shown.

    Args:
        mode: ``official`` parses generated text as the official scorer does, without its random
            option; ``parsed`` takes a multiple choice's text as the letter itself, for files that
            the official parser made (``main_eval_only.py``).
        prompt: which prompt.
    """

    name = "mmmu"
    modes = ("official", "parsed")
    prompts: ClassVar[Mapping[str, Prompt]] = MappingProxyType({"lmms": lmms})
    splits = ("validation", "dev")
    train_split = "dev"
    layout = (
        "a folder with answer_dict_val.json and, for mode official, the options in "
        "*outputs_by_subject.json or example_outputs/<model>/<subject>/output.json"
    )

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read the answers of the release, with options where they lie beside.

        Args:
            path: the folder, ``answer_dict_val.json``, or a file of outputs with their options.
            split: one of :attr:`splits`; a file holds one and ignores it.

        Raises:
            InputError: nothing readable there, no question of that split, or mode ``official``
                without options.
        """
        split = self.split(split)
        held = read_json(path / "answer_dict_val.json" if path.is_dir() else path, self.layout)
        with rows_of(path, self.layout):
            outputs = {x["id"]: x for file in _outputs(path) for x in _listed(read_json(file, ""))}
            rows = _answers(held, outputs)
            questions = [_question(row) for row in rows]
        if path.is_dir():
            questions = [q for q in questions if q.id.startswith(f"{split}_")]
        if not questions:
            raise InputError(f"{str(path)!r} holds no question of split {split}")
        bare = [q.id for q in questions if not q.target.choices and not q.target.extra["open"]]
        if bare and self.mode == "official":
            raise InputError(
                f"{str(path)!r} holds no options of {bare[0]!r}, which mode official parses by; "
                f"needed is {self.layout}, or mode parsed for parsed answers"
            )
        return questions

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of ``MMMU/MMMU`` or ``lmms-lab/MMMU``.

        Args:
            row: the columns; ``options`` and several answers are written as Python lists.
        """
        images = [row[f"image_{i}"] for i in range(1, 8) if row.get(f"image_{i}") is not None]
        options = row["options"]
        plain = {
            **row,
            "choices": ast.literal_eval(options) if isinstance(options, str) else options,
            "answer": _several(row["answer"]),
            "images": len(images),
        }
        return _question(plain, images[0] if images else None)

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare the parsed letter, or anything an open response may mean, with the answers.

        Args:
            text: what was generated.
            target: what is expected.
        """
        if target.extra["open"]:
            found = open_answers(text)
            right = matches(found, target.answers)
            parsed = "; ".join(str(answer) for answer in found) if text.strip() else None
            return Judgement(WHOLE if right else 0, parsed)
        if self.mode == "official":
            letter = choice(text, target.choices)
        else:
            known = ascii_uppercase[: len(target.choices) or None]
            letter = text if text in tuple(known) else None
        return Judgement(WHOLE if letter in target.answers else 0, letter)


def _outputs(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    patterns = ("*outputs_by_subject.json", "example_outputs/*/*/output.json")
    return sorted(file for pattern in patterns for file in path.glob(pattern))


def _listed(held: Any) -> list[dict[str, Any]]:
    """Return a file of outputs as one list, whether or not it is sorted by subject."""
    return [row for rows in held.values() for row in rows] if isinstance(held, dict) else held


def _answers(held: Any, outputs: Mapping[str, Row]) -> list[Row]:
    if isinstance(held, dict) and all(isinstance(entry, dict) for entry in held.values()):
        rows = [
            {"id": name, **entry, "answer": entry["ground_truth"]} for name, entry in held.items()
        ]
    else:
        rows, outputs = _listed(held), {}
    given = [outputs.get(row["id"], row).get("index2ans", {}) for row in rows]
    return [
        {**row, "choices": [options[letter] for letter in sorted(options)]}
        for row, options in zip(rows, given, strict=True)
    ]


def _several(answer: Any) -> Any:
    """Read a list of answers that was written as text; anything else is one answer."""
    if not isinstance(answer, str) or not answer.startswith("["):
        return answer
    try:
        read = ast.literal_eval(answer)
    except (ValueError, SyntaxError):
        return answer
    return read if isinstance(read, list) and all(isinstance(x, str) for x in read) else answer


def _question(row: Row, image: Any = None) -> Question:
    name, answer = row["id"], row["answer"]
    is_open = row["question_type"] != _MULTIPLE_CHOICE
    choices: Sequence[str] = () if is_open else tuple(map(str, row["choices"]))
    subject = "_".join(name.split("_")[1:-1])
    domain = (f"domain/{_DOMAIN[subject]}",) if subject in _DOMAIN else ()
    target = Target(
        answers=tuple(answer) if isinstance(answer, list) else (answer,),
        choices=tuple(choices),
        groups=(*domain, f"subject/{subject}", f"type/{'open' if is_open else _MULTIPLE_CHOICE}"),
        extra={"open": is_open},
    )
    asked = {"choices": target.choices, "images": row.get("images", 0)}
    if "question" in row:
        asked["question"] = row["question"]
    return Question(name, target, asked, image)
