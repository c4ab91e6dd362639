"""Rows of several tables against each other: a ranking per scheme, activation mode and stress."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.metrics.target import WHOLE
from qvlm_lightning.results.measures import divergences
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.rows import Row, figure, mean, right_or_wrong, score, units
from qvlm_lightning.results.steps import Step, step_rows
from qvlm_lightning.results.stress import Stress

BASELINE = "rtn"
"""Row that every other one is compared with."""
COSTS = (
    "calibration_seconds",
    "calibration_cpu_seconds",
    "peak_bytes",
    "perplexity",
    "text_kl_prompts",
)
"""Figures of rows of ``results.json`` that are taken as they are, as means over seeds."""
Against = Mapping[str, Row]
"""Metric -> difference (see :func:`~qvlm_lightning.results.steps.step_rows`)."""


@dataclass
class Contender:
    """A method in one contest."""

    method: str
    """Name of the row."""
    answers: dict[int, Predictions] = field(default_factory=dict)
    """Calibration seed -> answers."""
    costs: dict[str, list[float]] = field(default_factory=dict)
    """Name of :data:`COSTS` -> one value per seed that has it."""


@dataclass
class Contest:
    """Methods that may be compared: of one scheme, mode and stress, asked the same questions."""

    reference: Predictions
    """Answers in full precision."""
    contenders: list[Contender] = field(default_factory=list)
    """In the order of the plan."""

    @property
    def about(self) -> Predictions:
        """Answers that say what all have in common: scheme, mode and stress."""
        return next(iter(self.contenders[0].answers.values()))


@dataclass(frozen=True)
class Standing:
    """What one method reaches in a contest."""

    method: str
    """Name of the row."""
    ours: bool
    """Whether the plan calls it ours."""
    seeds: list[int]
    """Calibration seeds."""
    figures: Mapping[str, Row]
    """``accuracy`` and ``agreement`` (percent), ``kl`` (nats), each a mean over seeds with the 95 %
    interval over questions, ``kl`` also with ``low`` and ``high``, the extremes of the seeds; and
    what is known of :data:`COSTS` and ``layer_forwards``."""
    program: str
    """Which other program made it, with its version; empty for rows of this package."""
    against: Mapping[str, Against]
    """``baseline``, ``rival`` and ``best`` -> differences from that row; none from itself."""


@dataclass(frozen=True)
class Ranking:
    """A contest that is decided."""

    contest: Contest
    """What was compared."""
    standings: list[Standing]
    """Lowest KL first; methods without KL behind, highest accuracy first."""
    best: str | None
    """Method of the lowest KL."""
    rival: str | None
    """Method of the lowest KL among those that are not ours."""

    @property
    def leader(self) -> Standing | None:
        """The best method of ours, if there is one with a KL."""
        return next((s for s in self.standings if s.ours and "kl" in s.figures), None)

    @property
    def undecided(self) -> list[str]:
        """Methods whose KL cannot be told from the lowest one."""
        return [
            s.method
            for s in self.standings
            if "kl" in s.against["best"] and is_noise(s.against["best"]["kl"])
        ]


def contests(
    answered: Iterable[tuple[Predictions, Predictions]], rows: Sequence[Row]
) -> list[Contest]:
    """Gather answers into contests.

    Args:
        answered: answers of a row and seed, and of full precision, in the order of the plan.
        rows: rows of ``results.json``, for the costs.
    """
    found: dict[tuple, Contest] = {}
    costs: dict[tuple, float] = {
        (*_whose(row), row["metric"]): row["value"]
        for row in rows
        if row["task"] == OVERALL and row["metric"] in COSTS
    }
    for mine, reference in answered:
        variant = mine.variant
        place = variant.model, variant.scheme, variant.activation_mode, variant.stress
        key = *place, mine.split, tuple(mine.ids)
        contest = found.setdefault(key, Contest(reference))
        contender = next((c for c in contest.contenders if c.method == variant.row), None)
        if contender is None:
            contender = Contender(variant.row)
            contest.contenders.append(contender)
        assert variant.seed is not None
        contender.answers[variant.seed] = mine
        for name in COSTS:
            value = costs.get((*place, mine.split, variant.row, variant.seed, name))
            if value is not None:
                contender.costs.setdefault(name, []).append(value)
    return list(found.values())


def _whose(row: Row) -> tuple:
    place = row["model"], row["scheme"], row["activation_mode"], Stress.of(row)
    return *place, row["split"], row["variant"], row["seed"]


def ranking(contest: Contest, ours: Collection[str]) -> Ranking:
    """Decide a contest.

    Args:
        contest: the methods.
        ours: names of the rows that are not rivals.
    """
    reference, known = contest.reference, {c.method: c for c in contest.contenders}
    figures = {name: _figures(c, reference) for name, c in known.items()}
    order = sorted(known, key=lambda name: _place(figures[name]))
    judged = [name for name in order if "kl" in figures[name]]
    best = next(iter(judged), None)
    rival = next((name for name in judged if name not in ours), None)
    others = {"baseline": BASELINE if BASELINE in known else None, "rival": rival, "best": best}
    standings = [
        Standing(
            name,
            name in ours,
            sorted(known[name].answers),
            figures[name],
            _program(known[name]),
            {
                what: {}
                if other in (None, name)
                else _difference(known[name], known[other], reference)
                for what, other in others.items()
            },
        )
        for name in order
    ]
    return Ranking(contest, standings, best, rival)


def _program(contender: Contender) -> str:
    told = (answers.search.get("program") or "" for answers in contender.answers.values())
    return "; ".join(dict.fromkeys(filter(None, told)))


def _place(figures: Mapping[str, Row]) -> tuple[bool, float]:
    kl = figures.get("kl")
    return (True, -figures["accuracy"]["value"]) if kl is None else (False, kl["value"])


def _figures(contender: Contender, reference: Predictions) -> dict[str, Row]:
    """Measure a method, averaged over its seeds question by question."""
    answers = [contender.answers[seed] for seed in sorted(contender.answers)]
    found = {"accuracy": _accuracy(answers), "agreement": _agreement(answers, reference)}
    kls = [divergences(mine, reference) for mine in answers]
    whole = [kl for kl in kls if kl is not None]
    if len(whole) == len(answers):
        means = [float(kl.mean()) for kl in whole]
        extremes = {"low": min(means), "high": max(means)}
        found["kl"] = mean("kl", np.mean(whole, axis=0)) | extremes
    forwards = [a.search.get("layer_forwards") for a in answers]
    costs = contender.costs | {"layer_forwards": [x for x in forwards if x is not None]}
    for name, values in costs.items():
        if values:
            found[name] = figure(name, fmean(values), None, len(values))
    return found


def _accuracy(answers: Sequence[Predictions]) -> Row:
    points = [units(np.array(a.points), a.clusters, np.arange(len(a.ids))) for a in answers]
    if len(points) == 1:  # the interval of a rate, where it is one
        return score("accuracy", points[0], right_or_wrong(points[0]))
    return mean("accuracy", 100 / WHOLE * np.mean(points, axis=0))


def _agreement(answers: Sequence[Predictions], reference: Predictions) -> Row:
    same = [
        [mine == theirs for mine, theirs in zip(a.parsed, reference.parsed, strict=True)]
        for a in answers
    ]
    return figure("agreement", 100 * float(np.mean(same)), None, len(reference.ids))


def _difference(mine: Contender, theirs: Contender, reference: Predictions) -> dict[str, Row]:
    """Return the differences on the seeds that both have; none without one."""
    seeds = sorted(mine.answers.keys() & theirs.answers.keys())
    if not seeds:
        return {}
    pairs = [(mine.answers[seed], theirs.answers[seed]) for seed in seeds]
    rows = step_rows(Step(mine.method, theirs.method, pairs, reference))
    return {row["metric"]: row for row in rows}


def is_noise(row: Row) -> bool:
    """Return whether the interval of a difference holds zero.

    Example:
        >>> is_noise({"ci_low": -0.1, "ci_high": 0.0}), is_noise({"ci_low": 0.1, "ci_high": 0.2})
        (True, False)
    """
    return bool(row["ci_low"] <= 0 <= row["ci_high"])
