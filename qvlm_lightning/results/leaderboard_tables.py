"""Rankings as tables for people and for programs."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qvlm_lightning.estimate.sizes import format_bytes
from qvlm_lightning.results.leaderboard import BASELINE, COSTS, Ranking, Standing, is_noise
from qvlm_lightning.results.render import (
    NONE,
    Grid,
    cell,
    in_split,
    nats,
    points,
    signed,
    whole,
)
from qvlm_lightning.results.rows import Row, right_or_wrong, score, units
from qvlm_lightning.results.steps import is_significant, signed_nats
from qvlm_lightning.results.variant import scheme_stem, variant_title

OURS = " (ours)"
"""Behind the name of a method that the plan calls ours."""
SUMMARY_NOTE = (
    "The best method of ours against the best of the others, by KL to full precision (nats, lower "
    "is better). Both are chosen by the figures that are shown, which favours the one with more "
    "methods to choose from."
)
NOTE = (
    "Means over calibration seeds, 95 % intervals over questions in brackets. Differences are "
    "paired by question and seed, accuracy in percentage points; none: the interval holds 0; seeds "
    "disagree: it does not, but not all seeds are of one sign. Of twenty differences that are "
    "nothing, one may seem to be something."
)
_WEIGHTS_ONLY = re.compile(r"(w\d+a16)(_[a-z]+)?(_w\d+a16(_[a-z]+)?)*")


def ranking_title(ranking: Ranking) -> str:
    """Write what a contest is about.

    Args:
        ranking: of the contest.
    """
    variant = ranking.contest.about.variant
    stem = scheme_stem(variant.scheme)
    only_weights = _WEIGHTS_ONLY.fullmatch(stem) is not None
    mode = "weights only" if only_weights else f"activations {variant.activation_mode}"
    scheme = variant_title("any", variant.scheme, "").strip()
    return f"{scheme}, {mode} {variant.stress.in_brackets}".rstrip()


def summary_grid(rankings: Sequence[Ranking]) -> Grid:
    """Lay out one line per contest: the best method of ours against the best rival."""
    lines = []
    for ranking in rankings:
        known = {s.method: s for s in ranking.standings}
        leader, rival = ranking.leader, known.get(ranking.rival or "")
        lines.append(
            [
                ranking_title(ranking),
                cell([_full(ranking)], points),
                *_named(leader),
                *_named(rival),
                NONE
                if leader is None
                else difference(leader.against["rival"].get("kl"), signed_nats),
                str(max(len(s.seeds) for s in ranking.standings)),
                f"{len(ranking.contest.reference.ids):,}",
            ]
        )
    header = ["contest", "full precision %", "ours", "KL", "rival", "KL of it", "ours − rival"]
    split = rankings[0].contest.reference.split
    return Grid(f"Summary{in_split(split)}", [*header, "seeds", "questions"], lines, SUMMARY_NOTE)


def _named(standing: Standing | None) -> tuple[str, str]:
    return (NONE, NONE) if standing is None else (standing.method, _figure(standing, "kl", nats))


def ranking_grid(ranking: Ranking) -> Grid:
    """Lay out the methods of a contest, the lowest KL first.

    Args:
        ranking: of the contest.

    Returns:
        A table without the columns that nobody fills; its note names the lowest KL, what cannot be
        told from it, and the best rival.
    """
    columns: list[tuple[str, Callable[[Standing], str]]] = [
        ("KL, nats", lambda s: _figure(s, "kl", nats)),
        ("accuracy %", lambda s: _figure(s, "accuracy", points)),
        ("agreement %", lambda s: _figure(s, "agreement", points)),
        (f"KL − {BASELINE}", lambda s: difference(s.against["baseline"].get("kl"), signed_nats)),
        (
            f"accuracy − {BASELINE}",
            lambda s: difference(s.against["baseline"].get("accuracy"), signed),
        ),
        ("KL − rival", lambda s: difference(s.against["rival"].get("kl"), signed_nats)),
        ("accuracy − rival", lambda s: difference(s.against["rival"].get("accuracy"), signed)),
        ("perplexity", lambda s: _figure(s, "perplexity", points)),
        ("KL of text", lambda s: _figure(s, "text_kl_prompts", nats)),
        ("calibration, s", lambda s: _figure(s, "calibration_seconds", points)),
        ("CPU s", lambda s: _figure(s, "calibration_cpu_seconds", points)),
        ("peak memory", lambda s: _figure(s, "peak_bytes", lambda n: format_bytes(int(n)))),
        ("layer-forwards", lambda s: _figure(s, "layer_forwards", whole)),
        ("program", lambda s: s.program or NONE),
        ("seeds", lambda s: str(len(s.seeds))),
    ]
    written = [(name, [write(s) for s in ranking.standings]) for name, write in columns]
    filled = [(name, cells) for name, cells in written if set(cells) != {NONE}]
    lines = [
        [f"{s.method}{OURS if s.ours else ''}", *(cells[place] for _, cells in filled)]
        for place, s in enumerate(ranking.standings)
    ]
    header = ["method", *(name for name, _ in filled)]
    return Grid(ranking_title(ranking), header, lines, _note(ranking))


def _note(ranking: Ranking) -> str:
    parts = [f"Full precision: {cell([_full(ranking)], points)} %."]
    if ranking.best is not None:
        parts += [f"Lowest KL: {ranking.best}."]
    if ranking.undecided:
        parts += [f"Within its noise: {', '.join(ranking.undecided)}."]
    if ranking.rival is not None:
        parts += [f"Best rival: {ranking.rival}."]
    return " ".join(parts)


def _full(ranking: Ranking) -> Row:
    reference = ranking.contest.reference
    own = units(np.array(reference.points), reference.clusters, np.arange(len(reference.ids)))
    return score("accuracy", own, right_or_wrong(own))


def _figure(standing: Standing, metric: str, number: Callable[[float], str]) -> str:
    row = standing.figures.get(metric)
    return cell([] if row is None else [row], number)


def difference(row: Row | None, number: Callable[[float], str]) -> str:
    """Write a difference: its value and interval, or that there is none.

    Args:
        row: see :func:`~qvlm_lightning.results.steps.step_rows`; None is a dash.
        number: writes a signed value.

    Example:
        >>> both = {"value": 0.5, "low": 0.5, "high": 0.5}
        >>> difference(both | {"ci_low": -0.1, "ci_high": 1.1}, signed)
        'none [-0.1, +1.1]'
        >>> difference(both | {"ci_low": 0.1, "ci_high": 0.9}, signed)
        '+0.5 [+0.1, +0.9]'
    """
    if row is None:
        return NONE
    interval = f"[{number(row['ci_low'])}, {number(row['ci_high'])}]"
    if is_noise(row):
        return f"none {interval}"
    doubt = "" if is_significant(row) else " seeds disagree"
    return f"{number(row['value'])} {interval}{doubt}"


def csv_text(rankings: Sequence[Ranking]) -> str:
    """Write one line per contest and method, with full precision of numbers; what is not known is
    empty.

    Columns are ``model, split, scheme, activation_mode, outlier_scale, sink_scale, method, ours,
    program, seeds, n``, then each figure with ``_low`` and ``_high`` where it has an interval, the
    extremes of the seeds as ``kl_seed_low`` and ``kl_seed_high``, the differences ``kl_minus_rtn``,
    ``kl_minus_rival`` and the like with their intervals, and ``rival``.
    """
    lines = [_line(ranking, standing) for ranking in rankings for standing in ranking.standings]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(ranking: Ranking, standing: Standing) -> dict[str, Any]:
    about = ranking.contest.about
    variant = about.variant
    line: dict[str, Any] = {
        "model": variant.model,
        "split": about.split,
        "scheme": variant.scheme,
        "activation_mode": variant.activation_mode,
        **variant.stress._asdict(),
        "method": standing.method,
        "ours": standing.ours,
        "program": standing.program,
        "seeds": " ".join(map(str, standing.seeds)),
        "n": standing.figures["accuracy"]["n"],
        "rival": ranking.rival or "",
    }
    for name in ("accuracy", "kl"):
        line |= _with_interval(name, standing.figures.get(name))
    kl = standing.figures.get("kl", {})
    line |= {f"kl_seed_{end}": kl.get(end, "") for end in ("low", "high")}
    for name in ("agreement", *COSTS, "layer_forwards"):
        row = standing.figures.get(name)
        line[name] = "" if row is None else row["value"]
    for what, other in (("baseline", BASELINE), ("rival", "rival")):
        for name in ("accuracy", "kl"):
            line |= _with_interval(f"{name}_minus_{other}", standing.against[what].get(name))
    return line


def _with_interval(name: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
    keys = {name: "value", f"{name}_low": "ci_low", f"{name}_high": "ci_high"}
    return {column: "" if row is None else row[key] for column, key in keys.items()}
