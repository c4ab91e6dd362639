"""Small pictures for pages, as SVG with colours of the page's style sheet: light and dark at once.

Lengths are CSS pixels. Every text that comes from a file is bounded and escaped.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from qvlm_lightning.results import svg

Histogram = Mapping[str, Any]
Interval = tuple[float, float, float]
"""Value, lower and upper end."""


def bars(rows: Sequence[tuple[str, float, str]], words: str, width: int = 330) -> Markup:
    """Draw a bar per row, its label above it and its value beside it.

    Args:
        rows: label, value of at least 0, the value in words.
        words: what the picture shows, for those who do not see it.
        width: of the picture.
    """
    top = max((value for _, value, _ in rows if math.isfinite(value)), default=0) or 1
    parts = []
    for place, (label, value, text) in enumerate(rows):
        y = 36 * place
        length = (width - 95) * min(max(value, 0), top) / top if math.isfinite(value) else 0
        parts += [
            svg.text(0, y + 13, label),
            svg.rect(0, y + 18, max(length, 1), 11, "b"),
            svg.text(max(length, 1) + 6, y + 28, text, "d"),
        ]
    return svg.picture(width, 36 * len(rows), words, parts)


def merging(
    dependency: Sequence[float],
    threshold: float | None,
    blocks: Sequence[Sequence[int]],
    words: str,
) -> Markup:
    """Draw the dependency of neighbouring layers against the threshold, above the blocks.

    Args:
        dependency: D(k, k+1) of the n - 1 pairs.
        threshold: h_0.
        blocks: inclusive [first, last] of each.
        words: see :func:`bars`.
    """
    count, high, left = len(dependency) + 1, 120, 40
    step = min(44, max(22, 620 // count))
    known = [x for x in (*dependency, threshold) if x is not None and math.isfinite(x)]
    top = 1.15 * max([*known, 1e-12])
    of_layer = {k: b for b, (first, last) in enumerate(blocks) for k in range(first, last + 1)}
    parts = [svg.text(0, 12, f"{top / 1.15:.3g}", "d"), svg.text(0, high, "0", "d")]
    for k, value in enumerate(dependency):
        height = high * (value / top if math.isfinite(value) else 0)
        kind = "b" if of_layer.get(k) == of_layer.get(k + 1) else "g"
        x = left + step * (k + 1) - step * 0.3
        parts.append(svg.rect(x, high - height, step * 0.6, height, kind))
    if threshold is not None and math.isfinite(threshold):
        y = high - high * threshold / top
        parts.append(svg.line(left, y, left + step * count, y, "t"))
    for index, (first, last) in enumerate(blocks):
        x, wide = left + step * first + 2, step * (last - first + 1) - 4
        parts.append(svg.rect(x, high + 8, wide, 24, f"p{index % 2}", 5))
    parts += [svg.text(left + step * (k + 0.5), high + 25, str(k), "m") for k in range(count)]
    return svg.picture(left + step * count + 4, high + 36, words, parts)


def clipping(histogram: Histogram, words: str, width: int = 280) -> Markup:
    """Draw how often values occur, on a log scale, and what lies outside of the bounds.

    Args:
        histogram: ``from``, ``to``, ``counts``, and the bounds ``low`` and ``high``.
        words: see :func:`bars`.
        width: see :func:`bars`.
    """
    counts = list(histogram["counts"])
    start, end, low, high = (float(histogram[k]) for k in ("from", "to", "low", "high"))
    first, last = min(start, low), max(end, high)
    scale = width / ((last - first) or 1)
    tall = 74
    most = math.log1p(max([*counts, 1]))
    wide = (end - start) / max(len(counts), 1) * scale
    parts = []
    for place, count in enumerate(counts):
        height = tall * math.log1p(count) / most
        x = (start - first) * scale + place * wide
        parts.append(svg.rect(x, tall - height, max(wide - 0.5, 0.5), height, "b"))
    for left, right in ((first, low), (high, last)):
        if right > left:
            parts.append(svg.rect((left - first) * scale, 0, (right - left) * scale, tall, "c"))
    parts += [svg.line((x - first) * scale, 0, (x - first) * scale, tall, "x") for x in (low, high)]
    parts += [
        svg.text(0, tall + 15, f"{first:.3g}", "d"),
        svg.text(width / 2, tall + 15, f"kept: {low:.3g} to {high:.3g}", "md"),
        svg.text(width, tall + 15, f"{last:.3g}", "e"),
    ]
    return svg.picture(width, tall + 20, words, parts)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float], words: str
) -> Markup:
    """Draw a table of numbers up to 1, the darker the smaller.

    Args:
        rows: their names.
        columns: their names.
        values: (row, column) -> value; absent ones stay empty.
        words: see :func:`bars`.
    """
    wide, tall, left, top = 58, 21, 46, 22
    least = min([x for x in values.values() if math.isfinite(x)], default=1.0)
    parts = [svg.text(left + wide * (i + 0.5), 14, name, "md") for i, name in enumerate(columns)]
    for j, row in enumerate(rows):
        y = top + tall * j
        parts.append(svg.text(left - 6, y + 15, row, "e"))
        for i, column in enumerate(columns):
            value = values.get((row, column))
            if value is None or not math.isfinite(value):
                continue
            share = (1 - value) / (1 - least) if least < 1 else 0.0
            x = left + wide * i
            parts.append(svg.rect(x, y, wide - 2, tall - 2, "b", 3, 0.08 + 0.62 * share))
            parts.append(svg.text(x + wide / 2 - 1, y + 14, f"{value:.4g}", "m"))
    return svg.picture(left + wide * len(columns), top + tall * len(rows), words, parts)


def changes(
    names: Sequence[str], before: Sequence[float | None], after: Sequence[float], words: str
) -> Markup:
    """Draw a value per column, hollow before and filled after.

    Args:
        names: of the columns.
        before: a value each, or none.
        after: a value each.
        words: see :func:`bars`.
    """
    high, left = 150, 42
    step = min(44, max(20, 620 // max(len(names), 1)))
    known = [x for x in (*before, *after) if x is not None and math.isfinite(x)]
    low, top = min(known, default=0.0), max(known, default=1.0)
    span = (top - low) or 1.0

    def place(value: float) -> float:
        return 8 + (high - 16) * (top - value) / span

    wide = left + step * len(names)
    parts = []
    for value in (low, (low + top) / 2, top):
        parts += [svg.line(left, place(value), wide, place(value), "a")]
        parts += [svg.text(left - 6, place(value) + 4, f"{value:.3g}", "e")]
    for index, (name, old, new) in enumerate(zip(names, before, after, strict=True)):
        x = left + step * (index + 0.5)
        parts.append(svg.text(x, high + 14, name, "m"))
        if old is not None and math.isfinite(old) and math.isfinite(new):
            parts.append(svg.line(x, place(old), x, place(new), "l"))
            parts.append(svg.circle(x, place(old), "h"))
        if math.isfinite(new):
            parts.append(svg.circle(x, place(new), "f"))
    return svg.picture(wide, high + 20, words, parts)


def course(names: Sequence[str], values: Sequence[float], words: str) -> Markup:
    """Draw values that follow each other, joined by a line.

    Args:
        names: of the moments.
        values: one each.
        words: see :func:`bars`.
    """
    high, left, step = 120, 52, min(90, max(34, 560 // max(len(names), 1)))
    known = [x for x in values if math.isfinite(x)]
    low, top = min(known, default=0.0), max(known, default=1.0)
    span = (top - low) or 1.0
    spots = [
        (left + step * (i + 0.5), 8 + (high - 16) * (top - x) / span)
        for i, x in enumerate(values)
        if math.isfinite(x)
    ]
    wide = left + step * len(names)
    parts = []
    for value in (low, top):
        y = 8 + (high - 16) * (top - value) / span
        parts += [svg.line(left, y, wide, y, "a"), svg.text(left - 6, y + 4, f"{value:.4g}", "e")]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts.append(Markup('<polyline class="l" points="{}"/>').format(joined))
    parts += [svg.circle(x, y, "f") for x, y in spots]
    parts += [svg.text(left + step * (i + 0.5), high + 14, n, "m") for i, n in enumerate(names)]
    return svg.picture(wide, high + 20, words, parts)


def intervals(rows: Sequence[tuple[str, Interval, str]], words: str, width: int = 330) -> Markup:
    """Draw a value with its interval per row, on one scale with a line at 0.

    Args:
        rows: label; value, lower and upper end; colour, a name of the style sheet.
        words: see :func:`bars`.
        width: see :func:`bars`.
    """
    ends = [0.0, *(x for _, interval, _ in rows for x in interval if math.isfinite(x))]
    low, top = min(ends), max(ends)
    scale = (width - 12) / ((top - low) or 1)
    parts = [svg.line(6 - low * scale, 0, 6 - low * scale, 34 * len(rows), "t")]
    for place, (label, interval, colour) in enumerate(rows):
        y = 34 * place + 24
        x, start, end = (6 + (value - low) * scale for value in interval)
        drawn = [svg.line(start, y, end, y, "i"), svg.circle(x, y, "i")]
        parts += [svg.text(0, y - 11, f"{label}: {interval[0]:+.1f}"), svg.coloured(colour, drawn)]
    return svg.picture(width, 34 * len(rows), words, parts)


def magnitudes(rows: Sequence[tuple[str, Interval, str]], words: str, width: int = 330) -> Markup:
    """Draw a positive value with its interval per row on one logarithmic scale, marked at powers
    of ten.

    Args:
        rows: label; value, lower and upper end; colour, a name of the style sheet. What is not
            above 0 is drawn at the left edge.
        words: see :func:`bars`.
        width: see :func:`bars`.
    """
    known = [x for _, interval, _ in rows for x in interval if math.isfinite(x) and x > 0]
    low, top = math.log10(min(known, default=0.1)), math.log10(max(known, default=1.0))
    scale = (width - 12) / ((top - low) or 1)

    def place(value: float) -> float:
        return 6 + (max(math.log10(value), low) - low) * scale if value > 0 else 6

    tall = 34 * len(rows)
    parts = []
    for power in range(math.ceil(low), math.floor(top) + 1):
        x = place(10.0**power)
        parts += [svg.line(x, 0, x, tall, "a"), svg.text(x, tall + 13, f"{10.0**power:g}", "m")]
    for number, (label, interval, colour) in enumerate(rows):
        y = 34 * number + 24
        x, start, end = map(place, interval)
        drawn = [svg.line(start, y, end, y, "i"), svg.circle(x, y, "i")]
        parts += [svg.text(0, y - 11, f"{label}: {interval[0]:.3g}"), svg.coloured(colour, drawn)]
    return svg.picture(width, tall + 18, words, parts)


def groups(
    rows: Sequence[tuple[str, Sequence[tuple[Interval, str]]]], words: str, width: int = 330
) -> Markup:
    """Draw bars from 0 to 100 with intervals, several under one label.

    Args:
        rows: label, and per bar: value, lower and upper end; colour, a name of the style sheet.
        words: see :func:`bars`.
        width: see :func:`bars`.
    """
    scale = (width - 50) / 100
    parts, y = [], 0
    for label, bars_ in rows:
        parts.append(svg.text(0, y + 13, label))
        y += 18
        for (value, low, high), colour in bars_:
            parts.append(svg.coloured(colour, [svg.rect(0, y, max(value * scale, 1), 10, "v", 2)]))
            parts.append(svg.line(low * scale, y + 5, high * scale, y + 5, "w"))
            parts.append(svg.text(max(value, high) * scale + 6, y + 10, f"{value:.1f}", "d"))
            y += 15
        y += 5
    return svg.picture(width, y, words, parts)
