"""The rows of ``results.json`` as tables for people: on the terminal and in Markdown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.rows import IDENTITY, Row
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import variant_title

NONE = "–"
_FRAME = 2  # columns of the terminal that a table's border takes
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
    stress: Stress
    """How it was made harder than trained."""
    method: str
    """Calibration method, or ``fp``."""
    rows: list[Row]
    """Its rows of ``results.json``."""

    def find(self, metric: str, task: str = OVERALL) -> list[Row]:
        """Return one row per calibration seed."""
        return [row for row in self.rows if row["metric"] == metric and row["task"] == task]

    def facts(self, key: str) -> list[Any]:
        """Return what the search of each calibration seed is said to be, unless that is nothing."""
        facts = [row[key] for row in self.find("accuracy")]
        return [fact for fact in facts if fact is not None]


def groups(rows: Sequence[Row]) -> list[Group]:
    """Gather rows by variant, seeds together, in the order of their first row."""
    members: dict[tuple, list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(row[key] for key in IDENTITY), []).append(row)
    modes = {row["activation_mode"] for row in rows if row["method"] != "fp"}
    variants = []
    for own_rows in members.values():
        first, stress = own_rows[0], Stress.of(own_rows[0])
        method, mode = first["method"], first["activation_mode"]
        shown = f" {mode}" if len(modes) > 1 and method != "fp" else ""
        title = variant_title(method, first["scheme"], first["variant"])
        label = f"{title}{shown} {stress.in_brackets}".rstrip()
        variants.append(Group(label, stress, method, own_rows))
    return variants


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Lay out the main table and the accuracy per family of each split.

    Args:
        rows: rows of ``results.json``.
    """
    drawn = []
    for split in dict.fromkeys(row["split"] for row in rows):
        variants = groups([row for row in rows if row["split"] == split])
        drawn += [_main(variants, split), _families(variants, split)]
    return drawn


def in_split(split: str) -> str:
    """Write the split behind a title; nothing where the data names none."""
    return f", {split} split" if split else ""


def _main(variants: list[Group], split: str) -> Grid:
    columns: list[tuple[str, Callable[[Group], str]]] = [
        ("accuracy %", lambda g: cell(g.find("accuracy"), points)),
        ("minus fp", lambda g: cell(g.find("accuracy_minus_fp"), signed)),
        ("minus rtn", lambda g: cell(g.find("accuracy_minus_rtn"), signed)),
        ("KL to fp, nats", lambda g: cell(g.find("kl"), nats)),
        ("agreement %", lambda g: cell(g.find("agreement"), points, interval=False)),
        ("parse failures %", lambda g: cell(g.find("parse_failures"), points, interval=False)),
        ("n", lambda g: f"{g.find('accuracy')[0]['n']:,}"),
        ("layer-forwards", lambda g: _mean(g.facts("layer_forwards"), whole)),
        ("search, s", lambda g: _mean(g.facts("search_seconds"), points)),
        ("answers, s", lambda g: cell(g.find("seconds"), points, interval=False)),
    ]
    note = []
    for key, name, write in (("objective", "objective", str), ("candidates", "grid", grid_text)):
        written = {write(fact) for group in variants for fact in group.facts(key)}
        if len(written) == 1:
            note.append(f"{name} {written.pop()}")
        elif written:
            columns.insert(0, (name, partial(_same, key=key, write=write)))
    cells = {name: [write(group) for group in variants] for name, write in columns}
    empty = {"layer-forwards", "search, s"} & {n for n, col in cells.items() if set(col) == {NONE}}
    header = ["variant", *(name for name in cells if name not in empty)]
    lines = [
        [group.label, *(cells[name][place] for name in header[1:])]
        for place, group in enumerate(variants)
    ]
    return Grid(f"Results{in_split(split)}", header, lines, _note(variants, note))


def _note(variants: list[Group], facts: list[str]) -> str:
    rows = [row for group in variants for row in group.rows]
    modes = sorted({row["activation_mode"] for row in rows} - {"none"})
    seeds = {row["seed"] for row in rows} - {None}
    brackets = (
        f"mean over {len(seeds)} calibration seeds, lowest and highest in brackets"
        if len(seeds) > 1
        else "95 % intervals in brackets, differences on the same questions, p of McNemar's test"
    )
    search = f"; search: {', '.join(facts)}" if facts else ""
    folded = (
        " Outliers in norm channels are undone by folding the norms into the layers behind them."
        if any(group.stress.outlier_scale != 1 for group in variants)
        else ""
    )
    return f"Activations: {', '.join(modes) or 'fp'}{search}; {brackets}.{folded}"


def _mean(values: list[float], number: Number) -> str:
    return number(fmean(values)) if values else NONE


def _same(group: Group, key: str, write: Callable[[Any], str]) -> str:
    """Write what all seeds of a variant have in common, or all that they have."""
    return " / ".join(dict.fromkeys(map(write, group.facts(key)))) or NONE


def grid_text(candidates: Sequence[float]) -> str:
    """Write the candidates of a search: how many, from where to where.

    Example:
        >>> grid_text([1.0, 0.995, 0.98]), grid_text([1.0])
        ('3 of 0.98 to 1', '1')
    """
    low, high = min(candidates), max(candidates)
    return f"{high:g}" if low == high else f"{len(candidates)} of {low:g} to {high:g}"


def _families(variants: list[Group], split: str) -> Grid:
    tasks = list(
        dict.fromkeys(row["task"] for g in variants for row in g.rows if row["task"] != OVERALL)
    )
    lines = []
    for group in variants:
        for metric, label in (
            ("accuracy", group.label),
            ("accuracy_blind", "  blind guess"),
            ("accuracy_shuffled", "  shuffled images"),
        ):
            if group.find(metric):
                cells = [cell(group.find(metric, task), points, interval=False) for task in tasks]
                lines.append([label, cell(group.find(metric), points, interval=False), *cells])
    note = "Percent correct. Shuffled images: only questions that have an image."
    title = f"Accuracy {'per family' if tasks else 'and controls'}{in_split(split)}"
    return Grid(title, ["variant", "all", *tasks], lines, note)


def whole(value: float) -> str:
    """Write a count."""
    return f"{value:,.0f}"


def points(value: float) -> str:
    """Write percent."""
    return f"{value:.1f}"


def signed(value: float) -> str:
    """Write a difference of percentages."""
    return f"{value:+.1f}"


def nats(value: float) -> str:
    """Write a divergence."""
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def cell(rows: Sequence[Row], number: Number, interval: bool = True) -> str:
    """Write a figure: its value with its interval and p-value, or mean and range of several.

    Args:
        rows: rows of the figure, one per calibration seed; none is a dash.
        number: writes a value.
        interval: whether to write the interval or range.
    """
    if not rows:
        return NONE
    values = [row["value"] for row in rows]
    text = number(fmean(values))
    if len(rows) > 1:
        return f"{text} [{number(min(values))}, {number(max(values))}]" if interval else text
    row = rows[0]
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
    """Draw a grid on the terminal, intervals below their values; columns that do not fit follow
    below, each time with the names of the rows.

    Args:
        grid: the table.
        console: where to draw; standard output by default, as wide as the terminal or ``COLUMNS``.
    """
    screen = console or Console()
    parts = _side_by_side(grid, screen.width)
    for number, columns in enumerate(parts):
        title = escape(grid.title) if number == 0 else None
        caption = escape(grid.note) if number == len(parts) - 1 else None
        table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place in columns:
            name = escape(grid.header[place].replace("_", " "))
            table.add_column(name, justify="right" if place else "left")
        for row in grid.rows:
            style = "dim" if "stress" in row[0] or row[0].startswith("  ") else None
            table.add_row(*(escape(_lines(row[place])) for place in columns), style=style)
        screen.print(table)


def _side_by_side(grid: Grid, width: int) -> list[list[int]]:
    """Return which columns stand beside each other, the first one always."""
    cells = [[row[place] for row in grid.rows] for place in range(len(grid.header))]
    words = [max(map(len, name.replace("_", " ").split()), default=0) for name in grid.header]
    widths = [
        1 + max([word, *(len(line) for text in column for line in _lines(text).split("\n"))])
        for word, column in zip(words, cells, strict=True)
    ]
    parts, used = [[0]], widths[0]
    for place in range(1, len(widths)):
        # a name of a row that leaves room for nothing is folded
        if len(parts[-1]) > 1 and used + widths[place] > width - _FRAME:
            parts.append([0])
            used = widths[0]
        parts[-1].append(place)
        used += widths[place]
    return parts


def _lines(cell: str) -> str:
    return cell.replace(" [", "\n[").replace("] ", "]\n")
