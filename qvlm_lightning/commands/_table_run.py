"""The run of a table: calibrations, evaluations, files of results; it resumes."""

import time
from pathlib import Path
from typing import Any

from qvlm_lightning.cli import train_main
from qvlm_lightning.commands._peak_memory import peak_bytes, reset_peak
from qvlm_lightning.commands._progress import Progress
from qvlm_lightning.commands._table_calibrations import (
    SECONDS,
    Calibration,
    planned_calibrations,
    planned_stresses,
    results_folder,
    stress_folder,
)
from qvlm_lightning.commands._table_configs import (
    TableConfigs,
    joined_identity,
    stored_identity,
    write_identity,
)
from qvlm_lightning.commands._table_costs import calibration_costs
from qvlm_lightning.commands._table_disk import share_weights
from qvlm_lightning.commands._table_fidelity import TableFidelity
from qvlm_lightning.commands._table_plan import (
    PlannedVariant,
    TablePlan,
    planned_steps,
    planned_variants,
    stress_options,
)
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.evaluation.cli import EvaluationCLI, quiet
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.files import write_json, write_whole, writing
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.fidelity_tables import fidelity_grids
from qvlm_lightning.results.figure import results_figure
from qvlm_lightning.results.predictions import Predictions, is_stored
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
from qvlm_lightning.weights.exported import MANIFEST


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
        self.fidelity = None if plan.fidelity is None else TableFidelity(plan.fidelity)
        self.known: dict[str, Predictions] = {}
        self.answers: dict[tuple[str, int, Stress], Predictions] = {}
        self.rows: list[Row] = []
        self.progress = Progress(self._kinds())

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
            if alone:
                self._finish()

    def _make(self) -> None:
        for stress in self.stresses:
            program = self.evaluation(stress)
            self._evaluate(program, None)
            for calibration in self.calibrations:
                if calibration.stress == stress:
                    self._calibrate(calibration)
                    self._evaluate(program, calibration)

    def _kinds(self) -> list[str]:
        kinds = []
        for stress in self.stresses:
            kinds.append("full precision")
            for calibration in self.calibrations:
                if calibration.stress == stress:
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
        """Refuse a folder whose calibrations another plan identity."""
        theirs, mine = stored_identity(self.root), self.configs.identity(self.variants)
        write_identity(self.root, joined_identity(self.root, theirs, mine))

    def _calibrate(self, calibration: Calibration) -> None:
        with self.progress.step(f"calibrate {calibration.label}") as step:
            if calibration.finished:
                step.skip()
                return
            began, computing = time.monotonic(), time.process_time()
            begun = (calibration.folder / "config.yaml").is_file()
            resume = ["--ckpt_path=last"] if begun else []
            counted = reset_peak()
            train_main(["fit", *self.configs.options(calibration), *resume], summary=False)
            costs = {
                "seconds": round(time.monotonic() - began, 3),
                "cpu_seconds": round(time.process_time() - computing, 3),
            }
            self._calibrated(calibration, costs | ({"peak_bytes": peak_bytes()} if counted else {}))

    def _calibrated(self, calibration: Calibration, costs: dict[str, Any]) -> None:
        """Note what a calibration cost: an interrupted one, since it was resumed."""
        if not calibration.finished:
            raise InputError(
                f"the calibration in {str(calibration.folder)!r} stopped before its end; "
                "give the same command again to resume"
            )
        write_json(calibration.folder / SECONDS, costs)
        share_weights(calibration.artifact, [other.artifact for other in self.calibrations])

    def evaluation(self, stress: Stress) -> EvaluationCLI:
        """Return the program that answers the questions of a stress variant."""
        root = stress_folder(self.plan, stress, self.results_folder)
        return EvaluationCLI(
            [
                f"--config={self.configs.evaluation()}",
                f"--trainer.default_root_dir={root}",
                f"--data.init_args.evaluation_count={self.plan.questions}",
                *self.configs.split,
                *stress_options(stress),
                *self.plan.sources,
            ]
        )

    def _evaluate(self, program: EvaluationCLI, calibration: Calibration | None) -> None:
        label = "full precision" if calibration is None else calibration.label
        with self.progress.step(f"evaluate {label}") as step:
            module, data, trainer = program.model, program.datamodule, program.trainer
            if calibration is not None:
                module = self._module(program, calibration)
            module.build(data)
            if calibration is not None and module.base != program.model.base:
                raise InputError(
                    f"{str(calibration.folder)!r} was calibrated from other weights than the model "
                    "has now; remove the folder"
                )
            folder = Path(trainer.default_root_dir) / "predictions"
            name, key = file_name(module.variant, split=data.split), module.key(data.evaluation)
            there = is_stored(folder, name, module.source, data.evaluation_ids, key)
            answered = evaluate(trainer, module, data, reference=False, again=False)
            # from the disk: a vocabulary times all questions of all rows is gigabytes
            answered = Predictions.load(folder, answered.name)
            if calibration is None:
                program.save()
                self.known |= load_answers(folder)
            else:
                place = calibration.variant.title, calibration.seed, calibration.stress
                self.answers[place] = answered
            self.known[answered.name] = answered
            self.rows += variant_rows(answered, self.known)
            found, measured = self.text_rows(program, module)
            costs = calibration_costs(calibration, self.plan.pairs)
            head = row_head(answered) | {"task": OVERALL}
            self.rows += [head | row for row in (*costs, *found)]
            if there and not measured:
                step.skip()
            write_results(self._file("results.json"), self.rows)

    def text_rows(self, program: EvaluationCLI, module: VQAEvaluation) -> tuple[list[Row], bool]:
        """Return how far a variant's text is from full precision's, and whether it was measured
        now; nothing where the plan does not ask.

        Args:
            program: of the evaluation.
            module: the variant, built.
        """
        if self.fidelity is None:
            return [], False
        folder = stress_folder(self.plan, module.variant.stress) / "fidelity"
        processor, device = program.datamodule.processor, program.trainer.strategy.root_device
        return self.fidelity.rows(folder, module, processor, device)

    def _module(self, program: EvaluationCLI, calibration: Calibration) -> VQAEvaluation:
        """Return the evaluation of an artifact; refuse one that something else put there."""
        manifest = _manifest(calibration.artifact)
        method, seed = str(manifest.get("method")), manifest.get("seed")
        scheme, planned = str(manifest.get("scheme_name")), calibration.variant
        same_method = planned.calls_itself(method)
        same_scheme = planned.may_be(scheme, str(manifest.get("activation_mode")))
        if seed != calibration.seed or not same_method or not same_scheme:
            raise InputError(
                f"{str(calibration.folder)!r} holds {scheme} {method}, seed {seed}, the plan has "
                f"{calibration.label}; choose another root or remove the folder"
            )
        full = program.model
        return VQAEvaluation(
            full.family,
            str(calibration.artifact),
            full.max_new_tokens,
            name=planned.label(scheme),
        )

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


def _manifest(artifact: Path) -> dict[str, Any]:
    try:
        return dict(parse_json((artifact / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"artifact {str(artifact)!r} cannot be read ({error}); remove its run folder"
        ) from error
