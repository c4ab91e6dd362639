import json
import math
from dataclasses import replace

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.intervals import wilson_interval
from qvlm_lightning.results.report import (
    asked_differently,
    load_answers,
    report_rows,
    variant_rows,
    write_results,
)
from qvlm_lightning.results.variant import Variant

KEYS = {
    *("model", "variant", "method", "scheme", "activation_mode", "outlier_scale", "seed"),
    "sink_scale",
    *("stress", "split", "objective", "candidates", "layer_forwards", "search_seconds"),
    *("task", "metric", "value", "ci_low", "ci_high", "n"),
}


@pytest.fixture
def table(answered, known):
    """Full precision with its controls, round-to-nearest and Q-VLM."""
    return known(
        answered("fp", "red", "blue", "A", "C"),
        answered("fp", "red", "red", "A", "A", control="blind", log_probs=None),
        answered("rtn", "blue", "red", "A", "", shift=1.0),
        answered("qvlm", "red", "red", "A", "C", shift=0.5),
    )


def value(rows, method, metric, task="overall"):
    found = [r for r in rows if (r["method"], r["metric"], r["task"]) == (method, metric, task)]
    assert len(found) == 1
    return found[0]


def test_hand_counted_rows(table):
    rows = report_rows(table)
    accuracy = value(rows, "fp", "accuracy")
    assert (accuracy["value"], accuracy["n"]) == (75.0, 4)
    low, high = wilson_interval(3, 4)
    assert (accuracy["ci_low"], accuracy["ci_high"]) == (100 * low, 100 * high)
    assert value(rows, "fp", "accuracy", "pick")["value"] == 50.0
    assert value(rows, "fp", "accuracy_blind")["value"] == 50.0
    assert value(rows, "rtn", "accuracy")["value"] == 25.0
    assert value(rows, "rtn", "parse_failures", "pick")["value"] == 50.0
    assert value(rows, "rtn", "agreement")["value"] == 25.0
    assert value(rows, "qvlm", "agreement")["value"] == 75.0
    assert value(rows, "qvlm", "seconds")["value"] == 1.5


def test_differences_are_paired(table):
    rows = report_rows(table)
    to_fp = value(rows, "qvlm", "accuracy_minus_fp")
    assert (to_fp["value"], to_fp["won"], to_fp["lost"]) == (-25.0, 0, 1)
    assert to_fp["p_value"] == 0.5
    to_rtn = value(rows, "qvlm", "accuracy_minus_rtn")
    assert (to_rtn["value"], to_rtn["won"], to_rtn["lost"]) == (25.0, 1, 0)
    assert to_rtn["ci_low"] <= 25.0 <= to_rtn["ci_high"]
    assert not any(r["metric"].endswith("minus_rtn") and r["method"] == "rtn" for r in rows)


def test_divergence_is_that_of_the_stored_log_probabilities(table):
    rows = report_rows(table)
    # question 0: (1/2, 1/2) against (e, 1) / (e + 1)
    p = math.e / (math.e + 1)
    first = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    kl = value(rows, "rtn", "kl", "pick")
    assert kl["n"] == 2
    full, rounded = table["fp-k1"].log_probs.double(), table["rtn-w4a4-static_tensor-k1-s0"]
    per_question = (full.exp() * (full - rounded.log_probs.double())).sum(-1)
    assert per_question[0].item() == pytest.approx(first)
    assert kl["value"] == pytest.approx(per_question[2:].mean().item())
    gap = value(rows, "qvlm", "kl_minus_rtn")
    difference = value(rows, "qvlm", "kl")["value"] - value(rows, "rtn", "kl")["value"]
    assert gap["value"] == pytest.approx(difference)
    assert gap["ci_high"] < 0


def test_rows_have_the_promised_keys_and_plain_values(table, tmp_path):
    write_results(tmp_path / "run" / "results.json", report_rows(table))
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    for row in rows:
        extra = {"p_value", "won", "lost"} if row["metric"].startswith("accuracy_minus") else set()
        assert set(row) == KEYS | extra
        assert isinstance(row["value"], float)
        assert isinstance(row["n"], int)
        if row["metric"] != "seconds":
            assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert {r["task"] for r in rows} == {"overall", "color", "pick"}


def test_the_file_holds_the_means_over_seeds_as_well(answered, known, tmp_path):
    again = answered("qvlm", "red", "red", "A", "C")
    again.variant = replace(again.variant, seed=1)
    rows = report_rows(known(answered("fp"), answered("qvlm"), again))
    write_results(tmp_path / "results.json", rows)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == rows
    (accuracy,) = [
        m
        for m in written["means"]
        if (m["method"], m["metric"], m["task"]) == ("qvlm", "accuracy", "overall")
    ]
    assert (accuracy["value"], accuracy["seeds"], accuracy["n"]) == (75.0, [0, 1], 4)


def test_rows_from_files_equal_rows_from_memory(table, tmp_path):
    for predictions in table.values():
        predictions.save(tmp_path)
    assert report_rows(load_answers(tmp_path)) == report_rows(table)


def test_a_row_with_a_sink_is_compared_with_its_like_only(answered, known, variants):
    """Neither round-to-nearest nor full precision of the model as trained stands beside it."""
    stressed = answered("qvlm", variant=replace(variants["qvlm"], sink_scale=1000.0))
    rows = variant_rows(stressed, known(stressed, answered("rtn"), answered("fp")))
    assert all(row["stress"] and row["sink_scale"] == 1000.0 for row in rows)
    assert not [row for row in rows if "minus" in row["metric"] or row["metric"] == "kl"]
    full = answered("fp", variant=Variant("tiny", sink_scale=1000.0))
    assert (stressed.name, full.name) == (
        *("qvlm-w4a4-static_tensor-k1-sink1000-s0", "fp-k1-sink1000"),
    )
    metrics = {row["metric"] for row in variant_rows(stressed, known(stressed, full))}
    assert {"accuracy_minus_fp", "kl"} <= metrics


def test_answers_come_ordered_by_stress(answered, variants, tmp_path):
    for scales in ({"sink_scale": 1000.0}, {}, {"outlier_scale": 10.0}):
        answered("rtn", variant=replace(variants["rtn"], **scales)).save(tmp_path)
    assert [tuple(p.variant.stress) for p in load_answers(tmp_path).values()] == [
        *((1.0, 1.0), (1.0, 1000.0), (10.0, 1.0)),
    ]


def test_stress_is_labelled(answered, known, variants):
    stressed = answered("qvlm")
    stressed.variant = replace(variants["qvlm"], outlier_scale=10.0)
    assert all(row["stress"] for row in variant_rows(stressed, known(stressed)))


def test_without_a_reference_there_is_no_comparison(answered, known):
    rows = variant_rows(answered("qvlm"), known(answered("rtn", base="weights")))
    assert {r["metric"] for r in rows} == {
        *("accuracy", "parse_failures", "seconds", "accuracy_minus_rtn")
    }


def test_other_questions_cannot_be_compared(answered, known):
    other = answered("fp", ids=["q0", "q1", "q2", "q9"])
    with pytest.raises(InputError, match="not the same ones; evaluate both on the same data"):
        variant_rows(answered("qvlm"), known(other))


def test_other_weights_cannot_be_compared(answered, known):
    with pytest.raises(InputError, match="different full-precision weights"):
        variant_rows(answered("qvlm"), known(answered("fp", base="retrained")))


def test_infinite_numbers_never_reach_the_file(table, tmp_path):
    rows = [row | {"value": float("inf")} for row in report_rows(table)]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "results.json", rows)
    assert not (tmp_path / "results.json").exists()


def test_order_of_torch_generator_does_not_matter(table):
    first = report_rows(table)
    torch.rand(7)
    assert report_rows(table) == first


def test_the_rule_of_the_benchmark_counts_not_the_letter_of_the_answer(answered, known):
    """Points in between, and a text that the rule reads although it is not the answer."""
    given = {"parsed": ["red", "blue", None, "B"]}
    full = answered("fp", points=[10, 3, 0, 10], **given)
    quantized = answered("qvlm", points=[10, 6, 0, 0], **given)
    rows = report_rows(known(full, quantized))
    accuracy = value(rows, "fp", "accuracy")
    assert accuracy["value"] == 57.5
    assert accuracy["ci_low"] < 57.5 < accuracy["ci_high"]
    assert value(rows, "fp", "parse_failures")["value"] == 25.0
    assert value(rows, "qvlm", "agreement")["value"] == 100.0
    minus = value(rows, "qvlm", "accuracy_minus_fp")
    assert (minus["value"], minus["won"], minus["lost"]) == (-17.5, 1, 1)


def test_a_cluster_counts_once_and_is_worth_its_worst(answered, known):
    clusters = ["a", "a", "", ""]
    table = known(
        answered("fp", clusters=clusters),
        answered("rtn", "red", "red", "A", "", clusters=clusters, shift=1.0),
    )
    rows = report_rows(table)
    assert [value(rows, name, "accuracy")["n"] for name in ("fp", "rtn")] == [3, 3]
    assert value(rows, "rtn", "accuracy")["value"] == pytest.approx(100 / 3)
    (_, high) = wilson_interval(1, 3)
    assert value(rows, "rtn", "accuracy")["ci_high"] == 100 * high
    lost = value(rows, "rtn", "accuracy_minus_fp")
    assert (lost["lost"], lost["n"]) == (2, 3)
    assert value(rows, "rtn", "parse_failures")["n"] == 4  # failures are those of questions


def test_rows_say_whose_they_are_and_how_it_was_searched(answered, known):
    search = {"objective": "plain", "candidates": [1.0, 0.98], "layer_forwards": 7}
    rows = report_rows(known(answered("fp"), answered("qvlm", search=search)))
    said = {r["method"]: [r[k] for k in (*search, "search_seconds", "variant")] for r in rows}
    assert said["qvlm"] == ["plain", [1.0, 0.98], 7, None, "qvlm"]
    assert said["fp"] == [None, None, None, None, "fp"]


def test_splits_are_never_compared_with_each_other(answered, known):
    """Other questions, so that a comparison across splits could not go unnoticed."""
    ids = {"ids": ["d0", "d1", "d2", "d3"], "split": "development"}
    table = known(
        answered("fp", split="test"),
        answered("rtn", "red", "red", "A", "B", split="test"),
        answered("fp", control="blind", log_probs=None, **ids),
        answered("fp", **ids),
        answered("rtn", **ids),
        answered("qvlm", "red", "red", "A", "B", **ids),
    )
    assert len(table) == 6
    rows = [r for r in report_rows(table) if r["task"] == "overall"]
    found = {(r["split"], r["method"], r["metric"]): r["value"] for r in rows}
    assert found["test", "rtn", "accuracy_minus_fp"] == -25.0
    assert found["development", "rtn", "accuracy_minus_fp"] == 0.0
    assert found["development", "qvlm", "accuracy_minus_rtn"] == -25.0
    assert ("test", "fp", "accuracy_blind") not in found
    assert found["development", "fp", "accuracy_blind"] == 100.0


def named(answered, method, name, *texts):
    made = answered(method, *texts)
    made.variant = replace(made.variant, label=name)
    return made


def test_round_to_nearest_read_from_its_file_is_not_compared_with_itself(answered, known):
    rounded = answered("rtn", "red", "red", "A", "C")
    rows = variant_rows(replace(rounded), known(answered("fp"), rounded))
    metrics = {row["metric"] for row in rows}
    assert "accuracy_minus_fp" in metrics
    assert not any(name.endswith("minus_rtn") for name in metrics)


def test_questions_without_a_family_are_in_no_family(answered, known):
    """Their name would be empty in every table."""
    for families, tasks in ((["", "", "", ""], set()), (["color", "", "", ""], {"color"})):
        made = [replace(answered(name), families=families) for name in ("fp", "qvlm")]
        rows = report_rows(known(*made))
        assert {row["task"] for row in rows} == {"overall"} | tasks
        assert value(rows, "fp", "accuracy")["n"] == 4


def test_round_to_nearest_is_the_row_without_a_name_of_its_own(answered, known):
    mse = named(answered, "rtn", "mse", "red", "blue", "A", "C")
    rows = report_rows(
        known(answered("fp"), answered("rtn", "", "", "", ""), mse, answered("qvlm"))
    )
    found = {(r["variant"], r["metric"]): r["value"] for r in rows if r["task"] == "overall"}
    assert found["qvlm", "accuracy_minus_rtn"] == 100.0
    assert found["mse", "accuracy_minus_rtn"] == 75.0
    assert ("rtn", "accuracy_minus_rtn") not in found


@pytest.mark.parametrize(("names", "minus"), [(["min-max"], 25.0), (["min-max", "mse"], None)])
def test_a_named_round_to_nearest_counts_where_it_is_the_only_one(answered, known, names, minus):
    rounded = [named(answered, "rtn", name, "red", "blue", "A", "C") for name in names]
    rows = report_rows(known(answered("fp"), *rounded, answered("qvlm")))
    found = {(r["variant"], r["metric"]): r["value"] for r in rows if r["task"] == "overall"}
    assert found.get(("qvlm", "accuracy_minus_rtn")) == minus


ASKED = {"questions": "1", "max_new_tokens": 4, "stop": []}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"questions": "2"}, "prompt"),
        ({"max_new_tokens": 9}, "max_new_tokens"),
        ({"stop": ["."]}, "stop strings"),
    ],
)
def test_answers_to_another_prompt_are_not_compared(answered, known, change, what):
    full = answered("fp", asked=ASKED)
    stale = answered("rtn", asked=ASKED | change)
    guess = answered("fp", control="blind", log_probs=None, asked=ASKED | change)
    new = answered("qvlm", asked=ASKED)
    table = known(full, guess, stale, new)
    rows = report_rows(table)
    metrics = {m: {r["metric"] for r in rows if r["method"] == m} for m in ("fp", "rtn", "qvlm")}
    assert metrics["rtn"] == {"accuracy", "parse_failures", "seconds"}
    assert {"accuracy_minus_fp", "kl", "agreement"} <= metrics["qvlm"]
    assert not {"accuracy_minus_rtn", "kl_minus_rtn"} & metrics["qvlm"]
    assert "accuracy_blind" not in metrics["fp"]
    notes = asked_differently(table)
    assert len(notes) == 2
    assert all(f"was asked with another {what} than full precision" in note for note in notes)
    assert [note.split()[0] for note in notes] == [guess.name, stale.name]
    assert asked_differently(known(full, new)) == []


def test_other_questions_are_called_so(answered, known):
    other = answered("rtn", ids=["q0", "q1", "q2", "q9"], asked=ASKED | {"questions": "2"})
    table = known(answered("fp", asked=ASKED), other)
    assert {r["metric"] for r in report_rows(table) if r["method"] == "rtn"} == {
        *("accuracy", "parse_failures", "seconds")
    }
    assert "with other questions than" in asked_differently(table)[0]
