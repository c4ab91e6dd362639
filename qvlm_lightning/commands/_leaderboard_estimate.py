"""How long the tables of a leaderboard will take: from rows that are finished, else roughly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from qvlm_lightning.commands._progress import clock
from qvlm_lightning.commands._rival_plan import RESULT, RivalRow, Tool
from qvlm_lightning.commands._table_calibrations import (
    SECONDS,
    Calibration,
    planned_calibrations,
    planned_stresses,
    results_folder,
    stress_folder,
)
from qvlm_lightning.commands._table_plan import TablePlan
from qvlm_lightning.errors import parse_json
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import Variant, file_name

ROUGH: Mapping[str, float] = {
    "rtn": 8,
    "mse": 10,
    "sequential": 12,
    "moving_average": 14,
    "rptq": 10,
    "smoothquant": 15,
    "quarot": 15,
    "qvlm_plus_fast": 30,
    "gptq": 35,
    "cdm": 45,
    "awq": 45,
    "mbq": 50,
    "flatquant": 80,
    "signround": 80,
    "adaround": 240,
    "veo": 100,
    "qvlm": 150,
    "qvlm_plus": 160,
    "aespa": 270,
    "llmcompressor-rtn": 12,
    "llmcompressor-gptq": 25,
    "autoround": 90,
}
"""Method -> seconds of a calibration of the embedded model with 64 pairs, for as long as no row is
finished. Two cores of an AMD EPYC, 2026-11-28: tables made beside other work, divided by 2.4, which
is how much longer rounding to nearest took there than on an idle machine; those of smoothquant,
awq, mbq, signround, adaround, rptq, aespa and qvlm_plus are guessed from methods that are alike."""
START = 6.0
"""Seconds of those that do not depend on the pairs."""
PAIRS = 64
QUESTION = 0.006
"""Seconds of a question to the embedded model, on the same machine."""
MODEL = "tiny"


@dataclass
class Kind:
    """Steps that take about as long."""

    name: str
    """What they do."""
    steps: int = 0
    """How many are left."""
    unknown: int = 0
    """Of how many nothing is known."""
    rough: int = 0
    """Of how many the seconds are those of another machine."""
    seconds: float = 0.0
    """Of all that are known."""

    def add(self, steps: int, each: float | None, measured: bool) -> None:
        """Count steps; see :meth:`Estimate.add`."""
        self.steps += steps
        self.unknown += steps if each is None else 0
        self.rough += 0 if each is None or measured else steps
        self.seconds += 0.0 if each is None else steps * each

    @property
    def line(self) -> str:
        """What is left, in words."""
        told = self.steps - self.unknown
        each = f"{'~' if self.rough else ''}{self.seconds / told:.0f} s" if told else "not known"
        more = f"  (nothing is known of {self.unknown})" if told and self.unknown else ""
        in_all = clock(self.seconds) if told else "?"
        return f"  {self.name:<28} {self.steps:>4} x {each:<10} {in_all:>9}{more}"


@dataclass
class Estimate:
    """What is left of a plan."""

    rows: int = 0
    """Rows of all tables and seeds."""
    calibrated: int = 0
    """Rows that are calibrated."""
    finished: int = 0
    """Rows that are calibrated and evaluated."""
    kinds: dict[str, Kind] = field(default_factory=dict)
    """What is left, by name."""
    gigabytes: float = 0.0
    """Of disk that new environments take."""

    @property
    def seconds(self) -> float:
        """Of all steps of which anything is known."""
        return sum(kind.seconds for kind in self.kinds.values())

    def add(self, name: str, each: tuple[float | None, bool], steps: int = 1) -> None:
        """Count steps that are left.

        Args:
            name: what they do.
            each: seconds of one, None where nothing is known; whether they were measured here.
            steps: how many.
        """
        self.kinds.setdefault(name, Kind(name)).add(steps, *each)

    def lines(self) -> Iterator[str]:
        """Yield what to print before the work."""
        done = f"{self.calibrated} of them calibrated, {self.finished} also evaluated"
        yield f"{self.rows} rows, {done}"
        for kind in sorted(self.kinds.values(), key=lambda kind: -kind.seconds):
            yield kind.line
        if self.gigabytes:
            yield f"environments of other tools: about {self.gigabytes:g} GB, from the network"
        known = not any(kind.unknown for kind in self.kinds.values())
        left = f"{'about' if known else 'at least'} {clock(self.seconds)} left"
        yield f"an estimate: {left}, as finished rows took here; ~ is rough, from another machine"


def estimated(
    tables: Sequence[TablePlan], rivals: Sequence[RivalRow] = (), tools: Sequence[Tool] = ()
) -> Estimate:
    """Estimate what is left of some tables.

    Args:
        tables: plans; their folders are looked at.
        rivals: rows of other tools beside them.
        tools: whose environments are still to be made.
    """
    found, known = Estimate(), _Known(tables)
    full: set[Path] = set()
    for table in tables:
        for stress in planned_stresses(table):
            path = _answers(table, Variant(table.model, **stress._asdict()))
            if path not in full and _count(path) != table.questions:
                # plain, and with shuffled pictures
                found.add("full precision", known.answers(table), 2)
            full.add(path)
        for calibration in planned_calibrations(table):
            found.rows += 1
            if not calibration.finished:
                method = calibration.variant.method
                found.add(f"calibrate {method}", known.calibration(table, calibration))
                found.add("evaluate", known.answers(table))
                continue
            found.calibrated += 1
            if _count(_answers(table, _variant(table, calibration))) == table.questions:
                found.finished += 1
            else:
                found.add("evaluate", known.answers(table))
    _add_rivals(found, known, rivals)
    for tool in tools:
        found.add(f"environment of {tool.name}", (tool.seconds, False))
        found.gigabytes += tool.gigabytes
    return found


def _add_rivals(found: Estimate, known: "_Known", rivals: Sequence[RivalRow]) -> None:
    measured: dict[tuple, list[float]] = {}
    for row in rivals:
        about = _json(row.folder / RESULT).get("process", {})
        if "seconds" in about:
            key = row.table.model, row.table.pairs, row.rival.name
            measured.setdefault(key, []).append(float(about["seconds"]))
    for row in rivals:
        found.rows += 1
        if row.finished:  # whether it is answered, only its weights can tell: at most so long
            found.calibrated += 1
        else:
            here = measured.get((row.table.model, row.table.pairs, row.rival.name))
            rough = known.rough(row.table, row.rival.name)
            found.add(f"run {row.rival.name}", (fmean(here), True) if here else (rough, False))
            found.add("evaluate", known.answers(row.table))


class _Known:
    """What finished rows say of seconds."""

    def __init__(self, tables: Sequence[TablePlan]) -> None:
        self.calibrations: dict[tuple, list[float]] = {}
        self.questions: dict[str, list[float]] = {}
        for table in tables:
            for calibration in planned_calibrations(table):
                about = _json(calibration.folder / SECONDS)
                # the share of a row that was made beside others
                processes = int(about.get("processes", 1))
                if calibration.finished and "seconds" in about:
                    seconds = float(about["seconds"]) / processes
                    for key in _keys(table, calibration):
                        self.calibrations.setdefault(key, []).append(seconds)
                if calibration.finished:
                    answers = _json(_answers(table, _variant(table, calibration)))
                    if answers.get("n"):
                        each = float(answers["seconds"]) / answers["n"] / processes
                        self.questions.setdefault(table.model, []).append(each)

    def calibration(self, table: TablePlan, calibration: Calibration) -> tuple[float | None, bool]:
        """Return the seconds of a calibration, and whether they were measured here."""
        for key in _keys(table, calibration):
            if key in self.calibrations:
                return fmean(self.calibrations[key]), True
        return self.rough(table, calibration.variant.method), False

    def rough(self, table: TablePlan, method: str) -> float | None:
        """Return the seconds of a method on another machine; None where nothing is known."""
        rough = ROUGH.get(method)
        if table.model != MODEL or rough is None:
            return None
        return START + (rough - START) * table.pairs / PAIRS

    def answers(self, table: TablePlan) -> tuple[float | None, bool]:
        """Return the seconds of an evaluation, and whether they were measured here."""
        if table.model in self.questions:
            return table.questions * fmean(self.questions[table.model]), True
        return (QUESTION * table.questions if table.model == MODEL else None), False


def _keys(table: TablePlan, calibration: Calibration) -> tuple[tuple, tuple]:
    """Return what a measurement stands for, the nearest first: the same scheme, then any."""
    variant = calibration.variant
    method = table.model, table.pairs, variant.method
    return (*method, variant.scheme, variant.mode), method


def _variant(table: TablePlan, calibration: Calibration) -> Variant | None:
    """Return whose answers a finished calibration gets, as its artifact says."""
    about = _json(calibration.artifact / "quantization.json")
    if "scheme_name" not in about:
        return None
    scheme, planned = str(about["scheme_name"]), calibration.variant
    return Variant(
        table.model,
        planned.method,
        scheme,
        str(about.get("activation_mode")),
        seed=calibration.seed,
        label=planned.label(scheme),
        **calibration.stress._asdict(),
    )


def _answers(table: TablePlan, variant: Variant | None) -> Path:
    """Return the file that marks the answers of a variant as whole; it need not be there."""
    stress = Stress() if variant is None else variant.stress
    folder = stress_folder(table, stress, results_folder(table)) / "predictions"
    name = "none" if variant is None else file_name(variant, split=table.split or "")
    return folder / f"{name}.json"


def _count(path: Path) -> int:
    """Return how many questions are answered in a file; 0 where there is none."""
    return int(_json(path).get("n", 0))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
