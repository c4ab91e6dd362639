"""The evaluation program."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningCLI

import qvlm_lightning.data.chat
import qvlm_lightning.data.tiny
import qvlm_lightning.models  # noqa: F401  short class names in YAML
from qvlm_lightning.arguments import OneSentenceParser, check_trainer_precision
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.progress import QuestionBar
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.exits import user_faults
from qvlm_lightning.results.render import grids, markdown, show
from qvlm_lightning.results.report import (
    asked_differently,
    load_answers,
    report_rows,
    write_results,
)
from qvlm_lightning.results.scores import score_grids

CONFIG = "eval.yaml"
"""What was evaluated, in the run folder: ``compare`` finds the questions by it."""

_NOTES = (
    r"isinstance\(treespec, LeafSpec\)",
    "does not have many workers",
    "this fit will run with no optimizer",  # searches have nothing to optimise
    "LightningCLI's args parameter is intended",  # the table runs programs in its own process
    r"It is recommended to use `self.log",  # the metric has summed over processes by itself
    r"Found \d+ module\(s\) in eval mode",  # a calibrated model stays in eval mode on purpose
)


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

    def before_instantiate_classes(self) -> None:
        """Refuse a precision that is not the model's own."""
        check_trainer_precision(self.config["trainer"]["precision"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Count questions instead of batches, unless the configuration has a bar of its own."""
        given = self.config_init["trainer"]
        callbacks = list(given["callbacks"] or [])
        if given["enable_progress_bar"] is not False:
            own = any(isinstance(callback, ProgressBar) for callback in callbacks)
            callbacks += [] if own else [QuestionBar()]
        return super().instantiate_trainer(**(kwargs | {"callbacks": callbacks}))

    def save(self) -> None:
        """Write the configuration into the run folder, as a whole."""
        path = Path(self.trainer.default_root_dir) / CONFIG
        scratch = path.with_name(f".{path.name}.part")
        self.parser.save(self.config, scratch, skip_none=False, overwrite=True, multifile=False)
        scratch.replace(path)


def eval_main(args: ArgsType = None) -> EvaluationCLI:
    """Evaluate a variant, compare it with what the run folder holds, print and store the result.

    Args:
        args: command line without the program's name; that of the process by default.

    Raises:
        SystemExit: code 2 on a user fault, printed as one sentence.
    """
    with user_faults(), quiet():
        cli = EvaluationCLI(args)
        options = {key: cli.config[key] for key in ("reference", "controls")}
        evaluate(cli.trainer, cli.model, cli.datamodule, **options)
        if not cli.trainer.is_global_zero:
            return cli
        root = Path(cli.trainer.default_root_dir)
        cli.save()
        known = load_answers(root / "predictions")
        rows = report_rows(known)
        write_results(root / "results.json", rows)
        drawn = [*grids(rows), *score_grids(known)]
        notes = asked_differently(known)
        text = "\n\n".join([*map(markdown, drawn), *notes])
        (root / "results.md").write_text(f"{text}\n", encoding="utf-8")
        for grid in drawn:
            show(grid)
        for note in notes:
            print(f"note: {note}")
        print(f"rows: {root / 'results.json'}")
    return cli


@contextmanager
def quiet() -> Iterator[None]:
    """Mute notes of the libraries that tell an evaluation nothing: hardware, loaders, weights."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for note in _NOTES:
                warnings.filterwarnings("ignore", message=f".*{note}")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
