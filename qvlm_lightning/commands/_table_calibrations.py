"""The calibrations that a table's plan takes, and where each of them lies."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from qvlm_lightning.commands._table_plan import (
    PlannedVariant,
    TablePlan,
    is_headline,
    planned_variants,
)
from qvlm_lightning.errors import InputError
from qvlm_lightning.results.stress import Stress

SECONDS = "calibration.json"
"""Wall time and memory of a calibration, in its run folder."""


@dataclass(frozen=True)
class Calibration:
    """One calibration of a plan."""

    variant: PlannedVariant
    """Row it belongs to."""
    seed: int
    """Calibration seed."""
    stress: Stress
    """Scales of the model's stress variant."""
    folder: Path
    """Run folder."""

    @property
    def artifact(self) -> Path:
        """Where it exports to."""
        return self.folder / "artifact"

    @property
    def finished(self) -> bool:
        """Whether it has exported; the folder appears as a whole."""
        return self.artifact.is_dir()

    @property
    def label(self) -> str:
        """How progress names it."""
        stress = f", {self.stress.title}" if self.stress else ""
        mode = f" {self.variant.mode}" if self.variant.mode else ""
        return f"{self.variant.scheme} {self.variant.name}{mode}, seed {self.seed}{stress}"


def planned_stresses(plan: TablePlan) -> list[Stress]:
    """Return every combination of a plan's scales.

    Example:
        >>> planned_stresses(TablePlan(outlier_scales=[1.0, 10.0]))[1].name
        'k10'
    """
    return [Stress(*scales) for scales in product(plan.outlier_scales, plan.sink_scales)]


def stress_folder(plan: TablePlan, stress: Stress, root: Path | None = None) -> Path:
    """Return the folder of what is made of one stress variant.

    Args:
        plan: of the table.
        stress: scales of the model.
        root: where it lies; that of the plan by default.
    """
    return (root or Path(plan.root)) / f"{plan.model}-{stress.name}"


def results_folder(plan: TablePlan) -> Path:
    """Return where answers and results of a plan go."""
    return Path(plan.root) / (plan.results or "")


def planned_calibrations(plan: TablePlan) -> list[Calibration]:
    """Return all calibrations of a plan, in the order in which they are made.

    Raises:
        InputError: there is none; see :func:`planned_variants` for others.
    """
    variants, stresses = planned_variants(plan), planned_stresses(plan)
    calibrations = [
        _calibration(plan, variant, seed, stress)
        for stress in stresses
        for seed in plan.seeds
        for variant in variants
    ]
    if not calibrations:
        raise InputError("the plan compares nothing; give variants, seeds and scales")
    return calibrations


def _calibration(
    plan: TablePlan, variant: PlannedVariant, seed: int, stress: Stress
) -> Calibration:
    folder = stress_folder(plan, stress) / f"seed{seed}" / variant.folder
    first = plan.seeds[0], planned_stresses(plan)[0]
    if is_headline(plan, variant) and (seed, stress) == first:
        folder = Path(plan.root)
    return Calibration(variant, seed, stress, folder)
