"""Candidates of activation ranges."""

import itertools
from collections.abc import Sequence

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.observers import check_percentiles


def percentile_grid(high: float, low: float, step: float) -> list[float]:
    """Return the candidates from ``high`` down to ``low`` (Sec. 4.1: 1.0 ... 0.98 by 0.005).

    Raises:
        InputError: a percentile outside (0.5, 1], ``low`` above ``high``, or a step that is not
            positive.

    Example:
        >>> percentile_grid(1.0, 0.98, 0.005)
        [1.0, 0.995, 0.99, 0.985, 0.98]
    """
    check_percentiles([high, low])
    if low > high:
        raise InputError(f"percentile range {low} .. {high} is empty; allowed: low <= high")
    if step <= 0:
        raise InputError(f"percentile step {step} is not allowed; it must be positive")
    count = int(round((high - low) / step, 9)) + 1
    return [round(high - i * step, 9) for i in range(count)]


PAPER_GRID = percentile_grid(1.0, 0.98, 0.005)
"""Sec. 4.1 of the paper."""
FINE_PERCENTILES = [1.0, 0.9995, 0.999, 0.998, 0.996, 0.993, 0.99, 0.985, 0.98]
"""Candidates of static ranges by default: dense near 1, where the best ones lie at 4 bits."""
FINE_RATIOS = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65]
"""Candidates of clip ratios in ``dynamic_token`` mode by default."""


def checked_candidates(values: Sequence[float], name: str, above: float) -> list[float]:
    """Return candidates as a list of floats.

    Args:
        values: from the largest down; the first one, 1, is the min-max range.
        name: of the setting, for the message.
        above: no candidate is this small.

    Raises:
        InputError: they do not start with 1, do not fall, or reach ``above``.

    Example:
        >>> checked_candidates([1, 0.99], "percentiles", 0.5)
        [1.0, 0.99]
    """
    grid = [float(value) for value in values]
    falls = all(a > b for a, b in itertools.pairwise(grid))
    if not grid or grid[0] != 1 or not falls or grid[-1] <= above:
        raise InputError(
            f"{name} {grid} are not allowed; numbers that fall from 1 and stay above {above:g}"
        )
    return grid
