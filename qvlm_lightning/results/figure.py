"""One picture of a table: accuracy and divergence of every variant, with intervals."""

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from qvlm_lightning.results.render import Group, groups, in_split
from qvlm_lightning.results.rows import Row

COLOURS = {
    "fp": "#333333",
    "rtn": "#937860",
    "sequential": "#4c72b0",
    "cdm": "#55a868",
    "veo": "#dd8452",
    "qvlm": "#c44e52",
}
OTHER = "#8172b3"


def results_figure(rows: Sequence[Row]) -> Figure:
    """Draw accuracy and KL per variant; whiskers are 95 % intervals, or the range over seeds.

    Args:
        rows: rows of ``results.json``.

    Returns:
        A figure of two panels that share their variants.
    """
    variants = groups(rows)
    height = 1.3 + 0.36 * len(variants)
    figure = Figure(figsize=(9.0, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for axes, metric in ((left, "accuracy"), (right, "kl")):
        for place, group in enumerate(variants):
            _dot(axes, place, group, metric)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    for group in variants:
        if group.method == "fp" and not group.stress:
            value = group.find("accuracy")[0]["value"]
            left.axvline(value, color=COLOURS["fp"], linestyle="--", linewidth=0.9)
    left.set_yticks(range(len(variants)), [group.label for group in variants])
    left.invert_yaxis()
    left.set_xlabel("accuracy, %")
    left.margins(y=0.08)
    right.set_xlabel("KL to full precision, nats")
    _log_scale(right, [row for group in variants for row in group.find("kl")])
    seeds = {row["seed"] for row in rows} - {None}
    whiskers = "range over calibration seeds" if len(seeds) > 1 else "95 % interval"
    count = max(row["n"] for row in rows)
    questions = f"{count:,} questions{in_split(rows[0]['split'])}"
    figure.suptitle(f"{rows[0]['model']}: {questions}; whiskers: {whiskers}", fontsize=10)
    return figure


def _log_scale(axes: Axes, rows: list[Row]) -> None:
    """Use whole decades, so that every picture has labels that can be read."""
    bounds = [x for row in rows for x in (row["ci_low"], row["ci_high"], row["value"]) if x > 0]
    if bounds:
        axes.set_xscale("log")
        low, high = math.log10(min(bounds)), math.log10(max(bounds))
        axes.set_xlim(10 ** math.floor(low), 10 ** math.ceil(high))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _dot(axes: Axes, place: int, group: Group, metric: str) -> None:
    rows = group.find(metric)
    if not rows:
        return
    values = [row["value"] for row in rows]
    low, high = min(values), max(values)
    if len(rows) == 1:
        low, high = rows[0]["ci_low"], rows[0]["ci_high"]
    colour = COLOURS.get(group.method, OTHER)
    face = "white" if group.stress else colour
    axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
    mean = fmean(values)
    axes.plot(mean, place, "o", color=colour, markerfacecolor=face, markersize=7)
    text = f"{mean:.1f}" if metric == "accuracy" else f"{mean:.3g}"
    axes.annotate(
        text,
        (mean, place),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color="#444444",
    )
    if len(values) > 1:
        axes.plot(values, [place] * len(values), "|", color=colour, markersize=9)
