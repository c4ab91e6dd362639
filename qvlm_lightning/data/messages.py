"""One row of your own data: a chat or a question, its answers if there are any, its image."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

from qvlm_lightning.data.image_names import IMAGE_KEYS, ImageName, image_of, stray_image
from qvlm_lightning.errors import InputError

PLACEHOLDER = "<image>"

_ASKS = ("user", "human")
_ANSWERS = ("assistant", "gpt")
_FORMS = "messages, conversations, or question"
_READ = ("messages", "conversations", "question", "answer", "choices", "id", "family")
_SPELLINGS = "name its file as image of the line, or as image, path or url of a part of the message"


@dataclass(frozen=True)
class Exchange:
    """A question and what was answered."""

    question: str
    """The text that the model sees after the image."""
    answer: str = ""
    """The answer; empty where there is none."""
    image: ImageName | None = None
    """The image, or the name of its file."""
    choices: tuple[str, ...] = ()
    """Options of a multiple choice, already part of the question."""
    further: tuple[tuple[str, str], ...] = ()
    """Questions and answers that follow."""


def read_exchange(row: Mapping[str, Any], where: str, max_turns: int = 1) -> Exchange:
    """Read the first question and answer of a row, and those that follow.

    Three forms are read: ``messages`` with ``role`` and ``content`` (a text, or a list of parts of
    type ``text`` and ``image``); ``conversations`` with ``from`` and ``value``; or ``question``
    with ``answer``. The image is ``image``, the one of ``images``, or a part of the message: the
    name of its file, a data URI, or an image (``image_names.image_of``). Whatever looks like an
    image under another key is refused, not left out.

    Args:
        row: the row.
        where: its place, for messages.
        max_turns: exchanges to read at most; messages after them are not looked at.

    Returns:
        The question, stripped of image placeholders. What follows ends before a question without an
        answer.

    Raises:
        InputError: the row has none of these forms, several images, an image after the first
            question or under a key that is not read, or a message that is not understood.

    Example:
        >>> read_exchange({"question": "What?", "answer": "A cat.", "image": "1.png"}, "line 1")
        Exchange(question='What?', answer='A cat.', image='1.png', choices=(), further=())
    """
    images = _images(row, where)
    answer = ""
    if row.get("messages") is not None:
        turns = [_turn(x, "role", "content", where) for x in _list(row["messages"], where)]
    elif row.get("conversations") is not None:
        turns = [_turn(x, "from", "value", where) for x in _list(row["conversations"], where)]
    elif isinstance(row.get("question"), str):
        answer = "" if row.get("answer") is None else row["answer"]
        turns = [("user", row["question"])]
    else:
        raise InputError(f"{where} has {', '.join(row) or 'nothing'}; needed is {_FORMS}")
    text, own, empty = _asked(turns, where)
    if empty > len(images):
        raise InputError(f"{where} has a part of type image without an image; {_SPELLINGS}")
    images += own
    if not images and (key := stray_image(row, _READ)) is not None:
        raise InputError(f"{where} has its image under {key!r}, which is not read; {_SPELLINGS}")
    if len(images) > 1:
        raise InputError(f"{where} has {len(images)} images; allowed is one, or none")
    question, holes = _without_placeholders(text)
    if holes > len(images):
        raise InputError(f"{where} has {PLACEHOLDER} in its text, but no image")
    if not question:
        raise InputError(f"{where} has an empty question; needed is a text")
    if len(turns) > 1:
        answer = _answered(turns[1], where)
    if not isinstance(answer, str):
        raise InputError(f"{where} has an answer of type {type(answer).__name__}; allowed is text")
    choices = _choices(row, answer.strip(), where)
    further = _further(turns[: 2 * max_turns], where) if answer.strip() else ()
    return Exchange(question, answer.strip(), images[0] if images else None, choices, further)


def _further(turns: list[tuple[str, Any]], where: str) -> tuple[tuple[str, str], ...]:
    """Return the exchanges after the first, up to a question without an answer."""
    texts = [_follows(turns[place], place, where) for place in range(2, len(turns))]
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    return tuple(takewhile(lambda pair: pair[1], pairs))


def _follows(turn: tuple[str, Any], place: int, where: str) -> str:
    """Return the text of a question or an answer after the first exchange."""
    role, content = turn
    roles = _ANSWERS if place % 2 else _ASKS
    if role not in roles:
        raise InputError(
            f"{where} has a message {place + 1} of {role!r}; allowed is {' or '.join(roles)}"
        )
    text, images, empty = _parts(content, where)
    if images or empty or PLACEHOLDER in text:
        raise InputError(
            f"{where} has an image in message {place + 1}; allowed is one in the first"
        )
    if not place % 2 and not text.strip():
        raise InputError(f"{where} has an empty question as message {place + 1}; needed is a text")
    return text.strip()


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} has no list of messages; needed are a user's and an assistant's")
    return value


def _images(row: Mapping[str, Any], where: str) -> list[ImageName]:
    many = row.get("images")
    given = [row.get("image"), *(many if isinstance(many, list) else [many])]
    return [image_of(x, where) for x in given if x is not None and x != ""]


def _turn(message: Any, role: str, content: str, where: str) -> tuple[str, Any]:
    if not isinstance(message, Mapping) or not {role, content} <= set(message):
        raise InputError(f"{where} has a message without {role!r} and {content!r}")
    if (key := stray_image(message, (role, content))) is not None:
        raise InputError(f"{where} has an image under {key!r} of a message; {_SPELLINGS}")
    return str(message[role]), message[content]


def _asked(turns: list[tuple[str, Any]], where: str) -> tuple[str, list[ImageName], int]:
    role, content = turns[0]
    if role not in _ASKS:
        advice = "; put its text into the question" if role == "system" else ""
        raise InputError(
            f"{where} begins with a message of {role!r}; allowed is {' or '.join(_ASKS)}{advice}"
        )
    return _parts(content, where)


def _answered(turn: tuple[str, Any], where: str) -> str:
    role, content = turn
    if role not in _ANSWERS:
        raise InputError(
            f"{where} has a second message of {role!r}; allowed is {' or '.join(_ANSWERS)}"
        )
    text, images, empty = _parts(content, where)
    if images or empty:
        raise InputError(f"{where} answers with an image; allowed is text")
    return text


def _parts(content: Any, where: str) -> tuple[str, list[ImageName], int]:
    """Return the text of a message, the images it names, and how many parts stand for an image that
    is named elsewhere.
    """
    if isinstance(content, str):
        return content, [], 0
    texts, images, empty = [], [], 0
    for item in content if isinstance(content, list) else [None]:
        part = item if isinstance(item, Mapping) else {}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            read: tuple[str, ...] = ("type", "text")
        elif kind in ("image", "image_url"):
            # datasets fills the keys that other rows have with None
            named = [(key, part[key]) for key in IMAGE_KEYS if part.get(key) is not None]
            images += [image_of(value, where, key) for key, value in named]
            # beside an image, other keys are settings of it
            read = tuple(part) if named else ("type", "text")
            empty += not named
        else:
            raise InputError(
                f"{where} has a part of type {kind!r} in a message; allowed are text, and image "
                "with the path of a file"
            )
        if (key := stray_image(part, read)) is not None:
            raise InputError(
                f"{where} has an image under {key!r} of a part of type {kind}; {_SPELLINGS}"
            )
    return "\n".join(texts), images, empty


def _without_placeholders(text: str) -> tuple[str, int]:
    pieces = text.split(PLACEHOLDER)
    return "\n".join(p.strip() for p in pieces if p.strip()), len(pieces) - 1


def _choices(row: Mapping[str, Any], answer: str, where: str) -> tuple[str, ...]:
    given = [] if row.get("choices") is None else row["choices"]
    if not isinstance(given, list) or not all(isinstance(choice, str) for choice in given):
        raise InputError(f"{where} has choices that are no list of texts")
    choices = tuple(given)
    letters = ascii_uppercase[: len(choices)]
    if choices and answer and (len(answer) > 1 or answer not in letters):
        raise InputError(
            f"{where} has {len(choices)} choices and the answer {answer!r}; allowed are the "
            f"letters {letters[0]} to {letters[-1]}"
        )
    return choices
