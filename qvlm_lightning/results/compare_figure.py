"""Pictures of a comparison: differences over all benchmarks, scores per group of one."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results import charts
from qvlm_lightning.results.compare import Comparison
from qvlm_lightning.results.rows import Row

REFERENCE = "--c0"
COLOURS = tuple(f"--c{number}" for number in range(1, 8))
"""Names of colours in the style sheet of pages, light and dark."""
MOST_GROUPS = 24
"""Groups that a picture shows; those with most questions are chosen."""


def colours(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Give every model its colour, the same on every benchmark."""
    entries = [(c, e) for c in comparisons for e in c.entries]
    others = dict.fromkeys(e.label for c, e in entries if e is not c.reference)
    given = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(others)}
    return {c.reference.label: REFERENCE for c in comparisons} | given


def difference_figure(comparisons: Sequence[Comparison]) -> Markup | None:
    """Draw the paired difference of every model on every benchmark, with intervals.

    Args:
        comparisons: one per benchmark.

    Returns:
        None where there is nothing to compare.
    """
    palette = colours(comparisons)
    rows = [(c, row) for c in comparisons for row in c.rows if _is_overall(row, "difference")]
    if not rows:
        return None
    several = len(comparisons) > 1
    drawn = [
        (
            f"{c.name}: {row['model']}" if several else row["model"],
            (row["value"], row["ci_low"], row["ci_high"]),
            palette[row["model"]],
        )
        for c, row in rows
    ]
    return charts.intervals(drawn, "Paired difference of every model on every benchmark")


def group_figure(comparison: Comparison, palette: Mapping[str, str]) -> Markup:
    """Draw the score of every model per group of questions, as bars with 95 % intervals.

    Args:
        comparison: models on one benchmark.
        palette: label -> colour.
    """
    groups = [OVERALL, *largest_groups(comparison)]
    drawn = []
    for group in groups:
        found = [(e.label, comparison.find("score", e.label, group)) for e in comparison.entries]
        bars = [
            ((row["value"], row["ci_low"], row["ci_high"]), palette[label])
            for label, row in found
            if row is not None
        ]
        first = found[0][1]
        drawn.append((f"{group}  (n={first['n']:,})" if first else group, bars))
    return charts.groups(drawn, "Score per group with intervals")


def largest_groups(comparison: Comparison) -> list[str]:
    """Return the groups with most questions in the order of their names, MOST_GROUPS at most."""
    sizes = {r["group"]: r["n"] for r in comparison.rows if r["metric"] == "score"}
    kept = sorted(comparison.groups, key=lambda g: -sizes[g])[:MOST_GROUPS]
    return sorted(kept)


def _is_overall(row: Row, metric: str) -> bool:
    return row["metric"] == metric and row["group"] == OVERALL
