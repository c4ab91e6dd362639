"""One question with its image, and what may follow it, and the checks that samples pass before any
work starts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from tqdm import tqdm

from qvlm_lightning.data.image import LazyImage, check_image, pixel_digest
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target

LONGEST_TEXT = 1_000_000
"""Characters; a longer text takes a tokenizer minutes, and no model reads it."""


@dataclass(frozen=True)
class Sample:
    """One question of a dataset."""

    id: str
    """Unique within its dataset and stable between runs."""
    image: Image.Image | LazyImage | None
    """The image, or None for a question without one; samples may share the object."""
    question: str
    """The text the model sees; options of a multiple choice are part of it."""
    choices: tuple[str, ...] = ()
    """Options of a multiple choice in the order of their letters; empty for an open question."""
    answer: str = ""
    """The expected answer, a letter for a multiple choice; empty when unknown."""
    family: str = ""
    """Group of questions that results are also reported for."""
    target: Target | None = None
    """What a benchmark's scoring rule needs; None where ``answer`` says it all."""
    further: tuple[tuple[str, str], ...] = ()
    """Questions and answers that follow in the dialogue. Calibration sees them; evaluation asks the
    first question only."""


def check_samples(samples: Sequence[Sample], what: str, need: int, answers: bool) -> list[str]:
    """Check that samples can be used, so that a fault shows before long work.

    Args:
        samples: the samples, images not necessarily decoded yet.
        what: what they are for, named in messages (``"calibration"``).
        need: how many are needed.
        answers: whether every sample must have an answer.

    Returns:
        What to tell the user of their images, one sentence each.

    Raises:
        InputError: too few samples, repeated ids, a missing answer, an empty text in a dialogue, a
            text that is none, half a character or an undecodable image.

    Example:
        >>> check_samples([Sample("a", None, "why?", answer="so")], "calibration", 1, answers=True)
        []
    """
    if len(samples) < need:
        found = f"{len(samples)} samples" if samples else "no samples (it is empty)"
        raise InputError(f"the {what} set has {found}, but {need} were asked for; give more data")
    repeated = [name for name, times in Counter(s.id for s in samples).items() if times > 1]
    if repeated:
        raise InputError(
            f"the {what} set has the id {repeated[0]!r} twice; every sample needs its own"
        )
    for sample in samples:
        _check_texts(sample, f"{what} sample {sample.id!r}")
        if answers and not sample.answer.strip():
            raise InputError(f"{what} sample {sample.id!r} has no answer; every one needs a text")
        texts = (sample.answer, *(text for pair in sample.further for text in pair))
        if sample.further and not all(text.strip() for text in texts):
            raise InputError(
                f"{what} sample {sample.id!r} has an empty question or answer in its dialogue; "
                "every one needs a text"
            )
    first: dict[int, Sample] = {}
    for sample in samples:
        if sample.image is not None:
            first.setdefault(id(sample.image), sample)
    # a bar only for what takes long: large sets from disk
    deep = [
        sample.id
        for sample in tqdm(first.values(), f"checking {what} images", delay=5, leave=False)
        if check_image(sample.image, f"image of {what} sample {sample.id!r}")
    ]
    if not deep:
        return []
    return [
        f"{len(deep)} {what} images have grey values of 16 bits, such as that of {deep[0]!r}; they "
        "are divided by 257, where transformers would cut them off at 255"
    ]


def _check_texts(sample: Sample, whose: str) -> None:
    """Refuse texts that are none, or hold half of a character that JSON writes in two parts."""
    texts = {"id": sample.id, "question": sample.question, "answer": sample.answer}
    texts |= {f"choice {place + 1}": text for place, text in enumerate(sample.choices)}
    for place, (question, answer) in enumerate(sample.further, 2):
        texts |= {f"question {place}": question, f"answer {place}": answer}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{name} of {whose} is of type {type(text).__name__}; needed is text")
        if len(text) > LONGEST_TEXT:
            raise InputError(
                f"{name} of {whose} has {len(text):,} characters; allowed are {LONGEST_TEXT:,}"
            )
        if not text.isascii():
            check_characters(text, f"{name} of {whose}")


def check_characters(text: str, what: str) -> None:
    r"""Check that a text is made of whole characters, which a tokenizer can read.

    Args:
        text: any text.
        what: whose text it is, for messages.

    Raises:
        InputError: it holds half of a pair of surrogates.

    Example:
        >>> check_characters("\ud83d", "question of 'a'")
        Traceback (most recent call last):
            ...
        qvlm_lightning.errors.InputError: question of 'a' has half a character, ...
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(
            f"{what} has half a character, {half!r}, at place {error.start + 1}; allowed is text "
            "that can be written as UTF-8"
        ) from error


def check_disjoint(calibration: Sequence[Sample], evaluation: Sequence[Sample]) -> None:
    """Check that no evaluation question was calibrated on, by id and by content.

    Args:
        calibration: samples that calibration sees, with all questions of their dialogues.
        evaluation: samples that results are reported for.

    Raises:
        InputError: an id, or a question with the same image, is in both.

    Example:
        >>> check_disjoint([Sample("a", None, "why?")], [Sample("b", None, "who?")])
    """
    check_disjoint_ids([s.id for s in calibration], [s.id for s in evaluation])
    digests: dict[int, str] = {}

    def digest(sample: Sample) -> str:
        key = id(sample.image)
        if key not in digests:
            digests[key] = pixel_digest(sample.image)
        return digests[key]

    asked = [(text, s) for s in calibration for text in (s.question, *(q for q, _ in s.further))]
    texts = {text for text, _ in asked}
    seen = {(text, digest(s)): s.id for text, s in asked}
    for sample in evaluation:
        # images are only hashed where the question repeats: large sets hash next to nothing
        if sample.question in texts and (content := (sample.question, digest(sample))) in seen:
            raise InputError(
                f"evaluation sample {sample.id!r} has question and image of calibration sample "
                f"{seen[content]!r}; calibrate on data that is not evaluated"
            )


def check_disjoint_ids(calibration: Sequence[str], evaluation: Sequence[str]) -> None:
    """Check that two lists of sample ids share none (see :func:`check_disjoint`)."""
    shared = sorted(set(calibration) & set(evaluation))
    if shared:
        raise InputError(
            f"{len(shared)} calibration samples are also evaluated, such as {shared[0]!r}; "
            "calibrate on data that is not evaluated"
        )
