"""Cut a chain of layers into blocks that are searched jointly (eq. 7).

``dependency[k]`` is D(k, k+1), the edge between layers k and k + 1, so n layers have n - 1 edges.
Blocks are inclusive (first, last). A block of several layers must exceed the threshold: its edges'
sum must be more than the number of its edges times h_0, by more than the noise of floating-point
sums.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from random import Random

from qvlm_lightning.errors import InputError

Blocks = list[tuple[int, int]]


def partition_blocks(
    dependency: Sequence[float],
    threshold: float,
    max_depth: int,
    boundaries: Iterable[int] = (),
    *,
    units: int | None = None,
) -> Blocks:
    """Cut greedily from left to right: every block is the longest admissible one.

    Args:
        dependency: the n - 1 edge values D(k, k+1).
        threshold: h_0, in the units of the edge values.
        max_depth: most layers in a block.
        boundaries: edges k that may not lie inside a block (their values do not matter, if finite).
        units: n, only needed for a chain of no layers at all.

    Returns:
        Inclusive (first, last) of every block, in order; together they are all layers.

    Raises:
        InputError: a value that is not finite, a depth below 1, a boundary that is no edge.

    Example:
        >>> partition_blocks([1.0, 3.0, 3.0, 1.0], threshold=2.0, max_depth=3)
        [(0, 0), (1, 3), (4, 4)]
    """
    edges, cuts, count = _checked(dependency, threshold, max_depth, boundaries, units)
    blocks: Blocks = []
    first = 0
    while first < count:
        last = first
        for end in range(first + 1, min(first + max_depth, count)):
            if end - 1 in cuts:
                break
            if _exceeds(edges[first:end], threshold):
                last = end
        blocks.append((first, last))
        first = last + 1
    return blocks


def fixed_blocks(units: int, depth: int) -> Blocks:
    """Cut into blocks of ``depth`` layers, the last one shorter if need be; a control.

    Example:
        >>> fixed_blocks(5, 3)
        [(0, 2), (3, 4)]
    """
    return [(first, min(first + depth, units) - 1) for first in range(0, units, depth)]


def shuffled_blocks(blocks: Blocks, seed: int) -> Blocks:
    """Cut into blocks of the same sizes in a random order; a control for where a method cuts.

    Example:
        >>> sizes = [last - first for first, last in shuffled_blocks([(0, 2), (3, 3), (4, 5)], 0)]
        >>> sorted(sizes)
        [0, 1, 2]
    """
    sizes = [last - first + 1 for first, last in blocks]
    Random(seed).shuffle(sizes)
    ends = list(itertools.accumulate(sizes))
    return [(end - size, end - 1) for end, size in zip(ends, sizes, strict=True)]


def partition_blocks_dp(
    dependency: Sequence[float],
    threshold: float,
    max_depth: int,
    boundaries: Iterable[int] = (),
    *,
    units: int | None = None,
) -> Blocks:
    """Cut so that :func:`excess` is the largest possible; ties go to more blocks.

    Arguments, result and errors are those of :func:`partition_blocks`.

    Example:
        >>> partition_blocks([1.5, 9.0, 9.0, 1.0], threshold=1.0, max_depth=3)
        [(0, 2), (3, 3), (4, 4)]
        >>> partition_blocks_dp([1.5, 9.0, 9.0, 1.0], threshold=1.0, max_depth=3)
        [(0, 0), (1, 3), (4, 4)]
    """
    edges, cuts, count = _checked(dependency, threshold, max_depth, boundaries, units)
    # exact arithmetic, and edges that equal the threshold up to noise: ties are ties
    gain = [
        Fraction(d) - Fraction(threshold) if abs(d - threshold) > _noise(d) else 0 for d in edges
    ]
    best: list[tuple[Fraction, int]] = [(Fraction(0), 0)] * (count + 1)
    ends = [0] * count
    for first in reversed(range(count)):
        inside = Fraction(0)
        best[first], ends[first] = (best[first + 1][0], best[first + 1][1] + 1), first
        for end in range(first + 1, min(first + max_depth, count)):
            if end - 1 in cuts:
                break
            inside += gain[end - 1]
            value = (inside + best[end + 1][0], best[end + 1][1] + 1)
            if value > best[first] and _exceeds(edges[first:end], threshold):
                best[first], ends[first] = value, end
    blocks: Blocks = []
    first = 0
    while first < count:
        blocks.append((first, ends[first]))
        first = ends[first] + 1
    return blocks


def excess(blocks: Blocks, dependency: Sequence[float], threshold: float) -> float:
    """Return how far the edges inside blocks exceed the threshold, summed.

    Example:
        >>> excess([(0, 1), (2, 2)], [3.0, 5.0], threshold=2.0)
        1.0
    """
    inside = [float(d) for first, last in blocks for d in dependency[first:last]]
    return math.fsum(inside) - len(inside) * threshold


def resolve_threshold(threshold: str | float, dependency: Sequence[float]) -> float:
    """Return h_0 as a number.

    Args:
        threshold: ``"mean"`` of the edges, ``"quantile:q"`` of them with q in [0, 1], or a number.
        dependency: the edge values of one tower.

    Returns:
        h_0; 0 if there are no edges and so nothing to decide.

    Raises:
        InputError: the threshold cannot be read or is not finite.

    Example:
        >>> resolve_threshold("mean", [1.0, 2.0, 6.0])
        3.0
        >>> resolve_threshold("quantile:0.5", [1.0, 2.0, 6.0])
        2.0
    """
    edges = _finite_edges(dependency)
    kind, _, rest = threshold.partition(":") if isinstance(threshold, str) else ("", "", "")
    if kind == "mean" and not rest:
        return math.fsum(edges) / len(edges) if edges else 0.0
    try:
        number = float(rest if kind == "quantile" else threshold)
    except (TypeError, ValueError):
        number = math.nan
    if kind == "quantile" and 0 <= number <= 1:
        return _quantile(sorted(edges), number) if edges else 0.0
    if kind == "quantile" or not math.isfinite(number) or isinstance(threshold, bool):
        raise InputError(
            f"threshold {threshold!r} cannot be used; allowed: 'mean', 'quantile:q' with q from 0 "
            "to 1, or a finite number"
        )
    return number


def _quantile(ordered: list[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    rank = int(place)
    after = ordered[min(rank + 1, len(ordered) - 1)]
    return ordered[rank] + (place - rank) * (after - ordered[rank])


def _exceeds(edges: Sequence[float], threshold: float) -> bool:
    total = math.fsum(edges)
    return total - len(edges) * threshold > _noise(total)


def _noise(total: float) -> float:
    return 1e-12 * max(1.0, abs(total))


def _finite_edges(dependency: Sequence[float]) -> list[float]:
    edges = [float(value) for value in dependency]
    for index, value in enumerate(edges):
        if not math.isfinite(value):
            raise InputError(f"dependency {index} is {value}; all must be finite")
    return edges


def _checked(
    dependency: Sequence[float],
    threshold: float,
    max_depth: int,
    boundaries: Iterable[int],
    units: int | None,
) -> tuple[list[float], set[int], int]:
    edges, cuts = _finite_edges(dependency), {int(k) for k in boundaries}
    count = len(edges) + 1 if units is None else units
    if len(edges) != max(count - 1, 0):
        raise InputError(
            f"{len(edges)} edges were given for {count} layers; {max(count - 1, 0)} are needed"
        )
    if not math.isfinite(threshold):
        raise InputError(f"threshold {threshold} is not allowed; a finite number is needed")
    if max_depth < 1:
        raise InputError(f"max_depth {max_depth} is not allowed; at least 1")
    for cut in cuts:
        if not 0 <= cut < len(edges):
            raise InputError(f"boundary {cut} is no edge; allowed are 0 to {len(edges) - 1}")
    return edges, cuts, count
