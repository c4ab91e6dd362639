"""Questions that the adapter is trained on, chosen with and scored by."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from qvlm_lightning.errors import InputError

YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Picture:
    """An image and all that is asked about it.

    Attributes:
        name: of the image.
        image: RGB.
        turns: (question, answer) pairs.
    """

    name: str
    image: Image.Image
    turns: tuple[tuple[str, str], ...]


def easy_vqa(folder: Path, split: str) -> list[Picture]:
    """Return the pictures of easy-VQA in their order.

    Args:
        folder: holds ``train/`` and ``test/`` with ``questions.json`` and ``images/``.
        split: ``train`` (the first 90 % of the train images), ``development`` (the others) or
            ``test``.

    Raises:
        InputError: the folder is not that of easy-VQA.
    """
    part = folder / ("test" if split == "test" else "train")
    file = part / "questions.json"
    if not file.is_file():
        raise InputError(
            f"{str(file)!r} is missing; give the data folder of the package easy-vqa, which holds "
            "train/ and test/"
        )
    turns: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in json.loads(file.read_text(encoding="utf-8")):
        turns[number].append((question, answer))
    numbers = sorted(turns)
    Random("easy-vqa").shuffle(numbers)
    last = len(numbers) * 9 // 10
    chosen = {"train": numbers[:last], "development": numbers[last:], "test": sorted(turns)}[split]
    return [
        Picture(f"{part.name}/{n}", _image(part / "images" / f"{n}.png"), tuple(turns[n]))
        for n in chosen
    ]


def generated(count: int, seed: int) -> list[Picture]:
    """Return pictures of the project's own generator, a question each.

    Args:
        count: how many.
        seed: of the generator.
    """
    from qvlm_lightning.models.tiny.samples import generate

    samples = [s for s in generate("train", count * 2, seed) if s.image is not None][:count]
    return [
        Picture(f"generated/{n}", s.image.convert("RGB"), ((s.question, s.answer),))
        for n, s in enumerate(samples)
    ]


def _image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
