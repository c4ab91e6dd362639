import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.annotators import (
    AnnotatorScore,
    evalai_vqa,
    leave_one_out,
    lmms_vqa,
    m4c,
    official_vizwiz,
    official_vqa,
)
from qvlm_lightning.metrics.target import Judgement

RULES = [official_vqa, evalai_vqa, lmms_vqa, official_vizwiz, m4c]


def mean_over_left_out(matches: int, annotators: int = 10) -> Fraction:
    """The rule as the papers state it, with plain loops."""
    agrees = [place < matches for place in range(annotators)]
    scores = [
        min(Fraction(1), Fraction(sum(agrees[:i] + agrees[i + 1 :]), 3)) for i in range(annotators)
    ]
    return sum(scores, Fraction(0)) / annotators


@pytest.mark.parametrize("matches", range(11))
def test_tenths(matches: int) -> None:
    assert leave_one_out(matches) == 10 * mean_over_left_out(matches)


def test_known_tenths() -> None:
    assert [leave_one_out(k) for k in range(6)] == [0, 3, 6, 9, 10, 10]
    assert leave_one_out(0, 0) == 0


@pytest.mark.parametrize(("matches", "n"), [(m, n) for n in range(1, 15) for m in range(n + 1)])
def test_other_numbers_of_annotators_round_down(matches: int, n: int) -> None:
    assert leave_one_out(matches, n) == int(10 * mean_over_left_out(matches, n))


SPLIT = ["2"] * 6 + ["two"] * 2 + ["Two."] + ["3"]  # the annotators disagree
UNANIMOUS = ["2"] * 10


# points by hand: 9 of SPLIT are "2" once normalised, 6 as they are
@pytest.mark.parametrize(
    ("rule", "text", "split", "unanimous"),
    [
        (official_vqa, "two", 10, 0),
        (official_vqa, "2", 10, 10),
        (official_vqa, " 2\n", 10, 10),
        (official_vqa, "3", 3, 0),
        (evalai_vqa, "two", 10, 10),
        (lmms_vqa, "Two.", 10, 10),
        (official_vizwiz, "two", 10, 10),  # the text is normalised, the annotators are not
        (m4c, "the 3", 3, 0),
    ],
)
def test_rules(rule, text: str, split: int, unanimous: int) -> None:
    assert (rule(text, SPLIT).points, rule(text, UNANIMOUS).points) == (split, unanimous)


def test_vizwiz_leaves_the_annotators_as_they_wrote() -> None:
    assert official_vizwiz("two", ["two"] * 10).points == 0
    assert m4c("two", ["two"] * 10).points == 10


def test_an_empty_answer_counts_where_annotators_gave_it() -> None:
    assert official_vqa("the", ["a"] * 3 + ["cat"] * 7) == Judgement(9, "")
    assert official_vqa("the", ["dog"] * 3 + ["cat"] * 7) == Judgement(0, None)


@pytest.mark.parametrize("rule", RULES)
def test_no_annotators_no_points(rule) -> None:
    assert rule("cat", ()) == Judgement(0, "cat")


@pytest.mark.parametrize("rule", RULES)
@given(text=st.text(max_size=40), others=st.lists(st.text(max_size=8), min_size=10, max_size=10))
def test_any_text_is_judged(rule, text: str, others: list[str]) -> None:
    judgement = rule(text, others)
    assert judgement.points in (0, 3, 6, 9, 10)
    assert judgement == rule(text, others[::-1])
    if judgement.parsed is None:
        assert judgement.points == 0


@given(k=st.integers(0, 10), data=st.data())
def test_the_order_of_annotators_does_not_matter(k: int, data) -> None:
    answers = data.draw(st.permutations(["cat"] * k + ["dog"] * (10 - k)))
    assert official_vqa("cat", answers).points == leave_one_out(k)


def test_halfway_values_are_printed_as_the_official_scorer_does() -> None:
    metric = AnnotatorScore(["half", "other", "none"])
    judged = [Judgement(10, "x")] * 27 + [Judgement(0, "x")] * 5  # 84.375
    metric.update(judged, [("half",)] * 32)
    metric.update([Judgement(3, "x")] * 3, [("other",)] * 3)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert round(values["half"], 2) == 84.37
    assert values["half"] == pytest.approx(84.375, abs=1e-12)
    assert values["other"] == 30
    assert values["none"] != values["none"]  # no question
    assert metric.counts()["half"] == (270, 32)
    assert values["overall"] == torch.tensor(10 * (270 + 9) / 35, dtype=torch.float64)


def equal_records_left_out(answer: str, records: list[dict[str, str]]) -> float:
    """VQA v2's way of leaving one out: all records that equal it go."""
    scores = []
    for record in records:
        others = [other for other in records if other != record]
        scores.append(min(1, sum(other["answer"] == answer for other in others) / 3))
    return sum(scores) / len(scores)


def test_vqa_v2s_way_of_leaving_out_does_not_reproduce_vizwiz(test_data) -> None:
    folder = test_data / "vizwiz_val2019"
    rows = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    golden = json.loads((folder / "golden" / "majority.json").read_text(encoding="utf-8"))
    answers = {p["image"]: p["answer"] for p in golden["predictions"]}
    by_place = [
        official_vizwiz(answers[r["image"]], [a["answer"] for a in r["answers"]]) for r in rows
    ]
    by_record = [
        equal_records_left_out(judgement.parsed or "", r["answers"])
        for judgement, r in zip(by_place, rows, strict=True)
    ]
    overall = golden["accuracy"]["overall"]
    assert round(10 * sum(j.points for j in by_place) / len(rows), 2) == overall
    assert 100 * sum(by_record) / len(rows) < overall - 20
