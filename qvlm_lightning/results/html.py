"""A comparison as one HTML file that needs nothing else: no network, no scripts, no other files."""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from qvlm_lightning.results.compare import Comparison
from qvlm_lightning.results.compare_examples import Changes, Example, changed_places
from qvlm_lightning.results.compare_figure import (
    MOST_GROUPS,
    colours,
    difference_figure,
    group_figure,
)
from qvlm_lightning.results.compare_tables import group_grid, main_grid, own_grid
from qvlm_lightning.results.render import Grid

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #68727f; --line: #d9dee5; --back: #f6f7f9;
  --card: #fff; --bad: #b3261e; --good: #1b7a3d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #98a2b0; --line: #343c48;
  --back: #14181e; --card: #1c222b; --bad: #ff8a80; --good: #7bd88f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .5rem; } p { margin: .4rem 0; }
.dim, .note { color: var(--dim); } .note { font-size: .86rem; max-width: 60rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.1rem; margin: .8rem 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--dim); font-size: .84rem; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
tr:last-child td { border-bottom: 0; } .ci { display: block; color: var(--dim); font-size: .8rem; }
img.figure { width: 100%; max-width: 860px; display: block; background: #fff; border-radius: 8px;
  padding: .5rem; }
.chip { display: inline-block; width: .75em; height: .75em; border-radius: 50%;
  margin-right: .5em; }
.examples { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); }
.example { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; font-size: .88rem; }
.example img { display: block; width: 100%; height: 165px; object-fit: contain; background: #0001; }
.example img.small { image-rendering: pixelated; }
.example div { padding: .6rem .8rem .7rem; } .question { white-space: pre-wrap; font-weight: 550; }
.example dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .6rem; margin: .4rem 0 0; }
.example dt { color: var(--dim); } .example dd { margin: 0; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } summary { cursor: pointer; }
@media print { .card, .example { break-inside: avoid; } }
"""

Drawn = Mapping[str, Mapping[str, Changes]]


def comparison_html(comparisons: Sequence[Comparison], changes: Drawn) -> str:
    """Write the report.

    Args:
        comparisons: one per benchmark.
        changes: name of the comparison -> model -> questions whose answers changed.

    Returns:
        A whole HTML document.
    """
    palette = colours(comparisons)
    parts = [*_head(comparisons, palette)]
    for comparison in comparisons:
        parts += _benchmark(comparison, palette, changes.get(comparison.name, {}))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(comparisons: Sequence[Comparison], palette: Mapping[str, str]) -> Iterator[str]:
    yield "<h1>Comparison</h1>"
    models = " ".join(
        f'<span style="margin-right:1.4em"><span class="chip" style="background:{colour}"></span>'
        f"{escape(label)}</span>"
        for label, colour in palette.items()
    )
    yield f'<p class="dim">{models}</p>'
    figure = difference_figure(comparisons)
    if figure is not None:
        yield "<h2>Differences to the reference</h2>"
        yield _picture(figure, "Paired difference of every model on every benchmark")
        yield (
            '<p class="note">An interval that crosses the dashed line is compatible with no '
            "difference. With twenty comparisons one is expected to miss it by chance.</p>"
        )


def _benchmark(
    comparison: Comparison, palette: dict[str, str], changes: Mapping[str, Changes]
) -> Iterator[str]:
    main = main_grid(comparison)
    yield f"<h2>{escape(main.title)}</h2>"
    yield _table(main, palette)
    own = own_grid(comparison)
    if own is not None:
        yield _table(own, palette, title=True)
    groups = group_grid(comparison)
    if groups is not None:
        shown = ""
        if len(comparison.groups) > MOST_GROUPS:
            shown = f" (the {MOST_GROUPS} largest of {len(comparison.groups)} groups)"
        yield f"<h3>Score per group{shown}</h3>"
        yield _picture(group_figure(comparison, palette), "Score per group with intervals")
        yield f"<details><summary>As a table</summary>{_table(groups, palette)}</details>"
    for model, changed in changes.items():
        yield from _changes(comparison, model, changed)


def _changes(comparison: Comparison, model: str, changed: Changes) -> Iterator[str]:
    (entry,) = (entry for entry in comparison.others if entry.label == model)
    # questions, though clusters of them may be what the table counts
    lost, won = map(len, changed_places(comparison, entry))
    reference = comparison.reference.label
    for examples, verb, count in ((changed.lost, "lost", lost), (changed.won, "won", won)):
        if examples:
            yield (
                f"<h3>{escape(model)}: {len(examples)} of the questions it {verb} against "
                f'{escape(reference)} <span class="dim">(drawn at random; {count:,} in all)'
                "</span></h3>"
            )
            cards = "\n".join(_card(example, reference, model) for example in examples)
            yield f'<div class="examples">{cards}</div>'


def _card(example: Example, reference: str, model: str) -> str:
    small = ' class="small"' if example.picture.startswith("data:image/png") else ""
    image = f'<img{small} src="{example.picture}" alt="">' if example.picture else ""
    question = f'<p class="question">{escape(example.question)}</p>' if example.question else ""
    lines = [("expected", escape(example.expected) or "–")]
    lines += [
        (escape(label), _answer(*given))
        for label, given in ((reference, example.before), (model, example.after))
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lines)
    name = f'<p class="dim">{escape(example.id)}</p>'
    return f'<article class="example">{image}<div>{question}<dl>{listed}</dl>{name}</div></article>'


def _answer(text: str, score: float) -> str:
    mark = "good" if score > 50 else "bad"
    partial = "" if score in (0, 100) else f" ({score:.0f} %)"
    shown = escape(text) or "(nothing)"
    return f'<span class="{mark}">{"✓" if mark == "good" else "✗"} {shown}</span>{partial}'


def _table(grid: Grid, palette: Mapping[str, str], title: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_cell(cell, palette)}</td>" for cell in row) + "</tr>"
        for row in grid.rows
    )
    above = f"<h3>{escape(grid.title)}</h3>" if title else ""
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    return f'{above}<div class="card"><table><tr>{head}</tr>\n{rows}</table></div>{note}'


def _cell(text: str, palette: Mapping[str, str]) -> str:
    colour = palette.get(text.removesuffix(" (reference)"))
    if colour is not None:
        return f'<span class="chip" style="background:{colour}"></span>{escape(text)}'
    value = re.fullmatch(r"(\S+) (\[.*\])(?: (p=\S+))?", text)
    if value is None:
        return escape(text)
    rest = " ".join(filter(None, value.groups()[1:]))
    return f'{escape(value[1])}<span class="ci">{escape(rest)}</span>'


def _picture(figure: Figure, words: str) -> str:
    buffer = io.BytesIO()
    # a fixed salt: the same comparison gives the same file
    with rc_context({"svg.hashsalt": "comparison", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<div class="card"><img class="figure" alt="{escape(words)}" '
        f'src="data:image/svg+xml;base64,{data}"></div>'
    )
