"""Files of a release: names in its rows stay in the folder of the images."""

import json
from pathlib import Path
from typing import Any

import pytest

from qvlm_lightning.errors import InputError
from qvlm_lightning.tasks.easy_vqa import EasyVQA
from qvlm_lightning.tasks.gqa import GQA
from qvlm_lightning.tasks.hateful_memes import HatefulMemes
from qvlm_lightning.tasks.nlvr import NLVR
from qvlm_lightning.tasks.pope import POPE
from qvlm_lightning.tasks.release import image_file
from qvlm_lightning.tasks.scienceqa import ScienceQA
from qvlm_lightning.tasks.textvqa import TextVQA
from qvlm_lightning.tasks.vizwiz import VizWiz
from qvlm_lightning.tasks.vqa_rad import VQARad

OUT = "../../../secret"

ROWS: dict[type, tuple[str, str, Any]] = {
    EasyVQA: ("test/questions.json", "test/images", [["what?", "red", OUT]]),
    GQA: ("testdev_balanced_questions.json", "images", {"1": {"isBalanced": True, "imageId": OUT}}),
    HatefulMemes: ("dev_seen.jsonl", "img", {"id": 1, "text": "a", "label": 0, "img": OUT}),
    NLVR: ("dev.jsonl", "images", {"image": OUT}),
    POPE: ("coco_pope_random.json", "val2014", {"image": OUT, "text": "is it?", "label": "yes"}),
    ScienceQA: (
        "problems.json",
        "images",
        {OUT: {"image": "image.png", "split": "test", "question": "?"}},
    ),
    TextVQA: ("val.json", "images", {"data": [{"image_id": OUT}]}),
    VizWiz: ("val.json", "images", [{"image": OUT}]),
    VQARad: ("test.json", "images", [{"image_name": OUT}]),
}


def test_a_plain_name_is_one_of_the_folder(tmp_path: Path) -> None:
    assert image_file(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"


@pytest.mark.parametrize("task", ROWS, ids=lambda task: task.__name__)
def test_a_row_names_no_image_outside_its_folder(tmp_path: Path, task: Any) -> None:
    """Somebody else wrote the rows; what they name is opened on this machine."""
    file, images, rows = ROWS[task]
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / file).write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"^a question names the image .*secret.*files inside th"):
        task().read(tmp_path)
