"""Expected cost of a search, in forwards of one layer."""

from collections.abc import Sequence

from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.percentile import JointSearch, SequentialSearch

SWEEPS = 3
"""Sweeps of a coordinate descent: two that change something and one that does not, as a rule."""


def expected_layer_forwards(method: Method, sites: Sequence[int]) -> float:
    """Return about how often a search runs one layer on one batch, summed over a block's layers.

    Candidates at a site alone (``site_forwards``) count as their share of a layer.

    Args:
        method: what searches.
        sites: number of sites of each layer of the block.

    Example:
        >>> from qvlm_lightning.methods import JointSearch, MinMax
        >>> expected_layer_forwards(MinMax(), [4, 4])
        6.0
        >>> paper = JointSearch([1.0, 0.995, 0.99, 0.985, 0.98])
        >>> [expected_layer_forwards(paper, [4] * depth) for depth in (1, 2, 3)]
        [82.0, 224.0, 426.0]
    """
    layers, count = len(sites), len(method.candidates("static_tensor"))
    targets_and_way_on = 2 * layers
    if not isinstance(method, SequentialSearch | JointSearch):
        return float(targets_and_way_on + layers)
    tried = [1 if method.per == "layer" else n for n in sites]
    judged = count if method.per == "layer" else 1 + count
    sequential = sum(2 + n + judged for n in tried)
    if isinstance(method, SequentialSearch):
        return float(targets_and_way_on + sequential + 2 * layers)
    if count ** sum(tried) <= method.exhaustive_limit:
        joint = sum(count ** sum(tried[: level + 1]) for level in range(layers))
    else:
        behind = [n * count * (layers - level) for level, n in enumerate(tried)]
        joint = 2 * layers + SWEEPS * (sum(behind) + layers)
    return float(targets_and_way_on + sequential + joint + 3 * layers)
