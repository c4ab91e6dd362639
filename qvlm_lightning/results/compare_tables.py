"""A comparison as tables: models against the reference, the benchmark's own figures, groups."""

from collections.abc import Callable, Sequence

from qvlm_lightning.metrics.grouped import OVERALL, UNPARSED
from qvlm_lightning.results.compare import Comparison
from qvlm_lightning.results.measures import other_settings
from qvlm_lightning.results.render import NONE, Grid, Number, cell, nats, points, signed
from qvlm_lightning.results.rows import Row

NOTE = (
    "95 % intervals in brackets; differences are paired, on the same questions, with McNemar's "
    "mid-p of this one comparison; won and lost are questions with more and with fewer points "
    "than the reference."
)
_TOKEN_NOTE = " KL and same token are those of the first answer token."
_CLUSTER_NOTE = " n counts clusters of questions: the worst answer of a cluster is its score."

Column = tuple[str, Callable[[str], str]]


def comparison_grids(comparison: Comparison, intervals: bool = True) -> list[Grid]:
    """Lay out all tables of one benchmark; those without content are left out.

    Args:
        comparison: the models on it.
        intervals: whether scores per group have theirs: a terminal is narrow.

    Returns:
        The main table, then the benchmark's own figures and the scores per group.
    """
    grids = [main_grid(comparison), own_grid(comparison), group_grid(comparison, intervals)]
    return [grid for grid in grids if grid is not None]


def main_grid(comparison: Comparison) -> Grid:
    """Lay out models against the reference."""
    reference = comparison.reference.label

    def figure(metric: str, number: Number, interval: bool = True) -> Callable[[str], str]:
        return lambda model: cell(_rows(comparison, metric, model), number, interval)

    def changed(key: str) -> Callable[[str], str]:
        def write(model: str) -> str:
            return "".join(f"{r[key]:,}" for r in _rows(comparison, "difference", model)) or NONE

        return write

    columns: list[Column] = [
        ("score %", figure("score", points)),
        ("difference", figure("difference", signed)),
        ("won", changed("won")),
        ("lost", changed("lost")),
        ("KL, nats", figure("kl", nats)),
        ("same token %", figure("same_token", points, interval=False)),
        ("same answer %", figure("agreement", points, interval=False)),
        ("parse failures %", figure("parse_failures", points, interval=False)),
        ("n", lambda model: f"{_rows(comparison, 'score', model)[0]['n']:,}"),
    ]
    models = [entry.label for entry in comparison.entries]
    written = [(name, [write(model) for model in models]) for name, write in columns]
    filled = [(name, cells) for name, cells in written if set(cells) != {NONE}]
    names = [f"{model} (reference)" if model == reference else model for model in models]
    rows = [[name, *(cells[i] for _, cells in filled)] for i, name in enumerate(names)]
    header = ["model", *(name for name, _ in filled)]
    note = NOTE + (_TOKEN_NOTE if "KL, nats" in header else "")
    if any(comparison.reference.predictions.clusters):
        note += _CLUSTER_NOTE
    for entry in comparison.others:
        if others := other_settings(entry.predictions, comparison.reference.predictions):
            note += f" {entry.label} was asked with another {' and '.join(others)}."
    return Grid(f"{comparison.name} (rule: {comparison.mode})", header, rows, note)


def own_grid(comparison: Comparison) -> Grid | None:
    """Lay out the figures that the benchmark itself reports, other than those of groups."""
    entries = comparison.entries
    names = dict.fromkeys(name for e in entries for name in e.predictions.scores)
    names = {name: None for name in names if "/" not in name and name != UNPARSED}
    if not set(names) - {OVERALL}:
        return None
    rows = [
        [e.label, *(_number(e.predictions.scores.get(name)) for name in names)] for e in entries
    ]
    return Grid(
        f"{comparison.name}: the benchmark's own figures",
        ["model", *names],
        rows,
        "As the benchmark's own rule has them; percent, and counts where they are whole.",
    )


def group_grid(comparison: Comparison, intervals: bool = True) -> Grid | None:
    """Lay out scores per group, groups as rows; see :func:`comparison_grids`."""
    if not comparison.groups:
        return None
    models = [entry.label for entry in comparison.entries]
    rows = []
    for group in comparison.groups:
        scores = [comparison.find("score", model, group) for model in models]
        count = next(row["n"] for row in scores if row is not None)
        cells = [cell([row] if row else [], points, intervals) for row in scores]
        rows.append([group, f"{count:,}", *cells])
    return Grid(f"{comparison.name}: score per group, %", ["group", "n", *models], rows)


def _rows(comparison: Comparison, metric: str, model: str) -> Sequence[Row]:
    row = comparison.find(metric, model)
    return [] if row is None else [row]


def _number(value: float | None) -> str:
    if value is None or value != value:  # NaN: a group without questions
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
