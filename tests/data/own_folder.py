"""A model folder and questions as a user has them: made of the embedded model and its task."""

import json
import shutil
from pathlib import Path

from qvlm_lightning.models.tiny import WEIGHTS, generate


def write_questions(folder: Path, count: int, images: str = "") -> Path:
    """Write ``train.jsonl`` of ``count`` questions and their images, and return it.

    Args:
        folder: made where there is none.
        count: how many.
        images: folder of the images in it.
    """
    (folder / images).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, sample in enumerate(generate("calibration", count)):
        row = {"question": sample.question, "answer": sample.answer}
        if sample.image is not None:
            row["image"] = str(Path(images) / f"{number}.png")
            sample.image.save(folder / row["image"])
        rows.append(json.dumps(row))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "train.jsonl"


def copy_model(folder: Path) -> Path:
    """Copy the embedded model's folder, and return the copy."""
    shutil.copytree(WEIGHTS, folder)
    return folder
