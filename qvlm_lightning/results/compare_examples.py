"""Questions whose answers changed, drawn at random, with their images where the data is at hand."""

import base64
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from qvlm_lightning.data.image import LazyImage, decoded
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import WHOLE
from qvlm_lightning.results.compare import Comparison
from qvlm_lightning.results.entries import Entry

SIDE = 280
"""Longest side of a picture in a report, pixels."""
SMALL = 128
"""Up to this side pictures stay lossless: JPEG blurs a few pixels, and PNG is small."""


@dataclass(frozen=True)
class Example:
    """One question that two models answered differently."""

    id: str
    """Id of the question."""
    question: str
    """What was asked; empty where the data is not at hand."""
    picture: str
    """The image as a data URI; empty without one."""
    expected: str
    """The expected answer."""
    before: tuple[str, float]
    """What the reference answered, and its score in percent."""
    after: tuple[str, float]
    """What the model answered, and its score in percent."""


@dataclass(frozen=True)
class Changes:
    """Questions that a model won and lost against the reference."""

    lost: list[Example]
    """Some of those with fewer points than the reference's."""
    won: list[Example]
    """Some of those with more."""


class Pictures:
    """Turns images into data URIs until a report has had enough of them.

    Args:
        limit: bytes of all pictures together.
    """

    def __init__(self, limit: int = 2_000_000) -> None:
        self.left = limit

    def __call__(self, image: Image.Image | LazyImage | None) -> str:
        """Return a small copy of an image; nothing without a readable one, or if all is full."""
        if image is None or not self.left:
            return ""
        try:
            small = decoded(image).convert("RGB")
        except InputError:  # the file is gone: what was answered can still be told
            return ""
        small.thumbnail((SIDE, SIDE))
        kind = "png" if max(small.size) <= SMALL else "jpeg"
        buffer = io.BytesIO()
        small.save(buffer, kind, quality=80)
        text = base64.b64encode(buffer.getvalue()).decode()
        if len(text) > self.left:
            self.left = 0
            return ""
        self.left -= len(text)
        return f"data:image/{kind};base64,{text}"


def changed_examples(
    comparison: Comparison,
    entry: Entry,
    samples: Mapping[str, Sample],
    picture: Pictures,
    count: int = 6,
) -> Changes:
    """Draw questions that a model answered better and worse than the reference.

    Args:
        comparison: the models on a benchmark.
        entry: one of ``comparison.others``.
        samples: questions by id, as far as the data is at hand.
        picture: turns images into data URIs.
        count: how many of each at most; the draw is seeded, nobody picks.
    """
    mine, theirs = entry.predictions, comparison.reference.predictions

    def example(place: int) -> Example:
        name = mine.ids[place]
        sample = samples.get(name)
        return Example(
            id=name,
            question="" if sample is None else sample.question,
            picture="" if sample is None else picture(sample.image),
            expected=theirs.answers[place],
            before=(theirs.texts[place], 100 * theirs.points[place] / WHOLE),
            after=(mine.texts[place], 100 * mine.points[place] / WHOLE),
        )

    def draw(places: list[int]) -> list[Example]:
        drawn = random.Random(0).sample(places, min(count, len(places)))
        return [example(place) for place in sorted(drawn)]

    lost, won = changed_places(comparison, entry)
    return Changes(lost=draw(lost), won=draw(won))


def changed_places(comparison: Comparison, entry: Entry) -> tuple[list[int], list[int]]:
    """Return the places of the questions that a model answered worse and better than the reference.

    Args:
        comparison: the models on a benchmark.
        entry: one of ``comparison.others``.
    """
    mine, theirs = entry.predictions.points, comparison.reference.predictions.points
    pairs = list(enumerate(zip(mine, theirs, strict=True)))
    return [i for i, (a, b) in pairs if a < b], [i for i, (a, b) in pairs if a > b]
