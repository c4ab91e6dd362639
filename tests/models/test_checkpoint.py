"""Weights read from any usual form and written in shards, one tensor at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.checkpoint import WeightReader, WeightWriter


def tensors() -> dict[str, Tensor]:
    return {f"layer.{i}.weight": torch.randn(4, 3 + i) for i in range(5)}


def write(folder: Path, form: str, shards: int, index: bool) -> dict[str, Tensor]:
    folder.mkdir(exist_ok=True)
    made = tensors()
    names = list(made)
    where = {}
    for number in range(shards):
        part = {n: made[n] for n in names[number::shards]}
        stem = "model" if form == "safetensors" else "pytorch_model"
        file = (
            f"{stem}.{form}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{form}"
        )
        if form == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    if index:
        kind = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
        text = json.dumps({"metadata": {}, "weight_map": where})
        (folder / f"{kind}.index.json").write_text(text)
    return made


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(("shards", "index"), [(1, False), (2, True), (2, False)])
def test_every_form_is_read_whole(tmp_path, form: str, shards: int, index: bool) -> None:
    made = write(tmp_path, form, shards, index)
    reader = WeightReader(tmp_path)
    assert set(reader.place) == set(made)
    assert same({n: t.clone() for n, t in reader}, made)


def test_an_old_bin_that_cannot_be_mapped_is_read(tmp_path) -> None:
    made = tensors()
    file = tmp_path / "pytorch_model.bin"
    torch.save(made, file, _use_new_zipfile_serialization=False)
    assert same({n: t.clone() for n, t in WeightReader(tmp_path)}, made)


def test_shards_are_written_as_soon_as_they_are_full(tmp_path) -> None:
    made = tensors()  # 48, 64, 80, 96, 112 bytes
    writer = WeightWriter(tmp_path, shard_bytes=110)
    for name, tensor in made.items():
        writer.add(name, tensor)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"shard-0000{i}.part" for i in range(3)]
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 400
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [index["weight_map"][n] for n in made] == [files[0]] * 2 + [files[1]] * 2 + [files[2]]
    assert same({n: t.clone() for n, t in WeightReader(tmp_path)}, made)


def test_a_single_shard_has_the_plain_name(tmp_path) -> None:
    writer = WeightWriter(tmp_path)
    writer.add("a", torch.arange(6.0).view(2, 3).T)
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


# --- what is refused ------------------------------------------------------------------------------


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"holds no weights; needed are model\*\.safetensors"):
        WeightReader(tmp_path)


def test_a_missing_shard_is_named(tmp_path) -> None:
    write(tmp_path, "bin", 2, True)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"lacks the shard 'pytorch_model-00002-of-00002\.bin'"):
        WeightReader(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_broken_file_is_named(tmp_path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(InputError, match=f"{name}' cannot be read"):
        WeightReader(tmp_path)


def test_a_broken_index_is_named(tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json' is no index"):
        WeightReader(tmp_path)


def test_a_bin_that_would_run_code_is_refused(tmp_path) -> None:
    torch.save({"a": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read"):
        WeightReader(tmp_path)
