"""Calibrate and evaluate a plan of variants, and print the table; resumes where it stopped."""

import json
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.cli import train_main
from qvlm_lightning.commands._progress import Progress
from qvlm_lightning.commands._table_plan import Calibration, TablePlan, parse_plan
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.cli import EvaluationCLI, quiet
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.results.figure import results_figure
from qvlm_lightning.results.predictions import Predictions, is_stored, write_whole
from qvlm_lightning.results.render import grids, markdown, show
from qvlm_lightning.results.report import Row, load_answers, variant_rows, write_results
from qvlm_lightning.results.variant import file_name

_MODEL_ROOMS = ("models", "data", "eval")


def main(argv: Sequence[str]) -> int:
    """Make the table of a plan.

    Args:
        argv: options, usually ``--config configs/table/demo.yaml``.

    Returns:
        Exit code 0.

    Raises:
        InputError: the plan names files that do not exist, or the folder holds another plan's runs.
    """
    with quiet():
        TableRun(parse_plan(argv, __doc__ or "")).run()
    return 0


class TableRun:
    """Carries out a plan; what is stored is taken, what is missing is made.

    Args:
        plan: what to compare.
    """

    def __init__(self, plan: TablePlan) -> None:
        self.plan = plan
        self.root = Path(plan.root)
        self.calibrations = [
            self._calibration(variant, seed, scale)
            for scale in plan.outlier_scales
            for seed in plan.seeds
            for variant in plan.variants
        ]
        if not self.calibrations:
            raise InputError("the plan compares nothing; give variants, seeds and outlier_scales")
        if plan.headline is not None and plan.headline not in plan.variants:
            allowed = ", ".join(plan.variants)
            raise InputError(f"headline is {plan.headline!r}; allowed are the variants {allowed}")
        self._check_configs()
        self.known: dict[str, Predictions] = {}
        self.rows: list[Row] = []
        self.progress = Progress(self._kinds())

    def run(self) -> None:
        """Calibrate, evaluate, write and print."""
        self._lock()
        for scale in self.plan.outlier_scales:
            program = self._evaluation(scale)
            self._evaluate(program, None)
            for calibration in self.calibrations:
                if calibration.scale == scale:
                    self._calibrate(calibration)
                    self._evaluate(program, calibration)
        self._finish()

    def _kinds(self) -> list[str]:
        kinds = []
        for scale in self.plan.outlier_scales:
            kinds.append("full precision")
            for calibration in self.calibrations:
                if calibration.scale == scale:
                    kinds += [calibration.method, "evaluation"]
        return kinds

    def _calibration(self, variant: str, seed: int, scale: float) -> Calibration:
        try:
            method, scheme = variant.split()
        except ValueError:
            raise InputError(
                f"variant {variant!r} is not a method and a scheme, such as 'qvlm w4a4'"
            ) from None
        folder = self._scale_folder(scale) / f"seed{seed}" / f"{method}-{scheme}"
        first = self.plan.seeds[0], self.plan.outlier_scales[0]
        if variant == self.plan.headline and (seed, scale) == first:
            folder = self.root
        return Calibration(method, scheme, seed, scale, folder)

    def _scale_folder(self, scale: float) -> Path:
        return self.root / f"{self.plan.model}-k{scale:g}"

    def _config(self, room: str, name: str) -> str:
        path = Path(self.plan.configs) / room / f"{name}.yaml"
        if not path.is_file():
            # a model is one name in three rooms
            rooms = _MODEL_ROOMS if room in _MODEL_ROOMS else (room,)
            folders = [Path(self.plan.configs) / other for other in rooms]
            names = [{p.stem for p in folder.glob("*.yaml")} for folder in folders]
            known = ", ".join(sorted(set.intersection(*names))) or "none there"
            raise InputError(f"there is no {str(path)!r}; allowed are {known}")
        return str(path)

    def _check_configs(self) -> None:
        for calibration in self.calibrations:
            self._options(calibration)
        self._config("eval", self.plan.model)

    def _lock(self) -> None:
        """Refuse a folder whose calibrations another plan made."""
        plan = self.plan
        mine = {
            "model": plan.model,
            "pairs": plan.pairs,
            "search_pairs": plan.search_pairs,
            "options": plan.options,
        }
        path = self.root / "plan.json"
        if path.is_file():
            theirs = json.loads(path.read_text(encoding="utf-8"))
            for key, value in mine.items():
                if theirs.get(key) != value:
                    raise InputError(
                        f"{str(self.root)!r} holds runs with {key} {theirs.get(key)!r}, the plan "
                        f"has {value!r}; choose another root or remove the folder"
                    )
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(mine, indent=1) + "\n")

    def _options(self, calibration: Calibration) -> list[str]:
        plan = self.plan
        files = [
            self._config("", "base"),
            self._config("methods", calibration.method),
            self._config("schemes", calibration.scheme),
            self._config("models", plan.model),
            self._config("data", plan.model),
        ]
        scale = [f"--model.init_args.family.init_args.outlier_scale={calibration.scale}"]
        return [
            *(f"--config={path}" for path in files),
            f"--trainer.default_root_dir={calibration.folder}",
            f"--data.init_args.seed={calibration.seed}",
            f"--data.init_args.calibration_pairs={plan.pairs}",
            f"--data.init_args.search_pairs={plan.search_pairs}",
            f"--data.init_args.evaluation_count={plan.questions}",
            *(scale if calibration.scale != 1 else []),
            *plan.options,
        ]

    def _calibrate(self, calibration: Calibration) -> None:
        with self.progress.step(f"calibrate {calibration.label}") as step:
            if calibration.finished:
                step.skip()
                return
            begun = (calibration.folder / "config.yaml").is_file()
            resume = ["--ckpt_path=last"] if begun else []
            train_main(["fit", *self._options(calibration), *resume])
            if not calibration.finished:
                raise InputError(
                    f"the calibration in {str(calibration.folder)!r} stopped before its end; "
                    "give the same command again to resume"
                )

    def _evaluation(self, scale: float) -> EvaluationCLI:
        stress = [f"--model.init_args.family.init_args.outlier_scale={scale}"]
        return EvaluationCLI(
            [
                f"--config={self._config('eval', self.plan.model)}",
                f"--trainer.default_root_dir={self._scale_folder(scale)}",
                f"--data.init_args.evaluation_count={self.plan.questions}",
                *(stress if scale != 1 else []),
            ]
        )

    def _evaluate(self, program: EvaluationCLI, calibration: Calibration | None) -> None:
        label = "full precision" if calibration is None else calibration.label
        with self.progress.step(f"evaluate {label}") as step:
            module = program.model
            if calibration is not None:
                module = VQAEvaluation(
                    module.family, str(calibration.artifact), module.max_new_tokens
                )
            data, trainer = program.datamodule, program.trainer
            module.build(data)
            if calibration is not None:
                _check(calibration, module, program.model.base)
            folder = Path(trainer.default_root_dir) / "predictions"
            name, key = file_name(module.variant, split=data.split), module.key(data.evaluation)
            if is_stored(folder, name, module.source, data.evaluation_ids, key):
                step.skip()
            answered = evaluate(trainer, module, data, reference=False, again=False)
            if calibration is None:
                program.save()
                self.known |= load_answers(folder)
            self.known[answered.name] = answered
            self.rows += variant_rows(answered, self.known)
            write_results(self.root / "results.json", self.rows)

    def _finish(self) -> None:
        drawn = grids(self.rows)
        write_whole(self.root / "table.md", "\n\n".join(map(markdown, drawn)) + "\n")
        results_figure(self.rows).savefig(self.root / "table.png", dpi=160)
        for grid in drawn:
            show(grid)
        print(f"results.json, table.md and table.png are in {self.root}; {self.progress.total()}")


def _check(calibration: Calibration, module: VQAEvaluation, base: str) -> None:
    """Refuse an artifact that something else put where the plan's calibration belongs."""
    found = module.variant
    have = found.scheme, found.method, found.seed
    if have != (calibration.scheme, calibration.method, calibration.seed):
        raise InputError(
            f"{str(calibration.folder)!r} holds {found.scheme} {found.method}, seed {found.seed}, "
            f"the plan has {calibration.label}; choose another root or remove the folder"
        )
    if module.base != base:
        raise InputError(
            f"{str(calibration.folder)!r} was calibrated from other weights than the model has "
            "now; remove the folder"
        )
