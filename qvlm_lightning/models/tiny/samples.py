"""Seeded samples of the embedded task, in splits that share no scene and no text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image

from qvlm_lightning.models.tiny.questions import IMAGE_BUILDERS
from qvlm_lightning.models.tiny.scenes import SPLITS, Scene, draw_scene, render
from qvlm_lightning.models.tiny.texts import TEXT_BUILDERS, content
from qvlm_lightning.models.tiny.turns import Turn

IMAGE_FAMILIES: tuple[str, ...] = tuple(IMAGE_BUILDERS)
TEXT_FAMILIES: tuple[str, ...] = tuple(TEXT_BUILDERS)
TASKS: tuple[str, ...] = IMAGE_FAMILIES + TEXT_FAMILIES
QUESTIONS_PER_IMAGE = 8
KEPT_SEEDS, KEPT_PAIRS = range(10), 64
"""Calibration seeds, and how many of their first pairs, whose texts development leaves out."""
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class TinySample:
    """One question of the embedded task."""

    id: str
    """Unique and stable: split, seed and index."""
    image: Image.Image | None
    """48 x 48 RGB, shared by the samples of one scene; None for text families."""
    question: str
    """The question; lettered options are part of it."""
    choices: tuple[str, ...]
    """Options in the order of their letters; empty when the question is open."""
    answer: str
    """One word, digit or letter."""
    family: str
    """One of ``TASKS``."""


def generate(split: str, count: int, seed: int = 0) -> list[TinySample]:
    """Generate samples, families in turn, eight questions per image.

    Args:
        split: ``"train"``, ``"calibration"``, ``"development"`` or ``"test"``; they share no scene
            and no text. Development, for choices between methods, has the facts of calibration, but
            no two of them together and no triple of numbers that calibration pairs of
            ``KEPT_SEEDS`` have.
        count: how many; a smaller count gives the first samples of a larger one.
        seed: other seeds give other samples of the same split.

    Returns:
        The samples, always the same for the same arguments.

    Example:
        >>> [s.family for s in generate("test", 3)]
        ['attribute', 'existence', 'counting']
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)}")
    if count < 1:
        raise ValueError(f"count is {count}; allowed are integers of at least 1")
    samples, image = [], None
    shown = -1
    for index in range(count):
        turn, number = turn_at(split, seed, index)
        if number >= 0 and number != shown:
            image = render(scene_at(split, seed, number), Random(f"{split}/{seed}/image/{number}"))
            shown = number
        samples.append(
            TinySample(
                id=f"{split}-{seed}-{index:06d}",
                image=image if number >= 0 else None,
                question=turn.question,
                choices=turn.choices,
                answer=turn.answer,
                family=turn.family,
            )
        )
    return samples


def turn_at(split: str, seed: int, index: int) -> tuple[Turn, int]:
    """Build the question of one sample.

    Args:
        split: one of ``SPLITS``.
        seed: seed of the sample set.
        index: position in the sample set.

    Returns:
        The question and the number of its scene, -1 without an image.
    """
    rng = Random(f"{split}/{seed}/question/{index}")
    turn_of_round, place = divmod(index, len(TASKS))
    family = TASKS[place]
    if family in TEXT_BUILDERS:
        turn = TEXT_BUILDERS[family](rng, split)
        while split == "development" and content(turn) in _calibration_texts():
            turn = TEXT_BUILDERS[family](rng, split)
        return turn, -1
    number = (turn_of_round * len(IMAGE_FAMILIES) + place) // QUESTIONS_PER_IMAGE
    about = IMAGE_BUILDERS[family](scene_at(split, seed, number), rng)
    assert about is not None, "scene_at only returns scenes that every family can ask about"
    return about, number


def calibration_index(pair: int) -> int:
    """Return the place of a calibration pair in the calibration samples of its seed.

    Of every round of families one is taken, so that each pair has a scene of its own.

    Args:
        pair: number of the pair.

    Example:
        >>> [calibration_index(pair) for pair in (0, 1, 9, 10)]
        [0, 11, 99, 100]
    """
    return len(TASKS) * pair + pair % len(TASKS)


@lru_cache(maxsize=1)
def _calibration_texts() -> frozenset[tuple[str, ...]]:
    places = [calibration_index(pair) for pair in range(KEPT_PAIRS)]
    texts = [place for place in places if TASKS[place % len(TASKS)] in TEXT_FAMILIES]
    turns = [turn_at("calibration", seed, place)[0] for seed in KEPT_SEEDS for place in texts]
    return frozenset(map(content, turns))


@lru_cache(maxsize=64)
def scene_at(split: str, seed: int, number: int) -> Scene:
    """Draw the scene of a number, one that every image family can ask about.

    Args:
        split: one of ``SPLITS``.
        seed: seed of the sample set.
        number: which scene.

    Returns:
        The scene.
    """
    rng = Random(f"{split}/{seed}/scene/{number}")
    while True:
        scene = draw_scene(rng, split)
        if all(build(scene, Random(0)) is not None for build in IMAGE_BUILDERS.values()):
            return scene
