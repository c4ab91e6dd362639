"""A benchmark's own figures as tables: one row per figure, one column per variant."""

from collections.abc import Mapping

from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import NONE, Grid, in_split


def score_grids(known: Mapping[str, Predictions]) -> list[Grid]:
    """Lay out the figures of each benchmark, split and rule; none where only points are known.

    Args:
        known: stored answers by name.
    """
    benchmarks: dict[tuple[str, str, str], list[Predictions]] = {}
    for answered in known.values():
        if answered.scores:
            key = answered.benchmark, answered.mode, answered.split
            benchmarks.setdefault(key, []).append(answered)
    grids = []
    for (benchmark, mode, split), members in benchmarks.items():
        names = dict.fromkeys(name for p in members for name in p.scores)
        rows = [[name, *(_figure(p.scores.get(name)) for p in members)] for name in names]
        note = "Percent by the benchmark's own rule; unparsed is a count."
        title = f"{benchmark}: {mode}{in_split(split)}"
        grids.append(Grid(title, ["figure", *(p.name for p in members)], rows, note))
    return grids


def _figure(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value}" if isinstance(value, int) else f"{value:.2f}"
