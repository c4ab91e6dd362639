"""Scenes of the embedded task: a few coloured shapes on a jittered 3 x 3 grid, drawn at 48 x 48."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

GRID = 3
CELL = 16
IMAGE_SIZE = GRID * CELL
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
OWNERS = {
    "train": "train",
    "calibration": "calibration",
    "development": "calibration",
    "test": "test",
}
"""Which share of all scenes and texts each split draws from (see :func:`split_of`); development
takes what calibration leaves."""
SPLITS = tuple(OWNERS)

_RGB = {
    "red": (205, 45, 45),
    "green": (50, 160, 60),
    "blue": (50, 80, 205),
    "yellow": (215, 200, 50),
    "purple": (150, 55, 170),
    "orange": (225, 130, 40),
}
_RADIUS = {"small": 3, "large": 6}
_NOISE = 14.0


@dataclass(frozen=True)
class Thing:
    """One object of a scene: where it stands and what it looks like."""

    row: int
    column: int
    shape: str
    color: str
    size: str

    @property
    def cell(self) -> int:
        """Index of the grid cell, row by row."""
        return self.row * GRID + self.column


@dataclass(frozen=True)
class Scene:
    """A symbolic scene; ``things`` are sorted by cell, at most one per cell."""

    things: tuple[Thing, ...]

    @property
    def key(self) -> str:
        """What decides the share of this scene (jitter and noise do not)."""
        return ";".join(f"{t.cell}{t.size}{t.color}{t.shape}" for t in self.things)


def split_of(key: str) -> str:
    """Name the share that a scene or a text belongs to, by a hash of its key.

    Args:
        key: canonical description of a scene or of a text's content.

    Returns:
        ``"test"`` and ``"calibration"`` for a tenth of all keys each, else ``"train"``.

    Example:
        >>> split_of("anything") in SPLITS
        True
    """
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 10
    return {0: "test", 1: "calibration"}.get(bucket, "train")


def draw_scene(rng: Random, split: str, smallest: int = 4, largest: int = 7) -> Scene:
    """Draw a random scene of the share that ``split`` draws from.

    Args:
        rng: source of randomness.
        split: one of ``SPLITS``.
        smallest: least number of objects.
        largest: greatest number of objects.

    Returns:
        A scene whose key hashes into that share.
    """
    while True:
        cells = sorted(rng.sample(range(GRID * GRID), rng.randint(smallest, largest)))
        things = tuple(
            Thing(c // GRID, c % GRID, rng.choice(SHAPES), rng.choice(COLORS), rng.choice(SIZES))
            for c in cells
        )
        scene = Scene(things)
        if split_of(scene.key) == OWNERS[split]:
            return scene


def render(scene: Scene, rng: Random) -> Image.Image:
    """Draw a scene with jittered positions, shaded colours and pixel noise.

    Args:
        scene: what to draw.
        rng: source of jitter, shades and noise.

    Returns:
        An RGB image of ``IMAGE_SIZE`` x ``IMAGE_SIZE``.
    """
    grey = rng.randint(60, 190)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (grey, grey, grey))
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        radius = _RADIUS[thing.size]
        room = CELL // 2 - radius - 1
        x = thing.column * CELL + CELL // 2 + rng.randint(-room, room)
        y = thing.row * CELL + CELL // 2 + rng.randint(-room, room)
        shade = rng.randint(-25, 25)
        red, green, blue = (min(255, max(0, c + shade)) for c in _RGB[thing.color])
        _draw(canvas, thing.shape, x, y, radius, (red, green, blue))
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(
        (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32
    )
    pixels = np.asarray(image, dtype=np.float32) + _NOISE * noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw(
    canvas: ImageDraw.ImageDraw, shape: str, x: int, y: int, r: int, color: tuple[int, int, int]
) -> None:
    if shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape == "square":
        canvas.rectangle((x - r, y - r, x + r - 1, y + r - 1), fill=color)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=color)
    else:
        arm = max(1, r // 3)
        canvas.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
        canvas.rectangle((x - arm, y - r, x + arm, y + r), fill=color)
