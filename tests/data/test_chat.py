import base64
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from PIL import Image

from qvlm_lightning.data import ChatData, Source
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS

FAMILY = Llava(str(WEIGHTS))
COLORS = ["red", "green", "blue", "yellow"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")  # inside of a data folder it would be data
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache)


def rows(split: str, answers: bool = True) -> list[dict]:
    made = []
    for color in COLORS:
        turns = [{"role": "user", "content": f"what color is the {split}?"}]
        turns += [{"role": "assistant", "content": color}] if answers else []
        made.append({"id": f"{split}-{color}", "image": f"{split}-{color}.png", "messages": turns})
    return made


def write(path: Path, content: list) -> dict:
    path.write_text("\n".join(map(json.dumps, content)) + "\n\n")
    return {"path": str(path)}


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "test"):
        for color in COLORS:
            size = (24, 24) if split == "train" else (32, 32)
            Image.new("RGB", size, color).save(tmp_path / f"{split}-{color}.png")
    return tmp_path


def data(calibration=None, evaluation=None, **options) -> ChatData:
    sizes = {"calibration_pairs": 3, "search_pairs": 2, "batch_size": 2} | options
    sources = {"calibration": calibration, "evaluation": evaluation}
    return ChatData(FAMILY, **{k: v and Source(**v) for k, v in sources.items()}, **sizes)


def test_lines_beside_images(folder):
    given = data(write(folder / "a.jsonl", rows("train")), write(folder / "b.jsonl", rows("test")))
    given.setup("fit")
    assert given.evaluation_ids == [f"test-{color}" for color in COLORS]
    sample = given.evaluation[2]
    assert (sample.question, sample.answer) == ("what color is the test?", "blue")
    assert sample.image.open().getpixel((0, 0)) == (0, 0, 255)
    assert (given.calibration_batches()[0]["labels"] != -100).any(1).all()
    assert [s.answer for s in given.blind_samples()] == COLORS


def test_a_list_in_one_file_and_images_elsewhere(folder):
    (folder / "lists").mkdir()
    file = folder / "lists" / "a.json"
    llava = [
        {
            "image": "train-red.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat?"},
                {"from": "gpt", "value": "red"},
            ],
        }
    ]
    file.write_text(json.dumps(llava))
    sample = data(evaluation={"path": str(file)}, image_folder=str(folder)).evaluation[0]
    assert (sample.id, sample.question, sample.answer) == ("a.json:1", "what?", "red")
    assert sample.image.open().size == (24, 24)


def test_the_seed_draws(folder):
    source = write(folder / "a.jsonl", rows("train"))
    draws = [data(source, seed=seed).calibration_ids for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(map(tuple, draws))) > 1


def test_chats_in_parquet_files(tmp_path):
    made = [
        row | {"image": Image.new("RGB", (8, 8), c)}
        for row, c in zip(rows("test"), COLORS, strict=True)
    ]
    Dataset.from_list(made).cast_column("image", datasets.Image()).to_parquet(
        tmp_path / "test-0-of-1.parquet"
    )
    samples = data(evaluation={"path": str(tmp_path)}, evaluation_count=2).evaluation
    assert [s.answer for s in samples] == ["red", "green"]
    assert samples[0].image.open().getpixel((0, 0)) == (255, 0, 0)


def test_without_answers_there_is_nothing_to_predict(folder):
    given = data(write(folder / "a.jsonl", rows("train", answers=False)))
    given.setup("fit")
    assert all((batch["labels"] == -100).all() for batch in given.calibration_batches())
    assert given.blind_samples() == []


@pytest.fixture
def talks(folder) -> dict:
    """Every color asked after twice; the last row is a single question."""
    made = rows("train")
    for row in made[:-1]:
        row["messages"] += [{"role": "user", "content": "really?"}, row["messages"][1]]
    return write(folder / "a.jsonl", made)


def counted(given: ChatData) -> dict[str, int]:
    """Return id -> number of labelled tokens."""
    labels = [row for batch in given.calibration_batches() for row in batch["labels"]]
    tokens = [int((row != -100).sum()) for row in labels]
    return dict(zip(given.calibration_ids, tokens, strict=True))


def test_calibration_sees_the_turns_of_a_dialogue(talks):
    single, both, all_there_are = (
        data(talks, calibration_pairs=4, max_turns=turns) for turns in (1, 2, 9)
    )
    single.setup("fit")
    names = [f"train-{color}" for color in COLORS]
    assert counted(single) == dict.fromkeys(names, 2)  # a word and the end
    assert counted(both) == counted(all_there_are) == dict.fromkeys(names[:3], 4) | {names[3]: 2}
    assert {s.further for s in both.calibration} == {
        *((("really?", color),) for color in COLORS[:3]),
        (),
    }


def test_evaluation_and_the_guesser_see_the_first_question(talks):
    given = data(talks, talks, max_turns=2)
    assert {s.further for s in (*given.evaluation, *given.blind_samples())} == {()}


def test_a_later_question_of_a_dialogue_is_seen_too(talks, folder):
    later = [{"image": "train-green.png", "question": "really?"}]
    asked = write(folder / "b.jsonl", later)
    data(talks, asked, calibration_pairs=4).setup("fit")
    with pytest.raises(InputError, match="question and image of calibration sample 'train-green'"):
        data(talks, asked, calibration_pairs=4, max_turns=2).setup("fit")


@pytest.mark.parametrize("turns", [0, -1])
def test_a_dialogue_has_a_turn(turns):
    with pytest.raises(InputError, match=rf"max_turns is {turns}; allowed are integers of at leas"):
        data(max_turns=turns)


def test_results_carry_the_name():
    assert (data().benchmark, data(name="traffic").benchmark) == ("chat", "traffic")


def test_nothing_to_evaluate_or_to_calibrate_on():
    with pytest.raises(InputError, match=r"no evaluation set; give data\.evaluation\.path, a file"):
        _ = data().evaluation
    with pytest.raises(InputError, match=r"no calibration set; give data\.calibration\.path"):
        data().setup("fit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"evaluation set has no samples"),
        ("{oops\n", r"line 1 of '.*a\.jsonl' is not JSON"),
        ('{"question": "Q"}\n[1]\n', r"line 2 of '.*' is a list; needed is a JSON object"),
        ('{"question": "Q"}\n{"text": "Q"}\n', r"line 2 of '.*' has text; needed is messages"),
        ('{"question": "Q", "image": "no.png"}', r"'a\.jsonl:1': image '.*no\.png' does not exist"),
        ('{"id": 1, "question": "Q"}\n' * 2, r"the id '1' twice"),
        ("\udcff", r"'.*a\.jsonl' is not JSON"),
    ],
)
def test_a_faulty_file_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        _ = data(evaluation={"path": str(file)}).evaluation


def test_a_single_object_is_no_list(tmp_path):
    (tmp_path / "a.json").write_text('{"question": "Q"}')
    with pytest.raises(InputError, match=r"holds a dict; needed is a list, or JSON lines"):
        _ = data(evaluation={"path": str(tmp_path / "a.json")}).evaluation


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(InputError, match="holds no parquet files; give a file of JSON lines"):
        _ = data(evaluation={"path": str(tmp_path)}).evaluation


def test_too_few_and_overlapping_samples(folder):
    source = write(folder / "a.jsonl", rows("train"))
    with pytest.raises(InputError, match="has 4 samples, but 5 were asked for"):
        data(source, calibration_pairs=5).setup("fit")
    with pytest.raises(InputError, match="3 calibration samples are also evaluated"):
        data(source, source).setup("fit")
    nameless = [{k: v for k, v in row.items() if k != "id"} for row in rows("train")]
    with pytest.raises(InputError, match="has question and image of calibration sample"):
        data(source, write(folder / "b.jsonl", nameless)).setup("fit")


@pytest.mark.parametrize("absolute", [False, True])
def test_images_stay_inside_their_folder(folder, absolute):
    (folder / "inner").mkdir()
    name = str(folder / "train-red.png") if absolute else "../train-red.png"
    line = {"id": "x", "image": name, "question": "what?", "answer": "red"}
    source = write(folder / "inner" / "a.jsonl", [line])
    one = {"calibration_pairs": 1, "search_pairs": 1}
    with pytest.raises(InputError, match=r"^line 1 of .* which is not in .*allow_outside: true"):
        _ = data(source, **one).calibration
    image = data(source | {"allow_outside": True}, **one).calibration[0].image
    assert image.open().getpixel((0, 0)) == (255, 0, 0)
    if absolute:
        assert data(source, image_folder=str(folder), **one).calibration[0].image.open()


def test_a_line_with_the_bytes_of_its_image(folder):
    text = base64.b64encode((folder / "train-red.png").read_bytes()).decode()
    line = {"image": f"data:image/png;base64,{text}", "question": "what?", "answer": "red"}
    found = data(write(folder / "a.jsonl", [line]), calibration_pairs=1, search_pairs=1)
    assert found.calibration[0].image.open().getpixel((0, 0)) == (255, 0, 0)


def test_images_of_sixteen_bits_are_noted(folder):
    for number in range(3):
        Image.new("I;16", (8, 8), 700 * number).save(folder / f"{number}.png")
    lines = [{"id": f"{n}", "image": f"{n}.png", "question": "what?"} for n in range(3)]
    made = data(write(folder / "a.jsonl", lines), write(folder / "b.jsonl", lines))
    assert (len(made.calibration), len(made.evaluation)) == (3, 3)
    note = "3 calibration images have grey values of 16 bits, such as that of "
    assert [n[: len(note)] for n in made.notes] == [note]
    assert [n[:20] for n in made.evaluation_notes] == ["3 evaluation images "]


def test_half_a_character_is_named_with_its_sample(folder):
    lines = [{"id": "x", "question": "what \ud83d is it?"}]
    with pytest.raises(InputError, match=r"^question of calibration sample 'x' has half a char"):
        _ = data(write(folder / "a.jsonl", lines), calibration_pairs=1, search_pairs=1).calibration
