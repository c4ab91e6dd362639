"""Decisions of blocks in files, and what a killed process leaves of them."""

import os

import pytest
import torch

from qvlm_lightning.calibration.decisions import Decided, Decisions
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import Decision

NAME = "epoch0-language"


def decided(value: float) -> Decided:
    tensors = {
        "a.weight": torch.full((2, 3), value),
        "a.input_quantizer.percentile": torch.tensor(0.995, dtype=torch.float64),
    }
    cost = {"layer_forwards": 3, "site_forwards": 4, "seconds": 0.125}
    return Decided(Decision(tensors, {"minmax": 2.0, "own": value}), cost)


def same(one: Decided | None, other: Decided) -> bool:
    if one is None or one.cost != other.cost or one.decision.scores != other.decision.scores:
        return False
    a, b = one.decision.tensors, other.decision.tensors
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Decisions of a search whose process died while it wrote the second block."""

    def die(_: int) -> None:
        raise KeyboardInterrupt

    decisions = Decisions(tmp_path / "search")
    decisions.write(NAME, "key", 0, decided(1.0))
    with monkeypatch.context() as dying:
        dying.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            decisions.write(NAME, "key", 1, decided(2.0))
    return decisions


def test_what_is_written_is_read(tmp_path):
    decisions = Decisions(tmp_path / "search")
    decisions.write(NAME, "key", 4, decided(0.1))
    assert same(decisions.read(NAME, "key", 4), decided(0.1))
    assert decisions.read(NAME, "another key", 4) is None
    assert decisions.read(NAME, "key", 3) is None
    assert decisions.read("epoch1-language", "key", 4) is None
    assert decisions.tensor(Decisions.file(NAME, 4), "a.weight").eq(0.1).all()


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    decisions = Decisions(None)
    decisions.write(NAME, "key", 0, decided(1.0))
    assert decisions.read(NAME, "key", 0) is None
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_died_changes_nothing(killed):
    assert same(killed.read(NAME, "key", 0), decided(1.0))
    assert killed.read(NAME, "key", 1) is None


def test_the_next_process_writes_over_what_was_half_written(killed, tmp_path):
    resumed = Decisions(tmp_path / "search")
    resumed.write(NAME, "key", 1, decided(3.0))
    assert same(resumed.read(NAME, "key", 1), decided(3.0))
    names = sorted(p.name for p in (tmp_path / "search").iterdir())
    assert names == [f"{NAME}-000.safetensors", f"{NAME}-001.safetensors"]


@pytest.mark.parametrize("what", ["a number", "a score", "metadata"])
def test_a_file_that_was_changed_is_named_and_decided_again(killed, tmp_path, capsys, what):
    path = tmp_path / "search" / Decisions.file(NAME, 0)
    data = path.read_bytes()
    old, new = {
        "a number": (torch.ones(2).numpy().tobytes(), torch.tensor([1.0, 2.0]).numpy().tobytes()),
        "a score": (b"2.0", b"2.x"),
        "metadata": (b"cost", b"lost"),
    }[what]
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    assert killed.read(NAME, "key", 0) is None
    assert f"{path} is damaged" in capsys.readouterr().out


def test_a_damaged_file_is_decided_again_but_not_restored(killed, tmp_path, capsys):
    path = tmp_path / "search" / Decisions.file(NAME, 0)
    path.write_bytes(path.read_bytes()[:40])
    assert killed.read(NAME, "key", 0) is None
    assert f"{path} is damaged" in capsys.readouterr().out
    with pytest.raises(InputError, match="needs its whole folder"):
        killed.tensor(path.name, "a.weight")


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    shared = torch.ones(4)
    decisions = Decisions(tmp_path)
    one = Decided(Decision({"a.bias": shared[:2], "b.bias": shared[:2]}), {})
    decisions.write(NAME, "key", 0, one)
    assert same(decisions.read(NAME, "key", 0), one)
