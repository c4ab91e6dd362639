"""Training material: rendered scenes with the labels of every patch, and endless questions."""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qvlm_lightning.models.tiny.questions import HELPER_BUILDERS, IMAGE_BUILDERS
from qvlm_lightning.models.tiny.scenes import (
    CELL,
    COLORS,
    GRID,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    render,
)
from qvlm_lightning.models.tiny.texts import TEXT_BUILDERS
from qvlm_lightning.models.tiny.turns import Turn

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
PATCH_LABELS = {"shape": SHAPES, "color": COLORS, "size": SIZES}
LABEL_SIZES = {"shape": 5, "color": 7, "size": 3, "row": GRID, "column": GRID}


def draw_pool(count: int, seed: int) -> tuple[list[Scene], Tensor]:
    """Draw and render scenes of the training split.

    Args:
        count: how many.
        seed: seed of the pool.

    Returns:
        The scenes, and their images as bytes (scene, height, width, channel).
    """
    rng = Random(f"pool/{seed}")
    scenes = [draw_scene(rng, "train") for _ in range(count)]
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for number, scene in enumerate(tqdm(scenes, desc="render", mininterval=2)):
        pixels[number] = np.asarray(render(scene, rng))
    return scenes, torch.from_numpy(pixels)


def normalise(pixels: Tensor) -> Tensor:
    """Turn bytes into what the processor gives the tower.

    Args:
        pixels: bytes, channels last.

    Returns:
        Normalised floats, channels first.
    """
    return ((pixels.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def patch_labels(scene: Scene, patch: int) -> Tensor:
    """Label every patch with the object of its cell (0 = none) and with its row and column.

    Args:
        scene: the scene.
        patch: side of a patch in pixels.

    Returns:
        Integers (patch, label), labels in the order of ``LABEL_SIZES``.
    """
    things = {(t.row, t.column): t for t in scene.things}
    side, per_cell = IMAGE_SIZE // patch, CELL // patch
    rows = []
    for place in range(side * side):
        row, column = place // side // per_cell, place % side // per_cell
        thing = things.get((row, column))
        seen = [
            0 if thing is None else values.index(getattr(thing, name)) + 1
            for name, values in PATCH_LABELS.items()
        ]
        rows.append([*seen, row, column])
    return torch.tensor(rows)


def image_turns(scene: Scene, rng: Random, weights: dict[str, float], count: int) -> list[Turn]:
    """Draw questions about a scene.

    Args:
        scene: the scene.
        rng: source of randomness.
        weights: how often to ask each family, helpers included.
        count: how many questions.

    Returns:
        The questions.
    """
    builders = {**IMAGE_BUILDERS, **HELPER_BUILDERS}
    turns: list[Turn] = []
    while len(turns) < count:
        for family in rng.choices(list(weights), list(weights.values()), k=count - len(turns)):
            turn = builders[family](scene, rng)
            if turn is not None:
                turns.append(turn)
    return turns


def text_turns(rng: Random, count: int) -> list[Turn]:
    """Draw questions without image from the training split, families in equal parts.

    Args:
        rng: source of randomness.
        count: how many questions.

    Returns:
        The questions.
    """
    builders = list(TEXT_BUILDERS.values())
    return [rng.choice(builders)(rng, "train") for _ in range(count)]
