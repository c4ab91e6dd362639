"""What an accuracy is worth: a guesser that sees no image, and images that do not fit."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from qvlm_lightning.data.image import pixel_digest
from qvlm_lightning.data.sample import Sample


def blind_answers(known: Sequence[Sample], asked: Sequence[Sample]) -> list[str]:
    """Answer each question by what is most often right for its text.

    Texts that ``known`` lacks are answered by the most frequent answer of their family. Ties go to
    the answer seen first.

    Args:
        known: samples with answers, none of which is asked.
        asked: samples to answer.

    Returns:
        One answer per asked sample; empty where even the family is unknown.

    Example:
        >>> seen = ("red", "red", "blue")
        >>> known = [Sample("", None, "color?", answer=c, family="f") for c in seen]
        >>> blind_answers(known, [Sample("", None, "color?"), Sample("", None, "?", family="f")])
        ['red', 'red']
    """
    by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_family: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in known:
        by_text[sample.question][sample.answer] += 1
        by_family[sample.family][sample.answer] += 1
    answers = []
    for sample in asked:
        counts = by_text.get(sample.question) or by_family.get(sample.family)
        answers.append(counts.most_common(1)[0][0] if counts else "")
    return answers


def shuffle_images(samples: Sequence[Sample]) -> list[Sample]:
    """Give every image's questions the next image, the last one's the first.

    Images are one if they show the same pixels, however they are stored.

    Args:
        samples: questions with and without an image.

    Returns:
        The samples that have an image, in their order, each with another one; ids are kept. Empty
        if there is only one image: there is no other one to show.

    Raises:
        InputError: an image cannot be decoded.
    """
    shown = [(sample, sample.image) for sample in samples if sample.image is not None]
    digests = {id(image): pixel_digest(image) for image in {id(x): x for _, x in shown}.values()}
    first = {digests[id(image)]: image for _, image in reversed(shown)}
    order = list(dict.fromkeys(digests[id(image)] for _, image in shown))
    if len(order) < 2:
        return []
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [replace(s, image=first[following[digests[id(image)]]]) for s, image in shown]
