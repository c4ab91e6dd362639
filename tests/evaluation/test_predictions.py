import json
from dataclasses import fields

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.predictions import Predictions, is_stored, stored, write_whole


def test_what_is_stored_comes_back(answered, tmp_path):
    made = answered("qvlm", "red", "ünïcode\n", "", "D")
    made.save(tmp_path)
    assert stored(tmp_path) == [made.name] == ["qvlm-w4a4-static_tensor-k1-s0"]
    back = Predictions.load(tmp_path, made.name)
    for field in fields(Predictions):
        if field.name != "log_probs":
            assert getattr(back, field.name) == getattr(made, field.name)
    assert torch.equal(back.log_probs, made.log_probs)


def test_lines_are_plain_for_other_programs(answered, tmp_path):
    answered("fp").save(tmp_path)
    first = json.loads((tmp_path / "fp-k1.jsonl").read_text().splitlines()[0])
    assert first == {
        **{"id": "q0", "text": "red", "answer": "red", "choices": 0, "family": "color"},
        **{"points": 10, "parsed": "red", "groups": ["color"], "cluster": ""},
    }


def test_control_lies_beside_its_variant(answered, tmp_path):
    answered("fp").save(tmp_path)
    answered("fp", control="blind", log_probs=None).save(tmp_path)
    assert stored(tmp_path) == ["fp-k1", "fp-k1.blind"]
    assert Predictions.load(tmp_path, "fp-k1.blind").log_probs is None


def test_only_the_same_answers_count_as_stored(answered, tmp_path):
    made = answered("qvlm")
    assert not is_stored(tmp_path, made.name, "qvlm", made.ids)
    made.save(tmp_path)
    assert is_stored(tmp_path, made.name, "qvlm", made.ids)
    assert not is_stored(tmp_path, made.name, "another artifact", made.ids)
    assert not is_stored(tmp_path, made.name, "qvlm", made.ids[:3])


def test_an_interrupted_write_is_not_stored(answered, tmp_path):
    made = answered("qvlm")
    made.save(tmp_path)
    (tmp_path / f"{made.name}.json").unlink()
    assert stored(tmp_path) == []


@pytest.mark.parametrize("ending", ["jsonl", "safetensors", "json"])
def test_damage_is_named(answered, tmp_path, ending):
    made = answered("qvlm")
    made.save(tmp_path)
    path = tmp_path / f"{made.name}.{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="qvlm-w4a4-static_tensor-k1-s0' are damaged"):
        Predictions.load(tmp_path, made.name)


def test_files_appear_whole(tmp_path):
    write_whole(tmp_path / "a.json", "old")
    write_whole(tmp_path / "a.json", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"
