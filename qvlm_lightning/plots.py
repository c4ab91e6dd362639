"""Pictures of a calibration: pure functions of plain data that return matplotlib figures.

Figures are built through the object interface: no pyplot, no display, nothing to close.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

T = TypeVar("T")

BLOCK_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")
TOWER_ORDER = ("vision", "projector", "language")

# site name -> (values, low, high): what passed the site and the range its quantizer keeps
Clips = Mapping[str, tuple[Tensor, float, float]]


def partition_figure(
    dependency: Mapping[str, Sequence[float]],
    threshold: Mapping[str, float],
    partition: Mapping[str, Sequence[Sequence[int]]],
) -> Figure:
    """Draw D(k, k+1) per edge over the blocks it led to (eq. 6 and 7), one panel per tower.

    A tower of one layer has no edge; it is left out where others have something to show.

    Args:
        dependency: tower -> the n-1 values D(k, k+1) in nats.
        threshold: tower -> h_0, drawn as a dashed line; a tower may be absent.
        partition: tower -> inclusive [first, last] of each block, drawn as bands of one colour.

    Example:
        >>> figure = partition_figure({"language": [0.9, 0.4]}, {"language": 0.65},
        ...                           {"language": [[0, 1], [2, 2]]})
        >>> [axes.get_title() for axes in figure.axes]
        ['language: 3 layers in 2 blocks']
    """
    towers = _ordered(partition)
    towers = [tower for tower in towers if dependency.get(tower)] or towers
    layers = [partition[tower][-1][1] + 1 for tower in towers]
    widths = [max(count, 2) for count in layers]
    figure = Figure(figsize=(2.0 + 0.75 * sum(widths), 3.2), layout="constrained")
    panels = figure.subplots(1, len(towers), squeeze=False, width_ratios=widths)[0]
    for axes, tower, count in zip(panels, towers, layers, strict=True):
        for index, (first, last) in enumerate(partition[tower]):
            colour = BLOCK_COLOURS[index % len(BLOCK_COLOURS)]
            axes.axvspan(first - 0.46, last + 0.46, color=colour, alpha=0.3, lw=0)
        edges = np.arange(count - 1) + 0.5
        axes.plot(edges, dependency.get(tower, ()), "o-", color="black", label="dependency")
        if tower in threshold:
            axes.axhline(threshold[tower], ls="--", color="#555555", label="threshold h₀")
        axes.set_title(
            f"{tower}: {_count(count, 'layer')} in {_count(len(partition[tower]), 'block')}"
        )
        axes.set_xticks(range(count))
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_xlabel("layer k (one colour: one block)")
    panels[0].set_ylabel("dependency D(k, k+1)")
    panels[-1].legend(loc="best", fontsize="small")
    return figure


def percentile_figure(percentiles: Mapping[str, float]) -> Figure:
    """Draw the chosen percentile of every site as a heat map, layers in rows and sites in columns.

    Args:
        percentiles: site name, ``<layer>.<site>``, -> percentile; 1.0 means nothing is clipped.

    Example:
        >>> figure = percentile_figure({"layers.0.mlp_in": 1.0, "layers.1.mlp_in": 0.985})
        >>> figure.axes[0].get_title()
        'layers'
    """
    tables = {prefix: _table(sites) for prefix, sites in by_prefix(percentiles).items()}
    low = min([*percentiles.values(), 0.98])
    rows = [len(table) for _, _, table in tables.values()]
    columns = [len(sites) for _, sites, _ in tables.values()]
    size = (2.5 + 1.1 * sum(columns), 1.4 + 0.42 * max(rows, default=1))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(len(tables), 1), squeeze=False, width_ratios=columns or None)[0]
    image = None
    for axes, (prefix, (layers, sites, table)) in zip(panels, tables.items(), strict=False):
        image = axes.imshow(table, vmin=low, vmax=1.0, cmap="YlGnBu_r", aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                colour = "white" if value < (1 + low) / 2 else "black"
                axes.text(column, row, f"{value:.3f}", ha="center", color=colour, size="x-small")
        axes.set_xticks(range(len(sites)), sites, rotation=30, ha="right", fontsize="small")
        axes.set_yticks(range(len(layers)), layers, fontsize="small")
        axes.set_title(prefix, fontsize="small")
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="percentile")
    return figure


def clip_histogram_figure(clips: Clips, bins: int = 60) -> Figure:
    """Draw what passes each site, with the bounds of its quantizer; the clipped tails are shaded.

    Counts are on a log scale: it is the rare, far values that a percentile trades away.

    Args:
        clips: site name -> (values of any shape, low, high).
        bins: number of bars per panel.

    Example:
        >>> figure = clip_histogram_figure({"layers.0.o_in": (torch.linspace(-3, 3, 99), -2, 2)})
        >>> figure.axes[0].get_title()
        'layers.0.o_in'
    """
    columns = min(4, max(len(clips), 1))
    rows = max(-(-len(clips) // columns), 1)
    # a fixed grid: letting the layout engine solve forty panels takes seconds
    height = 1.8 * rows + 0.3
    figure = Figure(figsize=(3.0 * columns, height))
    figure.subplots_adjust(0.06, 0.3 / height, 0.99, 1 - 0.3 / height, hspace=0.5, wspace=0.25)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (site, (values, low, high)) in zip(panels, clips.items(), strict=False):
        _clip_panel(axes, values, low, high, bins)
        axes.set_title(site, fontsize="x-small")
    for axes in panels[len(clips) :]:
        axes.set_axis_off()
    return figure


def _clip_panel(axes: Axes, values: Tensor, low: float, high: float, bins: int) -> None:
    flat = values.detach().reshape(-1).to(torch.float32).cpu().numpy()
    axes.stairs(*np.histogram(flat, bins=bins), fill=True, color="#4c72b0")
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    left, right = axes.get_xlim()
    for start, end in ((left, low), (high, right)):
        if start < end:
            axes.axvspan(start, end, color="#c44e52", alpha=0.2, lw=0)
    for bound in (low, high):
        axes.axvline(bound, color="#c44e52", lw=1)
    axes.set_xlim(min(left, low), max(right, high))
    axes.tick_params(labelsize="x-small")


def _table(percentiles: Mapping[str, float]) -> tuple[list[str], list[str], np.ndarray]:
    """Lay sites out as (layers, site names, [layers, sites] values; NaN where a layer has none)."""
    split = {name: name.rpartition(".")[::2] for name in percentiles}
    layers = list(dict.fromkeys(layer for layer, _ in split.values()))
    sites = list(dict.fromkeys(site for _, site in split.values()))
    table = np.full((len(layers), len(sites)), np.nan)
    for name, (layer, site) in split.items():
        table[layers.index(layer), sites.index(site)] = percentiles[name]
    indices = [layer.rpartition(".")[2] for layer in layers]
    return [index if index.isdigit() else "" for index in indices], sites, table


def _ordered(towers: Mapping[str, Sequence[Sequence[int]]]) -> list[str]:
    """Towers with layers, in the order of the forward pass; unknown names last."""
    present = [tower for tower in towers if towers[tower]]
    return sorted(present, key=lambda t: TOWER_ORDER.index(t) if t in TOWER_ORDER else 99)


def by_prefix(sites: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Group ``<prefix>.<index>.<site>`` by prefix, in order of appearance.

    Example:
        >>> by_prefix({"a.layers.0.x": 1, "a.layers.1.x": 2, "b.y": 3})
        {'a.layers': {'a.layers.0.x': 1, 'a.layers.1.x': 2}, 'b': {'b.y': 3}}
    """
    groups: dict[str, dict[str, T]] = {}
    for name, value in sites.items():
        layer = name.rpartition(".")[0]
        groups.setdefault(re.sub(r"\.\d+$", "", layer), {})[name] = value
    return groups


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
