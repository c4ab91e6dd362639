"""What one row of a table takes: its calibration, its answers, its text; all of it lies on disk."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qvlm_lightning.cli import train_main
from qvlm_lightning.commands._table_calibrations import (
    SECONDS,
    Calibration,
    results_folder,
    stress_folder,
)
from qvlm_lightning.commands._table_configs import TableConfigs
from qvlm_lightning.commands._table_fidelity import TableFidelity
from qvlm_lightning.commands._table_files import planned_scheme
from qvlm_lightning.commands._table_plan import TablePlan, stress_options
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.evaluation.cli import EvaluationCLI
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.files import write_json
from qvlm_lightning.peak_memory import peak_bytes, reset_peak
from qvlm_lightning.results.predictions import is_stored
from qvlm_lightning.results.rows import Row
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import file_name
from qvlm_lightning.weights.exported import MANIFEST


@dataclass(frozen=True)
class Answered:
    """What the evaluation of a row left."""

    folder: Path
    """Where its answers lie."""
    name: str
    """Their file there, without ending."""
    text: list[Row]
    """How far its text is from full precision's; empty where the plan does not ask."""
    fresh: bool
    """Whether any of it was made now."""


class RowMaker:
    """Makes the files of rows, and takes those that are there.

    Args:
        plan: of the table.
    """

    def __init__(self, plan: TablePlan) -> None:
        self.plan = plan
        self.configs = TableConfigs(plan)
        self.fidelity = None if plan.fidelity is None else TableFidelity(plan.fidelity)
        self._program: tuple[Stress, EvaluationCLI] | None = None

    def calibrate(self, calibration: Calibration, processes: int = 1) -> bool:
        """Make an artifact, resuming what was begun; return whether there was anything to do.

        Args:
            calibration: one of the plan's.
            processes: that make rows meanwhile, for the record of what it cost.

        Raises:
            InputError: it stopped before its end.
        """
        if calibration.finished:
            return False
        began, computing = time.monotonic(), time.process_time()
        begun = (calibration.folder / "config.yaml").is_file()
        resume = ["--ckpt_path=last"] if begun else []
        counted = reset_peak()
        train_main(["fit", *self.configs.options(calibration), *resume], summary=False)
        costs = {
            "seconds": round(time.monotonic() - began, 3),
            "cpu_seconds": round(time.process_time() - computing, 3),
            "threads": torch.get_num_threads(),
            "processes": processes,
        }
        self._calibrated(calibration, costs | ({"peak_bytes": peak_bytes()} if counted else {}))
        return True

    def _calibrated(self, calibration: Calibration, costs: dict[str, Any]) -> None:
        """Note what a calibration cost: an interrupted one, since it was resumed."""
        if not calibration.finished:
            raise InputError(
                f"the calibration in {str(calibration.folder)!r} stopped before its end; "
                "give the same command again to resume"
            )
        write_json(calibration.folder / SECONDS, costs)

    def program(self, stress: Stress) -> EvaluationCLI:
        """Return the program that answers the questions of a stress variant, with the model in full
        precision; that of the variant before is let go.

        Args:
            stress: scales of the model.
        """
        if self._program is None or self._program[0] != stress:
            self.forget()
            root = stress_folder(self.plan, stress, results_folder(self.plan))
            made = EvaluationCLI(
                [
                    f"--config={self.configs.evaluation()}",
                    f"--trainer.default_root_dir={root}",
                    f"--data.init_args.evaluation_count={self.plan.questions}",
                    *self.configs.split,
                    *stress_options(stress),
                    *self.plan.sources,
                ]
            )
            made.model.build(made.datamodule)
            self._program = stress, made
        return self._program[1]

    def forget(self) -> None:
        """Let the model go."""
        self._program = None

    def answer(self, stress: Stress, calibration: Calibration | None = None) -> Answered:
        """Answer the questions and measure the text of a row.

        Args:
            stress: scales of the model.
            calibration: of the row; full precision by default, which every other row is compared
                with and which comes first.

        Raises:
            InputError: the artifact is another row's, or of other weights than the model has now.
        """
        program = self.program(stress)
        module, data, trainer = program.model, program.datamodule, program.trainer
        if calibration is not None:
            module = self._module(module, calibration)
            module.build(data)
            if module.base != program.model.base:
                raise InputError(
                    f"{str(calibration.folder)!r} was calibrated from other weights than the model "
                    "has now; remove the folder"
                )
        folder = Path(trainer.default_root_dir) / "predictions"
        name, key = file_name(module.variant, split=data.split), module.key(data.evaluation)
        there = is_stored(folder, name, module.source, data.evaluation_ids, key)
        answered = evaluate(trainer, module, data, reference=False, again=False)
        if calibration is None:
            program.save()
        text, measured = self.text_rows(program, module)
        return Answered(folder, answered.name, text, not there or measured)

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

    def _module(self, full: VQAEvaluation, calibration: Calibration) -> VQAEvaluation:
        """Return the evaluation of an artifact; refuse one that something else put there."""
        manifest = _manifest(calibration.artifact)
        method, seed = str(manifest.get("method")), manifest.get("seed")
        scheme, planned = str(manifest.get("scheme_name")), calibration.variant
        same_method = planned.calls_itself(method)
        changed = any(".scheme" in option for option in self.plan.options)
        own = None if changed else planned_scheme(self.plan, planned)
        same_scheme = planned.may_be(scheme, str(manifest.get("activation_mode")), own)
        if seed != calibration.seed or not same_method or not same_scheme:
            raise InputError(
                f"{str(calibration.folder)!r} holds {scheme} {method}, seed {seed}, the plan has "
                f"{calibration.label}; choose another root or remove the folder"
            )
        return VQAEvaluation(
            full.family,
            str(calibration.artifact),
            full.max_new_tokens,
            name=planned.label(scheme),
        )


def _manifest(artifact: Path) -> dict[str, Any]:
    try:
        return dict(parse_json((artifact / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"artifact {str(artifact)!r} cannot be read ({error}); remove its run folder"
        ) from error
