import errno
import json
import math
import os
from dataclasses import fields, replace

import pytest
import torch

from qvlm_lightning.data import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_whole
from qvlm_lightning.metrics.grouped import plain_scores
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.results.predictions import (
    Predictions,
    is_stored,
    search_facts,
    stored,
)
from qvlm_lightning.results.variant import check_label


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


def test_answers_of_versions_without_sinks_can_be_read(answered, tmp_path):
    made = answered("qvlm")
    made.save(tmp_path)
    path = tmp_path / f"{made.name}.json"
    about = json.loads(path.read_text())
    del about["variant"]["sink_scale"]
    path.write_text(json.dumps(about))
    assert Predictions.load(tmp_path, made.name).variant == made.variant
    assert is_stored(tmp_path, made.name, "qvlm", made.ids)


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


# two files are made by a rename of their own; then files step aside; then three are renamed
FAULTS = [
    *(("fsync", n, True) for n in range(1, 9)),
    *(("replace", n, True) for n in range(1, 9)),
    *(("replace", n, False) for n in range(1, 8)),
]


@pytest.mark.parametrize(("call", "at", "log_probs"), FAULTS)
def test_a_full_disk_leaves_the_older_answers(answered, tmp_path, monkeypatch, call, at, log_probs):
    """Whether or not log-probabilities, which the new answers have, are among the older files."""
    made = answered("qvlm")
    (made if log_probs else replace(made, log_probs=None)).save(tmp_path)
    real, calls = getattr(os, call), []

    def fail(*args) -> None:
        calls.append(args)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "full")
        real(*args)

    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as faulty:
        faulty.setattr(os, call, fail)
        with pytest.raises(InputError, match="the disk is full"):
            replace(made, source="others", texts=["never"] * len(made.ids)).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_the_rule_says_is_stored_with_the_answer(tmp_path, variants):
    target = Target(("red", "crimson"), groups=("colour", "hue"), cluster="7")
    samples = [Sample("q0", None, "?", answer="red", family="colour", target=target)]
    samples.append(Sample("q1", None, "?", ("a", "b"), answer="B"))
    about = {"variant": variants["fp"], "source": "w", "base": "w", "seconds": 1.0}
    about |= {"benchmark": "vqav2", "mode": "official", "asked": {"stop": ["\n"]}}
    scores = plain_scores({"overall": 15.0, "group/none": math.nan})
    judged = [Judgement(3, "crimson"), Judgement(0, None)]
    made = Predictions.of(samples, ["Crimson.", "what"], judged, scores=scores, **about)
    made.save(tmp_path)
    lines = (tmp_path / "fp-k1.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            **{"id": "q0", "text": "Crimson.", "answer": "red", "choices": 0, "family": "colour"},
            **{"points": 3, "parsed": "crimson", "groups": ["colour", "hue"], "cluster": "7"},
        },
        {
            **{"id": "q1", "text": "what", "answer": "B", "choices": 2, "family": ""},
            **{"points": 0, "parsed": None, "groups": [], "cluster": ""},
        },
    ]
    back = Predictions.load(tmp_path, "fp-k1")
    assert back == made
    assert back.scores == {"overall": 15.0, "group/none": None}


def test_only_answers_to_the_same_count_as_stored(answered, tmp_path):
    made = answered("qvlm", asked={"mode": "official"})
    made.save(tmp_path)
    given = (tmp_path, made.name, "qvlm", made.ids)
    assert is_stored(*given, {"mode": "official"})
    assert not is_stored(*given, {"mode": "lmms"})


def test_the_splits_of_one_variant_lie_side_by_side(answered, tmp_path):
    for split in ("test", "development"):
        answered("qvlm", split=split, source=split).save(tmp_path)
    assert stored(tmp_path) == [
        "qvlm-w4a4-static_tensor-k1-s0",
        "qvlm-w4a4-static_tensor-k1-s0-development",
    ]
    back = Predictions.load(tmp_path, "qvlm-w4a4-static_tensor-k1-s0-development")
    assert (back.split, back.source) == ("development", "development")


def test_predictions_of_before_splits_and_searches_were_named_can_be_read(answered, tmp_path):
    answered("qvlm").save(tmp_path)
    path = tmp_path / "qvlm-w4a4-static_tensor-k1-s0.json"
    about = json.loads(path.read_text())
    for key in ("split", "search"):
        del about[key]
    del about["variant"]["label"]
    path.write_text(json.dumps(about))
    back = Predictions.load(tmp_path, path.stem)
    assert (back.split, back.search, back.variant.row) == ("", {}, "qvlm")


def test_a_row_of_an_ablation_has_files_of_its_own(variants):
    one = replace(variants["qvlm"], label="random-blocks")
    assert one.name == "random-blocks-w4a4-static_tensor-k1-s0"
    assert (one.row, one.method, variants["qvlm"].row) == ("random-blocks", "qvlm", "qvlm")


@pytest.mark.parametrize("name", ["", "paper/cdm", "-x", "a b", "é"])
def test_a_row_name_must_fit_into_a_file_name(name):
    with pytest.raises(InputError, match="allowed are letters, digits"):
        check_label(name)


def test_an_old_artifact_says_nothing_of_its_search():
    assert set(search_facts({"method": "cdm"}).values()) == {None}
    told = {"objective": "normalized", "candidates": [1.0, 0.98]}
    cost = {"layer_forwards": 192, "site_forwards": 9, "seconds": 1.5}
    assert search_facts({**told, "search": cost}) == {
        **told,
        "layer_forwards": 192,
        "search_seconds": 1.5,
    }
