from dataclasses import replace

import pytest

from qvlm_lightning.errors import InputError
from qvlm_lightning.results.entries import choose_reference, load_entries


@pytest.fixture
def run(tmp_path, answered):
    """A run folder with full precision, a control and two quantized variants."""
    folder = tmp_path / "run"
    for made in (
        answered("qvlm", benchmark="tinyvqa"),
        answered("fp", benchmark="tinyvqa"),
        answered("fp", benchmark="tinyvqa", control="blind", log_probs=None),
        answered("rtn", benchmark="tinyvqa"),
    ):
        made.save(folder / "predictions")
    return folder


def test_a_run_folder_gives_its_models_and_no_controls(run):
    found = load_entries([str(run)])
    assert [e.label for e in found] == ["full precision", "W4A4 rtn", "W4A4 qvlm"]
    assert {e.path for e in found} == {str(run)}
    assert [e.label for e in load_entries([str(run / "predictions")])] == [e.label for e in found]


@pytest.mark.parametrize("ending", ["", ".json", ".jsonl"])
def test_single_predictions(run, ending):
    names = ("rtn-w4a4-static_tensor-k1-s0", "fp-k1")
    found = load_entries([f"{run / 'predictions' / name}{ending}" for name in names])
    assert [e.label for e in found] == ["W4A4 rtn", "full precision"]


def test_labels_tell_what_differs(tmp_path, answered, variants):
    made = [
        replace(variants["fp"]),
        replace(variants["fp"], scheme="bf16"),
        replace(variants["qvlm"], model="llava"),
        replace(variants["qvlm"], seed=1),
        replace(variants["qvlm"], activation_mode="dynamic_token"),
        replace(variants["qvlm"], outlier_scale=10.0),
        replace(variants["qvlm"], sink_scale=1000.0),
    ]
    for number, variant in enumerate(made):
        answered("fp", variant=variant).save(tmp_path / str(number))
    found = load_entries([str(tmp_path / str(number)) for number in range(len(made))])
    assert [e.label for e in found] == [
        "tiny full precision",
        "tiny full precision bf16",
        "llava W4A4 qvlm static_tensor seed 0",
        "tiny W4A4 qvlm static_tensor seed 1",
        "tiny W4A4 qvlm dynamic_token seed 0",
        "tiny W4A4 qvlm static_tensor (stress: norm channels ×10) seed 0",
        "tiny W4A4 qvlm static_tensor (stress: sink ×1000) seed 0",
    ]


def test_full_precision_as_loaded_comes_before_what_it_was_cast_to(tmp_path, answered, variants):
    for variant in (replace(variants["fp"], scheme="bf16"), variants["rtn"], variants["fp"]):
        answered("fp", variant=variant).save(tmp_path)
    labels = [e.label for e in load_entries([str(tmp_path)])]
    assert labels == ["full precision", "full precision bf16", "W4A4 rtn"]


def test_equal_models_are_told_apart_by_their_folders(tmp_path, answered):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        answered("rtn", benchmark="x").save(tmp_path / path)
    answered("rtn", benchmark="y").save(tmp_path / "c")
    found = load_entries([*paths, str(tmp_path / "c")])
    assert [e.label for e in found] == [f"W4A4 rtn [{p}]" for p in (*paths, str(tmp_path / "c"))]


def test_the_reference_is_the_first_or_the_one_that_is_named(run):
    entries = load_entries([str(run)])
    assert choose_reference(entries, None).label == "full precision"
    for name in ("W4A4 rtn", "rtn-w4a4-static_tensor-k1-s0"):
        assert choose_reference(entries, name).label == "W4A4 rtn"
    assert choose_reference(entries, str(run)).label == "full precision"


def test_folders_without_answers(tmp_path, answered):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty' holds no whole predictions; give a run folder"):
        load_entries([str(tmp_path / "empty")])
    with pytest.raises(InputError, match="nowhere' does not exist"):
        load_entries([str(tmp_path / "nowhere")])
    answered("fp", control="blind", log_probs=None).save(tmp_path / "controls")
    with pytest.raises(InputError, match="answers of controls only"):
        load_entries([str(tmp_path / "controls")])


def test_damaged_predictions(run):
    (run / "predictions" / "fp-k1.jsonl").write_text("{")
    with pytest.raises(InputError, match="are damaged"):
        load_entries([str(run)])


def test_the_same_answers_twice(run):
    for again in (str(run), str(run / "predictions" / "fp-k1")):
        with pytest.raises(InputError, match="'fp-k1', which was given before; give it once"):
            load_entries([str(run), again])


def test_answers_that_are_no_predictions_of_a_run(tmp_path):
    (tmp_path / "answers.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"answers\.jsonl' holds no whole predictions"):
        load_entries([str(tmp_path / "answers.jsonl")])
