"""The rows of ``results.json`` as tables for people: on the terminal and in Markdown."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.rows import Row

NONE = "–"
Number = Callable[[float], str]


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn."""

    title: str
    """What it shows."""
    header: list[str]
    """One name per column."""
    rows: list[list[str]]
    """Cells, the first column naming the row."""
    note: str = ""
    """How to read it."""


@dataclass(frozen=True)
class Group:
    """The rows of one variant, over its calibration seeds."""

    label: str
    """Name in tables and pictures."""
    stress: bool
    """Whether outlier channels were injected."""
    method: str
    """Calibration method, or ``fp``."""
    rows: list[Row]
    """Its rows of ``results.json``."""

    def find(self, metric: str, task: str = OVERALL) -> list[Row]:
        """Return one row per calibration seed."""
        return [row for row in self.rows if row["metric"] == metric and row["task"] == task]


def groups(rows: Sequence[Row]) -> list[Group]:
    """Gather rows by variant, seeds together, in the order of their first row."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        keys = ("outlier_scale", "scheme", "method", "activation_mode")
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    modes = {row["activation_mode"] for row in rows if row["method"] != "fp"}
    made = []
    for (scale, scheme, method, mode), members in found.items():
        name = "full precision" if method == "fp" else f"{scheme.upper()} {method}"
        shown = f" {mode}" if len(modes) > 1 and method != "fp" else ""
        stress = f" (stress ×{scale:g})" if scale > 1 else ""
        made.append(Group(name + shown + stress, scale > 1, method, members))
    return made


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Lay out the main table and the accuracy per family.

    Args:
        rows: rows of ``results.json``.
    """
    made = groups(rows)
    return [_main(made), _families(made)]


def _main(made: list[Group]) -> Grid:
    header = [
        "variant",
        "accuracy %",
        "minus fp",
        "minus rtn",
        "KL to fp, nats",
        "agreement %",
        "parse failures %",
        "n",
        "seconds",
    ]
    lines = []
    for group in made:
        accuracy = group.find("accuracy")
        lines.append(
            [
                group.label,
                cell(accuracy, points),
                cell(group.find("accuracy_minus_fp"), signed),
                cell(group.find("accuracy_minus_rtn"), signed),
                cell(group.find("kl"), nats),
                cell(group.find("agreement"), points, interval=False),
                cell(group.find("parse_failures"), points, interval=False),
                f"{accuracy[0]['n']:,}",
                cell(group.find("seconds"), points, interval=False),
            ]
        )
    seeds = {row["seed"] for group in made for row in group.rows} - {None}
    modes = sorted({row["activation_mode"] for group in made for row in group.rows} - {"none"})
    brackets = (
        f"mean over {len(seeds)} calibration seeds, lowest and highest in brackets"
        if len(seeds) > 1
        else "95 % intervals in brackets, differences on the same questions, p of McNemar's test"
    )
    return Grid("Results", header, lines, f"Activations: {', '.join(modes) or 'fp'}; {brackets}.")


def _families(made: list[Group]) -> Grid:
    tasks = list(
        dict.fromkeys(row["task"] for g in made for row in g.rows if row["task"] != OVERALL)
    )
    lines = []
    for group in made:
        for metric, label in (
            ("accuracy", group.label),
            ("accuracy_blind", "  blind guess"),
            ("accuracy_shuffled", "  shuffled images"),
        ):
            if group.find(metric):
                cells = [cell(group.find(metric, task), points, interval=False) for task in tasks]
                lines.append([label, cell(group.find(metric), points, interval=False), *cells])
    note = "Percent correct. Shuffled images: only questions that have an image."
    return Grid("Accuracy per family", ["variant", "all", *tasks], lines, note)


def points(value: float) -> str:
    """Write percent."""
    return f"{value:.1f}"


def signed(value: float) -> str:
    """Write a difference of percentages."""
    return f"{value:+.1f}"


def nats(value: float) -> str:
    """Write a divergence."""
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def cell(found: Sequence[Row], number: Number, interval: bool = True) -> str:
    """Write a figure: its value with its interval and p-value, or mean and range of several.

    Args:
        found: rows of the figure, one per calibration seed; none is a dash.
        number: writes a value.
        interval: whether to write the interval or range.
    """
    if not found:
        return NONE
    values = [row["value"] for row in found]
    text = number(fmean(values))
    if len(found) > 1:
        return f"{text} [{number(min(values))}, {number(max(values))}]" if interval else text
    row = found[0]
    if interval and row["ci_low"] is not None:
        text += f" [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    if "p_value" in row:
        text += f" p={_p(row['p_value'])}"
    return text


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def markdown(grid: Grid) -> str:
    """Draw a grid as a Markdown table.

    Example:
        >>> print(markdown(Grid("T", ["a", "b"], [["x", "1"]])))
        ### T
        <BLANKLINE>
        | a | b |
        |---|--:|
        | x | 1 |
    """
    lines = [f"### {grid.title}", "", *_table(grid)]
    return "\n".join([*lines, "", grid.note] if grid.note else lines)


def _table(grid: Grid) -> Iterator[str]:
    yield "| " + " | ".join(grid.header) + " |"
    yield "|---|" + "--:|" * (len(grid.header) - 1)
    for row in grid.rows:
        yield "| " + " | ".join(cell.strip() for cell in row) + " |"


def show(grid: Grid, console: Console | None = None) -> None:
    """Draw a grid on the terminal, intervals below their values.

    Args:
        grid: the table.
        console: where to draw; standard output by default.
    """
    # a pipe has no width of its own; 80 columns would fold every cell
    screen = console or Console(width=None if sys.stdout.isatty() else 132)
    title, caption = escape(grid.title), escape(grid.note)
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(grid.header):
        table.add_column(escape(name.replace("_", " ")), justify="right" if place else "left")
    for row in grid.rows:
        style = "dim" if "stress" in row[0] or row[0].startswith("  ") else None
        cells = [cell.replace(" [", "\n[").replace("] ", "]\n") for cell in row]
        table.add_row(*map(escape, cells), style=style)
    screen.print(table)
