"""Rankings of made-up answers: every figure by plain loops, then the tables and pages of them."""

import csv
import io
import math
import re
from dataclasses import replace
from statistics import mean

import pytest
import torch

from qvlm_lightning.results.leaderboard import Contest, contests, ranking
from qvlm_lightning.results.leaderboard_page import html_page, markdown_page
from qvlm_lightning.results.leaderboard_tables import (
    csv_text,
    difference,
    ranking_grid,
    ranking_title,
    summary_grid,
)
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import signed
from tests.evaluation.test_html import Balanced

FULL = [0.9, 0.8, 0.7, 0.6]
"""Probability of the first of two tokens, question by question, in full precision."""
GIVEN = {
    # method -> seed -> probabilities, points of 0 to 10, what was read
    "rtn": {0: ([0.5, 0.4, 0.5, 0.5], [0, 10, 0, 0]), 1: ([0.4, 0.5, 0.4, 0.6], [10, 0, 0, 0])},
    "gptq": {0: ([0.8, 0.7, 0.6, 0.5], [10, 10, 0, 0]), 1: ([0.8, 0.7, 0.5, 0.5], [10, 10, 0, 10])},
    "plus": {0: ([0.9, 0.8, 0.7, 0.55], [10, 10, 10, 0]), 1: ([0.9, 0.8, 0.68, 0.6], [10] * 4)},
    "twin": {0: ([0.9, 0.8, 0.7, 0.56], [10, 10, 10, 0]), 1: ([0.9, 0.79, 0.68, 0.6], [10] * 4)},
}
MADE = {"command": "`x`", "commit": "abc1234", "hardware": "a <machine>", "date": "2026-11-28"}


@pytest.fixture
def make(answered):
    """Make answers of a method and seed."""

    def made(method: str, seed: int | None, probabilities, points, **variant) -> Predictions:
        p = None if probabilities is None else torch.tensor(probabilities, dtype=torch.float64)
        logits = None if p is None else torch.stack([p, 1 - p], dim=1).log()
        parsed = ["right" if x else "wrong" for x in points]
        found = answered("rtn", points=points, parsed=parsed, log_probs=logits)
        about = {"method": method, "seed": seed, "label": ""} | variant
        found.variant = replace(found.variant, **about)
        found.search = {"layer_forwards": 10 * (1 + (seed or 0))}
        return found

    return made


@pytest.fixture
def full(make) -> Predictions:
    found = make("fp", None, FULL, [10] * 4)
    found.variant = found.variant.reference
    return found


@pytest.fixture
def contest(make, full) -> Contest:
    pairs = [(make(m, s, *x), full) for m, seeds in GIVEN.items() for s, x in seeds.items()]
    (found,) = contests(pairs, [])
    return found


def kl(probabilities: list[float]) -> list[float]:
    """Divergence of each question, by hand."""
    return [
        p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        for p, q in zip(FULL, probabilities, strict=True)
    ]


def kl_of(method: str) -> list[float]:
    """Divergence of each question, a mean over seeds."""
    own = [kl(p) for p, _ in GIVEN[method].values()]
    return [mean(seeds) for seeds in zip(*own, strict=True)]


def test_every_figure_is_that_of_plain_loops(contest):
    found = ranking(contest, ["plus", "twin"])
    order = sorted(GIVEN, key=lambda method: mean(kl_of(method)))
    assert [s.method for s in found.standings] == order
    assert (found.best, found.rival, found.leader.method) == (order[0], "gptq", order[0])
    for standing in found.standings:
        figures, seeds = standing.figures, GIVEN[standing.method]
        assert figures["kl"]["value"] == pytest.approx(mean(kl_of(standing.method)))
        assert figures["kl"]["ci_low"] <= figures["kl"]["value"] <= figures["kl"]["ci_high"]
        of_seeds = [mean(kl(p)) for p, _ in seeds.values()]
        assert figures["kl"]["low"] == pytest.approx(min(of_seeds))
        assert figures["kl"]["high"] == pytest.approx(max(of_seeds))
        accuracy = mean(mean(10.0 * x for x in points) for _, points in seeds.values())
        assert figures["accuracy"]["value"] == pytest.approx(accuracy)
        # full precision is right everywhere: agreement is accuracy
        assert figures["agreement"]["value"] == pytest.approx(accuracy)
        assert figures["layer_forwards"]["value"] == 15
        assert standing.seeds == [0, 1]
        assert standing.ours is (standing.method in ("plus", "twin"))


def test_differences_are_paired_by_question_and_seed(contest):
    found = {s.method: s for s in ranking(contest, ["plus", "twin"]).standings}
    for method, standing in found.items():
        for what, other in (("baseline", "rtn"), ("rival", "gptq")):
            if method == other:
                assert standing.against[what] == {}
                continue
            gaps = [a - b for a, b in zip(kl_of(method), kl_of(other), strict=True)]
            row = standing.against[what]["kl"]
            assert row["value"] == pytest.approx(mean(gaps))
            assert min(gaps) <= row["ci_low"] <= row["ci_high"] <= max(gaps)
            points = [
                mean(10.0 * (a - b) for a, b in zip(mine, theirs, strict=True))
                for (_, mine), (_, theirs) in zip(
                    GIVEN[method].values(), GIVEN[other].values(), strict=True
                )
            ]
            row = standing.against[what]["accuracy"]
            assert row["value"] == pytest.approx(mean(points))
            assert (row["low"], row["high"]) == pytest.approx((min(points), max(points)))


def test_what_cannot_be_told_from_the_lowest_is_named(contest):
    found = ranking(contest, ["plus", "twin"])
    (other,) = {"plus", "twin"} - {found.best}
    assert found.undecided == [other], "a few thousandths of both signs"
    note = ranking_grid(found).note
    assert f"Lowest KL: {found.best}. Within its noise: {other}. Best rival: gptq." in note
    assert "Full precision: 100.0 [" in note


def test_rows_of_other_seeds_are_compared_on_the_common_ones(make, full):
    pairs = [(make("rtn", s, *GIVEN["rtn"][s]), full) for s in (0, 1)]
    pairs += [(make("plus", s, *GIVEN["plus"][s % 2]), full) for s in (1, 2)]
    pairs += [(make("gptq", 3, *GIVEN["gptq"][0]), full)]
    (contest,) = contests(pairs, [])
    found = {s.method: s for s in ranking(contest, ["plus"]).standings}
    assert found["plus"].seeds == [1, 2]
    row = found["plus"].against["baseline"]["kl"]
    assert row["seeds"] == [1]
    assert row["value"] == pytest.approx(
        mean(kl(GIVEN["plus"][1][0])) - mean(kl(GIVEN["rtn"][1][0]))
    )
    assert found["plus"].against["rival"] == {}, "no seed in common"


def test_without_probabilities_accuracy_ranks_behind_the_others(make, full):
    pairs = [
        (make("low", 0, None, [10, 0, 0, 0]), full),
        (make("high", 0, None, [10, 10, 0, 0]), full),
        (make("rtn", 0, *GIVEN["rtn"][0]), full),
    ]
    (contest,) = contests(pairs, [])
    found = ranking(contest, ["high"])
    assert [s.method for s in found.standings] == ["rtn", "high", "low"]
    assert (found.best, found.rival, found.leader) == ("rtn", "rtn", None)
    assert "kl" not in found.standings[1].figures
    alone = ranking(Contest(full, contest.contenders[:2]), [])
    assert (alone.best, alone.rival) == (None, None)
    assert "KL, nats" not in ranking_grid(alone).header
    assert summary_grid([alone]).rows[0][2:7] == ["–"] * 5


def test_contests_are_kept_apart_and_get_their_costs(make, full):
    others = [
        {},
        {"activation_mode": "dynamic_token"},
        {"scheme": "w8a8"},
        {"sink_scale": 50.0},
    ]
    pairs = [(make("rtn", 0, *GIVEN["rtn"][0], **other), full) for other in others]
    short = make("rtn", 0, *GIVEN["rtn"][0])
    short.ids = ["a", "b", "c", "d"]
    head = {"model": "tiny", "variant": "rtn", "scheme": "w4a4", "seed": 0, "split": ""}
    head |= {"task": "overall", "outlier_scale": 1.0}
    rows = [
        head | {"activation_mode": mode, "metric": metric, "value": value}
        for mode, metric, value in (
            ("static_tensor", "calibration_seconds", 7.0),
            ("static_tensor", "peak_bytes", 2**30),
            ("static_tensor", "kl_minus_rtn", 1.0),
            ("dynamic_token", "calibration_seconds", 9.0),
        )
    ]
    found = contests([*pairs, (short, full)], rows)
    assert [ranking_title(ranking(c, [])) for c in found] == [
        "W4A4, activations static_tensor",
        "W4A4, activations dynamic_token",
        "W8A8, activations static_tensor",
        "W4A4, activations static_tensor (stress: sink ×50)",
        "W4A4, activations static_tensor",
    ]
    costs = [c.contenders[0].costs for c in found[:4]]
    assert costs == [
        {"calibration_seconds": [7.0], "peak_bytes": [2**30]},
        {"calibration_seconds": [9.0]},
        {},
        {},
    ]
    grid = ranking_grid(ranking(found[0], []))
    told = dict(zip(grid.header, grid.rows[0], strict=True))
    assert (told["calibration, s"], told["peak memory"]) == ("7.0", "1.00 GiB")


@pytest.mark.parametrize(
    ("scheme", "title"),
    [
        ("w3a16", "W3A16, weights only"),
        ("vision-w16a16_projector-w16a16_language-w4a16", "W4A16 language, weights only"),
        ("w4a8", "W4A8, activations static_tensor"),
    ],
)
def test_without_quantized_activations_there_is_no_mode(make, full, scheme, title):
    (contest,) = contests([(make("rtn", 0, *GIVEN["rtn"][0], scheme=scheme), full)], [])
    assert ranking_title(ranking(contest, [])) == title


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((-2.0, -1.0, -2.0, -1.0), "-1.5 [-2.0, -1.0]"),
        ((-2.0, 0.0, -2.0, -1.0), "none [-2.0, +0.0]"),
        ((-0.5, 2.0, 1.0, 1.0), "none [-0.5, +2.0]"),
        ((1.0, 2.0, -0.1, 3.0), "+1.5 [+1.0, +2.0] seeds disagree"),
    ],
)
def test_a_difference_inside_the_noise_is_none(bounds, text):
    row = dict(zip(("ci_low", "ci_high", "low", "high"), bounds, strict=True))
    value = (row["ci_low"] + row["ci_high"]) / 2
    value = value if abs(value) == 1.5 else 0.7
    assert difference(row | {"value": value}, signed) == text
    assert difference(None, signed) == "–"


def test_the_tables_say_whose_a_method_is(contest):
    found = ranking(contest, ["plus", "twin"])
    grid = ranking_grid(found)
    assert [row[0] for row in grid.rows[2:]] == ["gptq", "rtn"]
    assert {row[0] for row in grid.rows[:2]} == {"plus (ours)", "twin (ours)"}
    assert "calibration, s" not in grid.header, "nobody has it"
    (line,) = summary_grid([found]).rows
    told = dict(zip(summary_grid([found]).header, line, strict=True))
    assert (told["ours"], told["rival"], told["seeds"]) == (found.best, "gptq", "2")
    assert told["questions"] == "4"
    best = next(s for s in found.standings if s.method == found.best)
    gap = best.against["rival"]["kl"]["value"]
    assert told["ours − rival"].startswith(("none [", f"-{abs(gap):.3f}", f"-{abs(gap):.4f}"))


def test_the_csv_has_every_number_once(contest):
    found = ranking(contest, ["plus"])
    lines = list(csv.DictReader(io.StringIO(csv_text([found]))))
    assert [line["method"] for line in lines] == [s.method for s in found.standings]
    for line, standing in zip(lines, found.standings, strict=True):
        assert float(line["kl"]) == standing.figures["kl"]["value"]
        assert float(line["kl_low"]) == standing.figures["kl"]["ci_low"]
        assert float(line["kl_seed_high"]) == standing.figures["kl"]["high"]
        assert (line["seeds"], line["n"], line["scheme"]) == ("0 1", "4", "w4a4")
        assert line["ours"] == str(standing.method == "plus")
        assert line["rival"] == found.rival
        against = standing.against["rival"].get("accuracy")
        told = line["accuracy_minus_rival_high"]
        assert told == "" if against is None else float(told) == against["ci_high"]
    assert {line["kl_minus_rtn"] for line in lines if line["method"] == "rtn"} == {""}
    assert {line["peak_bytes"] for line in lines} == {""}


def test_the_page_says_what_made_it(contest):
    text = markdown_page([ranking(contest, ["plus"])], MADE)
    assert text.startswith("# Leaderboard\n")
    for name, told in MADE.items():
        assert f"- {name}: {told}\n" in text
    assert "### Summary" in text
    assert "### W4A4, activations static_tensor\n" in text
    assert text.count("| plus (ours) |") == 1


def test_the_html_needs_nothing_else_and_draws_every_interval(contest):
    found = ranking(contest, ["plus"])
    text = html_page([found, found], MADE)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert set(parser.sources) == {"data:,"}
    assert "://" not in text
    assert "<dd>x</dd>" in text
    assert "a &lt;machine&gt;" in text
    assert "prefers-color-scheme: dark" in text
    for standing in found.standings:
        kl_row = standing.figures["kl"]
        assert (
            f"{standing.method}{' (ours)' if standing.ours else ''}: {kl_row['value']:.3g}" in text
        )
    colours = re.findall(r'<g style="stroke:var\((--c\d)\)', text)
    # ours, rival, rival, baseline, of two contests
    assert sorted(colours) == sorted(["--c4", "--c2", "--c2", "--c0"] * 2)
    assert 'class="ci">[' in text


def test_the_page_parts_a_difference_from_its_interval(make, full):
    worse = [[0.5, 0.4, 0.5, 0.5], [0.9, 0.8, 0.7, 0.6]]
    pairs = [(make("plus", s, p, [10] * 4), full) for s, p in enumerate(worse)]
    pairs += [(make("rtn", s, [0.8, 0.75, 0.65, 0.55], [10] * 4), full) for s in (0, 1)]
    (contest,) = contests(pairs, [])
    text = html_page([ranking(contest, ["plus"])], MADE)
    cells = re.findall(r"<td>([^<[]*)<span class=\"ci\">([^<]*)</span>", text)
    assert any(value.startswith("+") and rest.endswith("] seeds disagree") for value, rest in cells)
