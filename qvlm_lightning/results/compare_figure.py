"""Pictures of a comparison: differences over all benchmarks, scores per group of one."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.compare import Comparison
from qvlm_lightning.results.rows import Row

REFERENCE = "#5b6472"
COLOURS = ("#c44e52", "#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#ccb974", "#64b5cd")
MOST_GROUPS = 24
"""Groups that a picture shows; those with most questions are chosen."""


def colours(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Give every model its colour, the same on every benchmark."""
    entries = [(c, e) for c in comparisons for e in c.entries]
    others = dict.fromkeys(e.label for c, e in entries if e is not c.reference)
    given = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(others)}
    return {c.reference.label: REFERENCE for c in comparisons} | given


def difference_figure(comparisons: Sequence[Comparison]) -> Figure | None:
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
    figure = Figure(figsize=(8.6, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, row) in enumerate(rows):
        colour = palette[row["model"]]
        axes.plot([row["ci_low"], row["ci_high"]], [place] * 2, color=colour, linewidth=2.4)
        axes.plot(row["value"], place, "o", color=colour, markersize=6.5)
    axes.axvline(0, color=REFERENCE, linestyle="--", linewidth=1)
    names = [f"{c.name}: {row['model']}" if several else row["model"] for c, row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.06)
    references = " / ".join(dict.fromkeys(row["reference"] for _, row in rows))
    axes.set_xlabel(f"percentage points against {references}, 95 % interval")
    _tidy(axes)
    return figure


def group_figure(comparison: Comparison, palette: dict[str, str]) -> Figure:
    """Draw the score of every model per group of questions, as bars with 95 % intervals.

    Args:
        comparison: models on one benchmark.
        palette: label -> colour.
    """
    groups = [OVERALL, *largest_groups(comparison)]
    models = [entry.label for entry in comparison.entries]
    thick = 0.8 / len(models)
    height = 1.2 + len(groups) * max(0.34, 0.17 * len(models))
    figure = Figure(figsize=(8.6, height), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(models):
        rows = [comparison.find("score", model, group) for group in groups]
        kept = [(place, row) for place, row in enumerate(rows) if row is not None]
        at = np.array([place for place, _ in kept]) + (number - (len(models) - 1) / 2) * thick
        value = np.array([row["value"] for _, row in kept])
        low = value - [row["ci_low"] for _, row in kept]
        high = np.array([row["ci_high"] for _, row in kept]) - value
        axes.barh(
            at,
            value,
            height=0.86 * thick,
            color=palette[model],
            # a bootstrap's bounds may lie a rounding error inside the value
            xerr=np.maximum(0, [low, high]),
            error_kw={"ecolor": "#222222", "elinewidth": 0.9, "capsize": 1.6, "capthick": 0.9},
            label=model,
        )
    counts = [comparison.find("score", models[0], group) for group in groups]
    names = [f"{g}  (n={r['n']:,})" if r else g for g, r in zip(groups, counts, strict=True)]
    axes.set_yticks(range(len(groups)), names)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.set_xlabel("score, %; whiskers: 95 % interval")
    figure.legend(loc="outside upper left", ncols=min(3, len(models)), frameon=False, fontsize=9)
    _tidy(axes)
    return figure


def largest_groups(comparison: Comparison) -> list[str]:
    """Return the groups with most questions in the order of their names, MOST_GROUPS at most."""
    sizes = {r["group"]: r["n"] for r in comparison.rows if r["metric"] == "score"}
    kept = sorted(comparison.groups, key=lambda g: -sizes[g])[:MOST_GROUPS]
    return sorted(kept)


def _is_overall(row: Row, metric: str) -> bool:
    return row["metric"] == metric and row["group"] == OVERALL


def _tidy(axes: Axes) -> None:
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
