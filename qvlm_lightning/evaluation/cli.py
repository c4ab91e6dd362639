"""The evaluation program."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningCLI

import qvlm_lightning.data.chat
import qvlm_lightning.data.tiny
import qvlm_lightning.models  # noqa: F401  short class names in YAML
from qvlm_lightning.arguments import check_trainer_precision
from qvlm_lightning.artifact.card import put_results
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.errors import Foreign
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.progress import QuestionBar
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.exits import user_faults
from qvlm_lightning.files import write_json, write_whole, writing
from qvlm_lightning.foreign_notes import without_foreign_notes
from qvlm_lightning.lightning_parser import OneSentenceParser
from qvlm_lightning.ranks import RankWatch, check_scheduler
from qvlm_lightning.results.evaluation_facts import evaluation_facts
from qvlm_lightning.results.next_steps import steps_after_evaluation
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import grids, markdown, show
from qvlm_lightning.results.report import (
    asked_differently,
    load_answers,
    report_rows,
    write_results,
)
from qvlm_lightning.results.run_report import show_lines
from qvlm_lightning.results.scores import score_grids
from qvlm_lightning.run_lock import run_lock
from qvlm_lightning.weights.exported import located

KERNELS = "kernels.json"
CONFIG = "eval.yaml"
"""What was evaluated, in the run folder: ``compare`` finds the questions by it."""


class EvaluationCLI(LightningCLI):
    """``python eval.py --config configs/eval/tiny.yaml --model.artifact runs/demo/artifact``."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            VQAEvaluation,
            VQADataModule,
            run=False,
            save_config_callback=None,
            parser_class=OneSentenceParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=False,
            trainer_defaults={
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "default_root_dir": "runs/eval",
            },
            args=args,
        )

    def add_arguments_to_parser(self, parser: Any) -> None:
        """One model for both; what else is evaluated beside the variant."""
        parser.link_arguments(
            "model.init_args.family", "data.init_args.family", apply_on="instantiate"
        )
        parser.add_argument(
            "--reference",
            type=bool,
            default=True,
            help="with an artifact, also evaluate full precision unless its answers are stored",
        )
        parser.add_argument(
            "--controls",
            type=bool,
            default=True,
            help="with full precision, also evaluate a blind guesser and shuffled images",
        )
        parser.add_argument(
            "--simulate",
            type=bool,
            default=False,
            help="fake-quantize an artifact, as calibration does, instead of computing with its "
            "packed weights; on a GPU this is always so",
        )

    def before_instantiate_classes(self) -> None:
        """Refuse another precision than the model's, and other processes than a scheduler's."""
        check_trainer_precision(self.config["trainer"]["precision"])
        check_scheduler(self.config["trainer"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Count questions instead of batches, unless the configuration has a bar of its own."""
        given = self.config_init["trainer"]
        callbacks = list(given["callbacks"] or [])
        if given["enable_progress_bar"] is not False:
            own = any(isinstance(callback, ProgressBar) for callback in callbacks)
            callbacks += [] if own else [QuestionBar()]
        with Foreign("no Trainer can be made of the trainer's options"):
            trainer: Any = super().instantiate_trainer(**(kwargs | {"callbacks": callbacks}))
        trainer.callbacks.insert(0, RankWatch(trainer))
        return trainer

    def save(self) -> None:
        """Write the configuration into the run folder, as a whole."""
        path = Path(self.trainer.default_root_dir) / CONFIG
        with writing(path) as scratch:
            self.parser.save(self.config, scratch, skip_none=False, overwrite=True, multifile=False)


def eval_main(args: ArgsType = None) -> EvaluationCLI:
    """Evaluate a variant, compare it with what the run folder holds, print and store the result.

    Args:
        args: command line without the program's name; that of the process by default.

    Raises:
        SystemExit: code 2 on a user fault, printed as one sentence; 128 and its number after a
            signal. Answers so far are kept.
    """
    with user_faults(), quiet(), ExitStack() as held:
        cli = EvaluationCLI(args)
        options = {key: cli.config[key] for key in ("reference", "controls")}
        cli.model.packed = not cli.config["simulate"] and _on_cpu(cli.trainer)
        if cli.trainer.is_global_zero:
            held.enter_context(run_lock(Path(cli.trainer.default_root_dir)))
        answered = evaluate(cli.trainer, cli.model, cli.datamodule, **options)
        if not cli.trainer.is_global_zero:
            return cli
        root = Path(cli.trainer.default_root_dir)
        cli.save()
        known = load_answers(root / "predictions")
        rows = report_rows(known)
        write_results(root / "results.json", rows)
        drawn = [*grids(rows), *score_grids(known)]
        notes = [*asked_differently(known), *_computed_by(cli.model, known)]
        tables = "\n\n".join([*map(markdown, drawn), *notes]) + "\n"
        write_whole(root / "results.md", tables)
        _write_kernels(root / KERNELS, cli.model)
        if cli.model.artifact is not None:
            put_results(located(cli.model.artifact), tables)
        for grid in drawn:
            show(grid)
        for note in notes:
            print(f"note: {note}")
        facts = evaluation_facts(answered, known, root)
        show_lines(facts, steps_after_evaluation(root))
    return cli


def _write_kernels(path: Path, module: VQAEvaluation) -> None:
    """Write which kernels have answered; those of an earlier evaluation stay where the answers of
    the same artifact were all stored, and go where it was fake-quantized.
    """
    if module.artifact is not None and module.kernels is None:
        path.unlink(missing_ok=True)
    if module.kernels is not None and module.kernels.used():
        write_json(path, {"artifact": module.artifact, **module.kernels.report()})


def _on_cpu(trainer: Trainer) -> bool:
    return bool(trainer.strategy.root_device.type == "cpu")


def _computed_by(module: VQAEvaluation, known: Mapping[str, Predictions]) -> list[str]:
    """Return how an artifact was computed, by which kernels, and what its packed model says; and
    which rows were computed otherwise.
    """
    if module.artifact is None:
        return []
    packed = module.kernels is not None
    rows = [x for x in known.values() if not x.variant.is_fp]
    odd = [x.variant.name for x in rows if bool(x.asked.get("packed")) != packed]
    how = "fake-quantized" if packed else "computed with packed weights"
    others = [f"{how}, unlike this one: {', '.join(odd)}"] if odd else []
    if module.kernels is None:
        return ["computed by fake quantization", *others]
    used = ", ".join(f"{name} ({count} layers)" for name, count in module.kernels.used().items())
    what = f"computed with packed weights: {used}" if used else "all answers were stored"
    return [what, *module.kernels.notes(), *others]


@contextmanager
def quiet() -> Iterator[None]:
    """Mute notes of the libraries that tell an evaluation nothing: hardware, loaders, weights."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with without_foreign_notes():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
