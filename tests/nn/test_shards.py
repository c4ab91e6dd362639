"""Single tensors of safetensors files: what the library wrote is read, what is written it reads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvlm_lightning.errors import InputError
from qvlm_lightning.tensor_files import write_shard
from qvlm_lightning.weights.shards import Shards


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, generator=generator)
    return {
        "b.double": x.double(),
        "a.single": x,
        "c.bfloat": x.to(torch.bfloat16),
        "d.half": x.half().T.contiguous(),
        "e.long": torch.arange(11),
        "f.bytes": torch.arange(3, dtype=torch.uint8),
        "g.bool": torch.tensor([True, False, True]),
        "h.scalar": torch.tensor(2.5),
        "i.empty": torch.zeros(0, 4),
        "j.int8": torch.tensor([-3, 4], dtype=torch.int8),
        "k.int32": torch.tensor([-300000, 4], dtype=torch.int32),
    }


def shards_of(path, names):
    return Shards({name: (path, name) for name in names})


def test_what_safetensors_wrote_is_read(tensors, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    shards = shards_of(tmp_path / "x.safetensors", tensors)
    for name, value in tensors.items():
        found = shards.read(name)
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
    assert torch.equal(shards.sample("a.single", 9), tensors["a.single"].flatten()[::9])
    assert torch.equal(shards.sample("c.bfloat", 1), tensors["c.bfloat"].flatten())


def test_what_is_written_is_the_file_of_safetensors(tensors, tmp_path):
    """Byte for byte, whatever the order in which names come."""
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    shapes = {n: (x.dtype, tuple(x.shape)) for n, x in reversed(tensors.items())}
    asked = []

    def read(name):
        asked.append(name)
        return tensors[name]

    write_shard(tmp_path / "ours.safetensors", shapes, read)
    assert sorted(asked) == sorted(tensors)
    ours, theirs = (tmp_path / f"{who}.safetensors" for who in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    loaded = load_file(ours)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_tensors_come_from_the_file_that_their_place_names(tmp_path):
    for number in range(2):
        save_file({"same": torch.tensor([number])}, tmp_path / f"{number}.safetensors")
    shards = Shards({f"w{n}": (tmp_path / f"{n}.safetensors", "same") for n in range(2)})
    assert [shards.read(f"w{n}").item() for n in range(2)] == [0, 1]


def broken(kind, path):
    save_file({"x": torch.zeros(100)}, path)
    good = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "cut short":
        path.write_bytes(good[:-4])
    elif kind == "a stub":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no header":
        path.write_bytes(good[:8] + b"[1, 2]" + good[14:])


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "no usable safetensors file: .*No such file"),
        ("cut short", "no usable safetensors file: it is cut short"),
        ("a stub", "no usable safetensors file: its header is longer than the file"),
        ("empty", "no usable safetensors file"),
        ("no header", "no usable safetensors file"),
    ],
)
def test_a_broken_file_is_a_users_fault(tmp_path, kind, complaint):
    path = tmp_path / "x.safetensors"
    broken(kind, path)
    with pytest.raises(InputError, match=complaint):
        shards_of(path, ["x"])


def test_an_unknown_type_and_a_missing_key_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds no tensor y"):
        shards_of(path, ["y"])
    text = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"0")
    with pytest.raises(InputError, match="holds tensors of type 'F4', not read here"):
        shards_of(path, ["x"])
