"""Dialogues of several exchanges: their text, turn by turn, and where its answers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import Foreign, InputError


@dataclass(frozen=True)
class Turn:
    """What a dialogue has grown to with one more answer."""

    asked: str
    """The text up to where the model answers."""
    told: str
    """The same with the answer and its end."""
    ended: bool
    """Whether the chat template writes something that ends it."""


def first_message(sample: Sample) -> dict[str, Any]:
    """Return the message that asks the first question, the image before the text."""
    content: list[dict[str, Any]] = [{"type": "text", "text": sample.question}]
    if sample.image is not None:
        content.insert(0, {"type": "image"})
    return {"role": "user", "content": content}


def read_turns(sample: Sample, processor: Any) -> list[Turn]:
    """Render the growing dialogue with the processor's chat template.

    What the template writes after an answer, white space apart, is the answer's end.

    Args:
        sample: a question with its answer and the exchanges that follow.
        processor: a Hugging Face processor that has a chat template.

    Returns:
        One per answer; each text begins with the one before.

    Raises:
        InputError: the template changes an answer, or what it wrote for fewer messages, or cannot
            render the dialogue.
    """
    turns: list[Turn] = []
    messages = [first_message(sample)]
    before = ""
    for question, answer in [("", sample.answer), *sample.further]:
        if turns:
            messages.append(_message("user", question))
        asked = _rendered(sample, messages, processor, answering=True)
        messages.append(_message("assistant", answer))
        told = _rendered(sample, messages, processor, answering=False).rstrip()
        answered = told[len(asked) :].lstrip()
        grows = asked.startswith(before) and told.startswith(asked)
        if not grows or not answered.startswith(answer.strip()):
            raise _refusal(sample, "chat template changes an answer, or what came before it")
        turns.append(Turn(asked, told, ended=answered != answer.strip()))
        before = told
    return turns


def answer_spans(
    sample: Sample, turns: Sequence[Turn], row: Sequence[int], tokenizer: Any
) -> list[tuple[int, int]]:
    """Return the first token of every answer, and the first one after its end.

    A token merged across the border of a question and its answer is the answer's.

    Args:
        sample: the dialogue, named in messages.
        turns: what it grows by.
        row: its tokens, an image spread out.
        tokenizer: of the processor.

    Raises:
        InputError: the tokens of the dialogue do not begin with those of its parts.
    """
    texts = [text for turn in turns for text in (turn.asked, turn.told)]
    parts: list[list[int]] = tokenizer(texts)["input_ids"]
    plain = parts[-1]
    # an image lies before all answers: in one token or spread out, they are as far from the end
    spread = len(row) - len(plain)
    borders = [shared_tokens(part, plain) for part in parts]
    spans = list(zip(borders[::2], borders[1::2], strict=True))
    alike = list(row[spread + borders[0] :]) == plain[borders[0] :]
    if not alike or any(first >= end for first, end in spans):
        raise _refusal(sample, "processor makes other tokens of the whole than of its beginning")
    return [(spread + first, spread + end) for first, end in spans]


def shared_tokens(row: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows have in common from the start."""
    shared = 0
    while shared < min(len(row), len(other)) and row[shared] == other[shared]:
        shared += 1
    return shared


def _refusal(sample: Sample, reason: str) -> InputError:
    return InputError(
        f"the answers of the dialogue {sample.id!r} cannot be told from its questions: the model's "
        f"{reason}; allowed is one exchange (max_turns: 1)"
    )


def _message(role: str, text: str) -> dict[str, Any]:
    # a list, not a text: templates of processors that know images loop over parts
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _rendered(
    sample: Sample, messages: list[dict[str, Any]], processor: Any, answering: bool
) -> str:
    with Foreign(f"the model's chat template cannot write the dialogue {sample.id!r}"):
        text: str = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answering
        )
    return text
