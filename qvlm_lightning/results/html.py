"""A comparison as one HTML file that needs nothing else: no network, no scripts, no other files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qvlm_lightning.results.compare import Comparison
from qvlm_lightning.results.compare_examples import Changes, Example, changed_places
from qvlm_lightning.results.compare_figure import (
    MOST_GROUPS,
    colours,
    difference_figure,
    group_figure,
)
from qvlm_lightning.results.compare_tables import group_grid, main_grid, own_grid
from qvlm_lightning.results.pages import page, parted
from qvlm_lightning.results.printable import printable

LONGEST = 2000
"""Characters of a question or an answer."""

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
    return page(
        "compare.html",
        palette=palette,
        split=parted,
        differences=difference_figure(comparisons),
        references=" / ".join(dict.fromkeys(c.reference.label for c in comparisons)),
        benchmarks=[_benchmark(c, palette, changes.get(c.name, {})) for c in comparisons],
    )


def _benchmark(
    comparison: Comparison, palette: Mapping[str, str], changes: Mapping[str, Changes]
) -> dict[str, Any]:
    many = len(comparison.groups) > MOST_GROUPS
    groups = group_grid(comparison)
    return {
        "main": main_grid(comparison),
        "own": own_grid(comparison),
        "groups": groups,
        "shown": f" (the {MOST_GROUPS} largest of {len(comparison.groups)} groups)" if many else "",
        "picture": None if groups is None else group_figure(comparison, palette),
        "changes": [
            drawn
            for model, changed in changes.items()
            for drawn in _drawn(comparison, model, changed)
        ],
    }


def _drawn(comparison: Comparison, model: str, changed: Changes) -> Iterator[dict[str, Any]]:
    (entry,) = (entry for entry in comparison.others if entry.label == model)
    # questions, though clusters of them may be what the table counts
    lost, won = map(len, changed_places(comparison, entry))
    for examples, verb, count in ((changed.lost, "lost", lost), (changed.won, "won", won)):
        if examples:
            yield {
                "model": model,
                "reference": comparison.reference.label,
                "examples": [_bounded(example) for example in examples],
                "verb": verb,
                "count": count,
            }


def _bounded(example: Example) -> Example:
    """Return an example without control characters, its texts bounded."""
    (before, old), (after, new) = example.before, example.after
    lines = [printable(line, LONGEST) for line in example.question.splitlines()[:40]]
    return replace(
        example,
        id=printable(example.id),
        question=_joined(lines),
        expected=printable(example.expected, LONGEST),
        before=(printable(before, LONGEST), old),
        after=(printable(after, LONGEST), new),
    )


def _joined(lines: Sequence[str]) -> str:
    """Join lines, at most :data:`LONGEST` characters of them."""
    text = "\n".join(lines)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
