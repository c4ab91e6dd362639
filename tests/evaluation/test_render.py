import io
from collections import Counter

import pytest
from rich.console import Console

from qvlm_lightning.results.figure import results_figure
from qvlm_lightning.results.render import Grid, grids, groups, markdown, show


def row(method, value, metric="accuracy", task="overall", scale=1.0, sink=1.0, seed=0, **other):
    fp = method == "fp"
    return {
        "model": "tiny",
        "method": method,
        "variant": method,
        "split": "test",
        **dict.fromkeys(("objective", "candidates", "layer_forwards", "search_seconds")),
        "scheme": "fp" if fp else "w4a4",
        "activation_mode": "none" if fp else "static_tensor",
        "outlier_scale": scale,
        "sink_scale": sink,
        "seed": None if fp else seed,
        "stress": scale > 1 or sink > 1,
        "task": task,
        "metric": metric,
        "value": value,
        "ci_low": value - 1,
        "ci_high": value + 1,
        "n": 100,
        **other,
    }


@pytest.fixture
def rows():
    return [
        row("fp", 90.0),
        row("fp", 92.0, task="color"),
        row("fp", 33.0, metric="accuracy_blind"),
        row("fp", 30.0, metric="accuracy_blind", task="color"),
        row("qvlm", 88.0),
        row("qvlm", 0.05, metric="kl", ci_low=0.04, ci_high=0.06),
        row("qvlm", -2.0, metric="accuracy_minus_fp", p_value=0.0123),
        row("qvlm", 50.0, scale=10.0),
    ]


def test_one_line_per_variant_with_intervals(rows):
    main, families = grids(rows)
    assert [line[0] for line in main.rows] == [
        *("full precision", "W4A4 qvlm", "W4A4 qvlm (stress: norm channels ×10)")
    ]
    assert main.rows[1][1:5] == [
        *("88.0 [87.0, 89.0]", "-2.0 [-3.0, -1.0] p=.012", "–", "0.0500 [0.0400, 0.0600]")
    ]
    assert families.header == ["variant", "all", "color"]
    assert families.rows[:2] == [
        ["full precision", "90.0", "92.0"],
        ["  blind guess", "33.0", "30.0"],
    ]
    assert "static_tensor" in main.note


def test_controls_have_a_table_where_questions_have_no_family(rows):
    _, controls = grids([row for row in rows if row["task"] == "overall"])
    assert controls.title == "Accuracy and controls, test split"
    assert controls.header == ["variant", "all"]
    assert ["  blind guess", "33.0"] in controls.rows


def test_stress_by_a_sink_is_a_line_of_its_own(rows):
    main, _ = grids(
        [*rows, row("qvlm", 40.0, sink=1000.0), row("qvlm", 30.0, scale=10.0, sink=50.0)]
    )
    assert [line[0] for line in main.rows[2:]] == [
        "W4A4 qvlm (stress: norm channels ×10)",
        "W4A4 qvlm (stress: sink ×1000)",
        "W4A4 qvlm (stress: norm channels ×10, sink ×50)",
    ]
    assert [line[1].split()[0] for line in main.rows[2:]] == ["50.0", "40.0", "30.0"]
    assert main.note.endswith("undone by folding the norms into the layers behind them.")
    assert "folding" not in grids([row("fp", 90.0), row("qvlm", 40.0, sink=1000.0)])[0].note
    assert [bool(g.stress) for g in groups([row("fp", 90.0), row("qvlm", 1.0, sink=50.0)])] == [
        *(False, True)
    ]


def test_seeds_are_one_line_with_mean_and_range(rows):
    rows = [row("fp", 90.0), *(row("qvlm", 80.0 + s, seed=s) for s in (0, 1, 5))]
    main, _ = grids(rows)
    assert main.rows[1][1] == "82.0 [80.0, 85.0]"
    assert "mean over 3 calibration seeds" in main.note
    assert len(groups(rows)) == 2


def test_markdown_is_a_table(rows):
    text = markdown(grids(rows)[0])
    lines = text.splitlines()
    assert lines[0] == "### Results, test split"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_terminal_shows_every_cell(rows):
    screen = io.StringIO()
    for grid in grids(rows):
        show(grid, Console(file=screen, width=132))
    for text in ("W4A4 qvlm", "88.0", "[87.0, 89.0]", "p=.012", "stress"):
        assert text in screen.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_of_any_width_shows_every_cell_whole(rows, width):
    """Nothing is folded, cut or wider than the screen; every part has the names of the rows."""
    for grid in grids(rows):
        screen = io.StringIO()
        show(grid, Console(file=screen, width=width))
        lines = screen.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        words = " ".join(lines).split()
        for row in grid.rows:
            cells = [word for text in row[1:] for word in text.split()]
            assert not Counter(cells) - Counter(words)
        parts = sum(grid.header[0] in line for line in lines)
        named = sum(line.strip().startswith(grid.rows[0][0].strip()) for line in lines)
        assert named >= parts
        assert (parts == 1) == (width == 200 or len(grid.header) < 6)


def test_picture_has_both_panels_and_every_variant(rows):
    figure = results_figure(rows)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [g.label for g in groups(rows)]
    assert left.get_xlabel() == "accuracy, %"
    assert right.get_xscale() == "log"


def test_picture_of_full_precision_alone():
    figure = results_figure([row("fp", 90.0)])
    assert figure.axes[1].get_xscale() == "linear"


def test_brackets_are_text_wherever_they_stand():
    """Two folders of one model are told apart by their path, in brackets."""
    screen = Console(width=100, record=True, file=io.StringIO())
    show(Grid("of [/a]", ["model", "fp [/b]"], [["fp [/c]", "1"]], "like [/d]"), screen)
    printed = screen.export_text()
    assert all(f"[/{name}]" in printed for name in "abcd")


def searched(value, **facts):
    return row("cdm", value, **facts)


def test_cost_of_the_search_stands_beside_the_variant(rows):
    facts = {"layer_forwards": 2500, "search_seconds": 12.34}
    main, _ = grids([row("fp", 90.0), searched(80.0, **facts)])
    assert main.header[-3:] == ["layer-forwards", "search, s", "answers, s"]
    assert [line[-3:-1] for line in main.rows] == [["–", "–"], ["2,500", "12.3"]]
    assert "layer-forwards" not in grids(rows)[0].header


def test_one_objective_and_grid_is_said_below_and_several_beside():
    fine = {"objective": "normalized", "candidates": [1.0, 0.9995, 0.98]}
    first = row("rtn", 70.0)
    main, _ = grids([first, searched(80.0, **fine), searched(81.0, seed=1, **fine)])
    assert "search: objective normalized, grid 3 of 0.98 to 1;" in main.note
    assert "objective" not in main.header
    other = row("sequential", 75.0, **(fine | {"objective": "plain"}))
    main, _ = grids([first, other, searched(80.0, **fine)])
    assert main.header[1] == "objective"
    assert [line[1] for line in main.rows] == ["–", "plain", "normalized"]
    assert "search: grid 3 of 0.98 to 1;" in main.note


def test_every_split_has_tables_of_its_own(rows):
    both = [*rows, *({**r, "split": "development"} for r in rows)]
    titles = [grid.title for grid in grids(both)]
    assert titles == [
        f"{name}, {split} split"
        for split in ("test", "development")
        for name in ("Results", "Accuracy per family")
    ]
    assert [g.rows for g in grids(both)[2:]] == [g.rows for g in grids(rows)]


def test_rows_of_one_method_are_told_apart_by_their_names():
    given = [searched(80.0, variant=name) for name in ("random-blocks", "fixed-blocks")]
    assert [g.label for g in groups(given)] == ["W4A4 random-blocks", "W4A4 fixed-blocks"]


def test_picture_names_the_split(rows):
    figure = results_figure([{**r, "split": "development"} for r in rows])
    assert "100 questions, development split" in figure.get_suptitle()
