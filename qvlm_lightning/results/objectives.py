"""The objective J of the blocks of a run, as its report has it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

_PLACE = ("tower", "first", "last")


def scores_of(block: Mapping[str, Any]) -> dict[str, float]:
    """Return J of each way to decide a block, the chosen one last.

    Args:
        block: an entry of ``objectives`` of a report.

    Example:
        >>> scores_of({"tower": "language", "first": 0, "last": 1, "minmax": 0.5, "joint": 0.25})
        {'minmax': 0.5, 'joint': 0.25}
    """
    found = {name: x for name, x in block.items() if name not in _PLACE}
    return {n: float(x) for n, x in found.items() if _is_number(x)}


def mean_objectives(blocks: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the mean over the blocks of J on min-max ranges and of J as chosen.

    Args:
        blocks: ``objectives`` of a report; those without ``minmax`` are passed over.

    Returns:
        None where no block has both.

    Example:
        >>> mean_objectives([{"minmax": 0.5, "joint": 0.25}, {"minmax": 0.5, "joint": 0.5}])
        (0.5, 0.375)
    """
    scores = [scores_of(block) for block in blocks]
    pairs = [(s["minmax"], list(s.values())[-1]) for s in scores if "minmax" in s]
    return (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) if pairs else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
