import pytest
from PIL import Image

from qvlm_lightning.data.photographs import photographs
from qvlm_lightning.errors import InputError

PROMPTS = ["Describe the image.", "What is this?"]


@pytest.fixture
def folders(tmp_path) -> list[str]:
    for place, name in enumerate(("a/2.JPG", "a/1.png", "a/in/0.jpeg", "b/0.png")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (place, 0, 0)).save(file)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    return [str(tmp_path / "b"), str(tmp_path / "a")]


def test_folders_come_in_their_order_and_prompts_in_turn(folders):
    found = photographs(folders, PROMPTS, 4)
    assert [sample.id.split("/", -1)[-2:] for sample in found] == [
        ["b", "0.png"],
        ["a", "1.png"],
        ["a", "2.JPG"],
        ["in", "0.jpeg"],
    ]
    assert [sample.question for sample in found] == 2 * PROMPTS
    assert found[0].image.open().size == (4, 4)
    assert [s.id for s in photographs(folders, PROMPTS, 2)] == [s.id for s in found[:2]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 5}, "5 photographs were asked for; .*b, .*a holds 4"),
        ({"count": 0}, "0 photographs were asked for"),
        ({"folders": ["nowhere"]}, "folder of photographs 'nowhere' does not exist"),
        ({"folders": []}, "no folder holds 0"),
        ({"prompts": []}, "prompts is empty; give at least one"),
    ],
)
def test_what_is_missing_is_named(folders, changes, sentence):
    given = {"folders": folders, "prompts": PROMPTS, "count": 1}
    with pytest.raises(InputError, match=sentence):
        photographs(**(given | changes))
