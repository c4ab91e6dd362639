"""Rows through ``datasets``, from files that are written here."""

import json
from dataclasses import replace

import datasets
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, List, Value
from PIL import Image

from qvlm_lightning.data.source import Rows, Source
from qvlm_lightning.errors import InputError

COLORS = ["red", None, "blue", "red"]
PIXELS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")  # inside of a data folder it would be data
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    """A repository of the hub as it lies there: two splits, images inside the parquet files."""
    root = tmp_path / "copy"
    (root / "data").mkdir(parents=True)
    images = [c and Image.new("RGB", (8, 8), c) for c in COLORS]
    columns = {
        "id": list("abcd"),
        "image": images,
        "images": [[], [], [images[0], images[2]], [images[2]]],
    }
    features = Features(id=Value("string"), image=datasets.Image(), images=List(datasets.Image()))
    for split in ("train", "validation"):
        file = root / "data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_dict(columns, features=features).to_parquet(file)
    return root


def colors(rows) -> list:
    return [row["image"] and row["image"].open().getpixel((0, 0)) for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_come_in_order_with_images_that_wait(folder, streaming):
    rows = list(Rows(Source(str(folder), "validation", streaming=streaming)))
    assert [row["id"] for row in rows] == list("abcd")
    assert colors(rows) == [c and PIXELS[c] for c in COLORS]


@pytest.mark.parametrize("streaming", [False, True])
def test_equal_images_are_one_object(folder, streaming):
    first, _, third, last = Rows(Source(str(folder), "validation", streaming=streaming))
    assert last["image"] is first["image"] is third["images"][0]
    assert third["image"] is third["images"][1] is last["images"][0]


# a shuffled stream of datasets 5 takes five seconds to end, however short
@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shuffle_is_decided_by_its_seed(folder, streaming):
    rows = Rows(Source(str(folder), "train", streaming=streaming))
    orders = [[row["id"] for row in rows.shuffled(seed)] for seed in (0, 0, 1, 2)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1


def test_a_shuffled_row_keeps_its_own_image(folder):
    rows = Rows(Source(str(folder), "train"))
    found = {row["id"]: row["image"] for row in rows.shuffled(1)}
    assert colors([{"image": found[name]} for name in "abcd"]) == [c and PIXELS[c] for c in COLORS]


def test_rows_without_images(folder):
    rows = list(Rows(Source(str(folder), "train")).without_images())
    assert rows[2] == {"id": "c", "image": None, "images": None}


def test_a_slice_of_a_split(folder):
    assert [r["id"] for r in Rows(Source(str(folder), "train[1:3]"))] == ["b", "c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_another_word_for_the_validation_split(folder, streaming):
    assert len(list(Rows(Source(str(folder), "val", streaming=streaming)))) == 4


def test_a_slice_under_another_word(folder):
    assert [r["id"] for r in Rows(Source(str(folder), "val[:2]"))] == ["a", "b"]


@pytest.mark.parametrize("single", [False, True])
def test_json_lines_name_image_files(tmp_path, single):
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    lines = [{"id": "a", "image": "b.png"}, {"id": "b", "image": None}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    path = tmp_path / "test.jsonl" if single else tmp_path
    rows = list(Rows(Source(str(path), "test", layout="hub")))
    assert colors(rows) == [PIXELS["blue"], None]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_names_no_image_outside_its_folder(tmp_path, streaming):
    """A path in a parquet file is data, also where the column is one of images."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.parquet"
    for name in ("../a.png", str(tmp_path / "a.png")):
        columns = {"image": [{"path": name, "bytes": None}]}
        stored = Features(image={"path": Value("string"), "bytes": Value("binary")})
        rows = Dataset.from_dict(columns, features=stored).cast_column("image", datasets.Image())
        pyarrow.parquet.write_table(rows.data.table, file)  # to_parquet would store the file
        source = Source(str(file.parent), "train", streaming=streaming)
        with pytest.raises(InputError, match=r"^column 'image' of .* which is not in .*allow_outs"):
            next(iter(Rows(source)))
        allowed = replace(source, allow_outside=True)
        assert colors(Rows(allowed)) == [PIXELS["red"]]


def test_one_parquet_file(folder):
    file = next(folder.glob("data/train*"))
    source = Source(str(file), "whatever")
    assert not source.is_release
    assert len(list(Rows(source))) == 4


def test_which_folders_are_releases(folder, tmp_path):
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "questions.json").touch()
    official = str(tmp_path / "official")
    assert Source(official).is_release
    assert not Source(official, layout="hub").is_release
    assert not Source(str(folder)).is_release
    assert Source(str(folder), layout="release").is_release
    assert not Source("owner/name").is_release


def test_an_unreachable_hub_names_a_folder_that_would_work():
    wanted = (
        r"hub repository 'owner/name' config 'c' split 'test' cannot be read \(.*owner/name.*\); "
        "give a folder with questions.json, or a folder of parquet files named by split$"
    )
    with pytest.raises(InputError, match=wanted):
        Rows(Source("owner/name", "test", config="c"), hint="a folder with questions.json")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/data", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(path):
    with pytest.raises(InputError, match=f"data folder '{path}' does not exist; give a folder"):
        Rows(Source(path, "test"))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_split_is_told_the_known_ones(folder, streaming):
    with pytest.raises(InputError, match=r"split 'test' cannot be read \(.*'train', 'validation'"):
        Rows(Source(str(folder), "test", streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_file(tmp_path, content, streaming):
    (tmp_path / "test.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"data in '.*' split 'test' cannot be read"):
        list(Rows(Source(str(tmp_path), "test", streaming=streaming)))


def test_damaged_json(tmp_path):
    (tmp_path / "test.jsonl").write_text("{nonsense\n")
    with pytest.raises(InputError, match="cannot be read"):
        list(Rows(Source(str(tmp_path), "test", layout="hub")))


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="doesn't contain any data files"):
        Rows(Source(str(tmp_path), "test", layout="hub"))
