"""easy-VQA with development pictures in the place of the test's, to choose between methods by."""

import json
import shutil
from pathlib import Path

from qvlm_lightning.files import write_whole
from tools.joined.questions import Picture, easy_vqa


def development_folder(data: Path, to: Path) -> Path:
    """Return a folder like easy-VQA's whose ``test/`` holds the development pictures; made once.

    The adapter was trained on neither them nor the test's (docs/joined.md); ``train/`` holds the
    rest of the train images.

    Args:
        data: folder of easy-VQA.
        to: folder to make.

    Raises:
        InputError: the folder is not that of easy-VQA.
    """
    for part, split in (("train", "train"), ("test", "development")):
        if not (to / part / "questions.json").is_file():
            _write(easy_vqa(data, split), data, to / part)
    return to


def _write(pictures: list[Picture], data: Path, folder: Path) -> None:
    """Write pictures with their questions; the questions last, so that they mean a whole folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    asked = []
    for picture in pictures:
        part, _, number = picture.name.partition("/")
        shutil.copyfile(data / part / "images" / f"{number}.png", folder / f"images/{number}.png")
        asked += [[question, answer, int(number)] for question, answer in picture.turns]
    write_whole(folder / "questions.json", json.dumps(asked))
