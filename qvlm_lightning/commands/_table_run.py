"""The run of a table: rows one after another or several at once, then files of results; resumes."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands import _progress
from qvlm_lightning.commands._table_calibrations import (
    Calibration,
    planned_calibrations,
    planned_stresses,
    results_folder,
)
from qvlm_lightning.commands._table_configs import (
    TableConfigs,
    joined_identity,
    stored_identity,
    write_identity,
)
from qvlm_lightning.commands._table_costs import calibration_costs
from qvlm_lightning.commands._table_disk import share_weights
from qvlm_lightning.commands._table_files import planned_scheme
from qvlm_lightning.commands._table_plan import (
    PlannedVariant,
    TablePlan,
    planned_steps,
    planned_variants,
)
from qvlm_lightning.commands._table_processes import made_at_once
from qvlm_lightning.commands._table_row import Answered, RowMaker
from qvlm_lightning.evaluation.cli import quiet
from qvlm_lightning.files import write_whole, writing
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.fidelity_tables import fidelity_grids
from qvlm_lightning.results.figure import results_figure
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import grids, markdown, show
from qvlm_lightning.results.report import (
    load_answers,
    row_head,
    variant_rows,
    write_results,
)
from qvlm_lightning.results.rows import Row
from qvlm_lightning.results.steps import Step, step_grid, step_rows
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import file_name
from qvlm_lightning.run_lock import run_lock


def run(plan: TablePlan) -> None:
    """Make the table of a plan.

    Args:
        plan: what to compare.

    Raises:
        InputError: see :func:`qvlm_lightning.commands.table.main`.
    """
    with quiet():
        TableRun(plan).run()


class TableRun:
    """Carries out a plan; what is stored is taken, what is missing is made.

    Args:
        plan: what to compare.
    """

    def __init__(self, plan: TablePlan) -> None:
        self.plan = plan
        self.root = Path(plan.root)
        self.configs = TableConfigs(plan)
        self.variants = planned_variants(plan)
        self.stresses = planned_stresses(plan)
        self.calibrations = planned_calibrations(plan)
        self._check_options()
        for variant in self.variants:
            planned_scheme(plan, variant)  # rows are compared with it when they are made
        self.maker = RowMaker(plan)
        self.known: dict[str, Predictions] = {}
        self.answers: dict[tuple[str, int, Stress], Predictions] = {}
        self.rows: list[Row] = []
        self.progress = _progress.Progress(self._kinds())

    def run(self, alone: bool = True) -> None:
        """Calibrate, evaluate, write and print.

        Args:
            alone: whether this is the only plan; otherwise whoever runs several writes and prints
                what they say together.

        Raises:
            InputError: another process is at it.
        """
        with run_lock(self.root):
            self._lock()
            self._make()
            self.maker.forget()
            if alone:
                self._finish()

    def _make(self) -> None:
        for stress in self.stresses:
            with self.progress.step("evaluate full precision") as step:
                self._book(step, None, self.maker.answer(stress))
            planned = [c for c in self.calibrations if c.stress == stress]
            if self.plan.processes > 1:
                self._make_at_once(planned)
            else:
                self._make_in_turn(planned)

    def _make_in_turn(self, planned: Sequence[Calibration]) -> None:
        for calibration in planned:
            with self.progress.step(f"calibrate {calibration.label}") as step:
                if not self._calibrate(calibration):
                    step.skip()
            with self.progress.step(f"evaluate {calibration.label}") as step:
                answered = self.maker.answer(calibration.stress, calibration)
                self._book(step, calibration, answered)

    def _make_at_once(self, planned: Sequence[Calibration]) -> None:
        for calibration in planned:
            if calibration.folder == self.root:  # whose lock this process has
                with self.progress.step(f"calibrate {calibration.label}") as step:
                    if not self._calibrate(calibration):
                        step.skip()
        self.maker.forget()  # every process has a model of its own
        with made_at_once(self.plan, planned) as made:
            for calibration in planned:
                with self.progress.step(f"make {calibration.label}") as step:
                    answered = next(made)
                    self._share(calibration)
                    self._book(step, calibration, answered)

    def _calibrate(self, calibration: Calibration) -> bool:
        made = self.maker.calibrate(calibration)
        if made:
            self._share(calibration)
        return made

    def _share(self, calibration: Calibration) -> None:
        share_weights(calibration.artifact, [other.artifact for other in self.calibrations])

    def _kinds(self) -> list[str]:
        kinds = []
        for stress in self.stresses:
            kinds.append("full precision")
            for calibration in self.calibrations:
                if calibration.stress != stress:
                    continue
                if self.plan.processes > 1:
                    if calibration.folder == self.root:
                        kinds.insert(1, calibration.variant.method)  # a headline is the first's
                    kinds.append("row")  # a row is waited for while others are made
                else:
                    kinds += [calibration.variant.method, "evaluation"]
        return kinds

    @property
    def results_folder(self) -> Path:
        """Where answers and results go."""
        return results_folder(self.plan)

    def _check_options(self) -> None:
        """Find all files, and try the options of every row that is not finished; those of other
        seeds are alike.
        """
        for variant in self.variants:
            self.configs.files(variant)
        self.configs.evaluation()
        tried: set[PlannedVariant] = set()
        for calibration in self.calibrations:
            if not calibration.finished and calibration.variant not in tried:
                tried.add(calibration.variant)
                self.configs.check(calibration)

    def _lock(self) -> None:
        """Refuse a folder whose calibrations are of another plan."""
        theirs, mine = stored_identity(self.root), self.configs.identity(self.variants)
        write_identity(self.root, joined_identity(self.root, theirs, mine))

    def _book(self, step: _progress.Step, calibration: Calibration | None, made: Answered) -> None:
        """Take what a row left on disk into the results.

        Args:
            step: under way.
            calibration: of the row; None for full precision.
            made: what its evaluation left.
        """
        # from the disk: a vocabulary times all questions of all rows is gigabytes
        answered = Predictions.load(made.folder, made.name)
        if calibration is None:
            self.known |= load_answers(made.folder)
        else:
            place = calibration.variant.title, calibration.seed, calibration.stress
            self.answers[place] = answered
        self.known[answered.name] = answered
        self.rows += variant_rows(answered, self.known)
        costs = calibration_costs(calibration, self.plan.pairs)
        head = row_head(answered) | {"task": OVERALL}
        self.rows += [head | row for row in (*costs, *made.text)]
        if not made.fresh:
            step.skip()
        write_results(self._file("results.json"), self.rows)

    def _steps(self) -> list[Row]:
        rows = []
        for row, against in planned_steps(self.plan):
            for stress in self.stresses:
                pairs = [
                    (self.answers[row, seed, stress], self.answers[against, seed, stress])
                    for seed in self.plan.seeds
                ]
                variant, split = pairs[0][0].variant, pairs[0][0].split
                reference = self.known[file_name(variant.reference, split=split)]
                rows += step_rows(Step(row, against, pairs, reference))
        return rows

    def _finish(self) -> None:
        drawn, steps = grids(self.rows), self._steps()
        drawn += fidelity_grids(self.rows)
        if steps:
            drawn.append(step_grid(steps))
            write_results(self._file("results.json"), self.rows, steps)
        write_whole(self._file("table.md"), "\n\n".join(map(markdown, drawn)) + "\n")
        with writing(self._file("table.png")) as scratch:
            results_figure(self.rows).savefig(scratch, dpi=160, format="png")
        for grid in drawn:
            show(grid)
        files = [self._file(name).name for name in ("results.json", "table.md", "table.png")]
        where = f"{files[0]}, {files[1]} and {files[2]} are in {self.results_folder}"
        print(f"{where}; {self.progress.total()}")

    def _file(self, name: str) -> Path:
        """Return where a result goes; those of the development split lie beside those of test."""
        split = self.plan.split
        path = self.results_folder / name
        return path if split in (None, "test") else path.with_stem(f"{path.stem}-{split}")
