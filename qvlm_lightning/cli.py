"""The calibration program: a LightningCLI whose faults are one sentence and exit code 2."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import qvlm_lightning.callbacks
import qvlm_lightning.methods
import qvlm_lightning.models
from qvlm_lightning.arguments import (
    check_trainer_options,
    usable_accelerator,
)
from qvlm_lightning.calibration.checkpoint import latest, read_checkpoint
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.visual_encoder import VisualEncoderOptimization
from qvlm_lightning.callbacks import ArtifactExport, CalibrationBar, PercentileSearch
from qvlm_lightning.callbacks.between_epochs import BetweenEpochs
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.chat import ChatData
from qvlm_lightning.data.tiny import TinyVQA
from qvlm_lightning.errors import Foreign, InputError
from qvlm_lightning.exits import user_faults
from qvlm_lightning.files import storage_faults, writing
from qvlm_lightning.foreign_notes import without_foreign_notes
from qvlm_lightning.lightning_parser import OneSentenceParser
from qvlm_lightning.methods.base import Method
from qvlm_lightning.progress import say
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.ranks import RankWatch, check_scheduler, requeued
from qvlm_lightning.results.run_report import show_run
from qvlm_lightning.run_lock import run_lock
from qvlm_lightning.stopping import command_line

_OURS = "qvlm_lightning.callbacks."


class RunConfig(SaveConfigCallback):
    """Saves ``config.yaml`` into the run folder, also over that of the run it resumes."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write the file as a whole."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / self.config_filename
            with writing(path) as scratch:
                self.parser.save(self.config, scratch, skip_none=False, multifile=False)


class RunFolder(ExitStack):
    """What a program holds of its run folder, once it knows which that is."""

    path: Path | None = None

    def again(self) -> str:
        """Return the command that goes on with the run."""
        begun = self.path is not None and (self.path / "config.yaml").exists()
        return f"{command_line()} --ckpt_path last" if begun else command_line()

    def hold(self, path: Path) -> None:
        """Lock the folder against other processes."""
        self.enter_context(run_lock(path))


class CalibrationCLI(LightningCLI):
    """``python train.py fit --config ...``."""

    def __init__(self, args: ArgsType = None, folder: RunFolder | None = None) -> None:
        self.folder = folder or RunFolder()
        super().__init__(
            QuantModule,
            VQADataModule,
            save_config_callback=RunConfig,
            parser_class=OneSentenceParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the one subcommand: an artifact is evaluated by ``eval.py``, not by the Trainer's
        ``validate``, ``test`` or ``predict``.
        """
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: Any) -> None:
        """One model for both, one seed for both, and one epoch more than the optimisation has; the
        help shows the options of models, methods and data.
        """
        offered = [x for x in vars(qvlm_lightning.methods).values() if isinstance(x, type)]
        methods = [x for x in offered if issubclass(x, Method) and x is not Method]
        parser.described = {
            "model": (QuantModule, VisualEncoderOptimization),
            "model.method": methods,
            "model.scheme": (Scheme,),
            "data": (VQADataModule, ChatData, TinyVQA),
        }
        parser.link_arguments(
            "model.init_args.family", "data.init_args.family", apply_on="instantiate"
        )
        parser.link_arguments("data.init_args.seed", "model.init_args.seed", apply_on="parse")

    def _set_seed(self) -> None:
        """Seed everything; what is no seed is a sentence."""
        with Foreign("seed_everything cannot be used"):
            super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Resolve the accelerator ``auto``, refuse a precision, take callbacks given twice once."""
        trainer = self.config[self.subcommand]["trainer"]
        check_trainer_options(trainer)
        check_scheduler(trainer)
        trainer["accelerator"] = usable_accelerator(trainer["accelerator"])
        # configs/base.yaml has them; older method files append them again
        given = trainer["callbacks"] or []
        own = {c["class_path"]: c for c in given if c["class_path"].startswith(_OURS)}
        others = [c for c in given if c["class_path"] not in own]
        if trainer["enable_progress_bar"] is False:  # configs/base.yaml names a bar
            others = [c for c in others if not c["class_path"].endswith("ProgressBar")]
        trainer["callbacks"] = others + list(own.values())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the bar and the logger that a run has unless the configuration says otherwise, and
        let the processes of the run end together.
        """
        given = self.config_init["fit"]["trainer"]
        callbacks = list(given["callbacks"] or [])
        if given["enable_progress_bar"] is not False:
            own = any(isinstance(callback, ProgressBar) for callback in callbacks)
            callbacks += [] if own else [CalibrationBar()]
        kwargs |= {"callbacks": callbacks}
        if given["logger"] in (None, True):
            # always the same folder: a resumed run goes on in it
            root = given["default_root_dir"] or "."
            kwargs["logger"] = TensorBoardLogger(root, version=0, default_hp_metric=False)
        with Foreign("no Trainer can be made of the trainer's options"):
            trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, RankWatch(trainer))
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is; Lightning would put the checkpoint's in its place."""

    def before_fit(self) -> None:
        """Refuse what cannot work while nothing is written; add an epoch for the final pass."""
        trainer: Any = self.trainer  # sets fast_dev_run on itself, undeclared
        root = self.folder.path = Path(trainer.default_root_dir)
        holds = trainer.is_global_zero and not trainer.fast_dev_run
        if holds and root.is_dir():
            self.folder.hold(root)
        checkpoint = None if trainer.fast_dev_run else self._checkpoint(root)
        if trainer.fast_dev_run:
            self.datamodule.shorten(max(2, trainer.world_size * self.model.micro_batches))
        self.datamodule.setup("fit")
        register_callbacks(self.model, trainer)
        with self.model.phases("loading the model"):
            self.model.build(self.datamodule, trainer)
        if checkpoint is not None:
            self.model.check(checkpoint[1])
        self.config_init["fit"]["ckpt_path"] = checkpoint and str(checkpoint[0])
        if not trainer.fast_dev_run:
            trainer.fit_loop.max_epochs = self.model.epochs + 1
            with storage_faults(root):
                (root / "checkpoints").mkdir(parents=True, exist_ok=True)
            if holds:
                self.folder.hold(root)

    def _checkpoint(self, root: Path) -> tuple[Path, dict[str, Any]] | None:
        """Return the file to resume from and what it holds; refuse the folder of another run.

        ``last`` in a run that was stopped before its first checkpoint starts that run afresh; what
        its search has decided is taken over.
        """
        asked, begun = self.config["fit"].get("ckpt_path"), (root / "config.yaml").exists()
        if asked is None and begun and requeued():
            asked = "last"  # the scheduler gives the same command again
        if asked is None:
            if begun and self.trainer.is_global_zero:
                raise InputError(
                    f"run folder {str(root)!r} already holds a run; resume it with --ckpt_path "
                    "last or choose another --trainer.default_root_dir"
                )
            return None
        if asked == "last":
            return self._last(root, begun)
        if not Path(asked).is_file():
            raise InputError(f"checkpoint {asked!r} does not exist; give a file, or the word last")
        if begun and root.resolve() not in Path(asked).resolve().parents:
            raise InputError(
                f"checkpoint {asked!r} is not of the run that {str(root)!r} holds; resume that one "
                "with --ckpt_path last or choose another --trainer.default_root_dir"
            )
        return Path(asked), read_checkpoint(Path(asked))

    def _last(self, root: Path, begun: bool) -> tuple[Path, dict[str, Any]] | None:
        found = latest(root / "checkpoints")
        if found is None and not begun:
            raise InputError(
                f"--ckpt_path last is given, but run folder {str(root)!r} holds no checkpoint and "
                "no run; leave it out to start one, or give the folder of the run"
            )
        note = "no checkpoint yet: the run starts from its beginning, with what its search decided"
        path, contents, note = found or (None, {}, note)
        if note and self.trainer.is_global_zero:
            say(note)
        return None if path is None else (path, contents)


def register_callbacks(module: QuantModule, trainer: Any) -> None:
    """Let callbacks tell the module what they will ask for, before it is built.

    Raises:
        InputError: there is a method that no callback uses, or a callback without what it needs.
    """
    kinds = (BetweenEpochs, ArtifactExport)
    for callback in trainer.callbacks:
        if isinstance(callback, kinds):
            callback.setup(trainer, module, "fit")
    searching = any(isinstance(callback, PercentileSearch) for callback in trainer.callbacks)
    if module.method is not None and not searching:
        raise InputError(
            f"model.method is {type(module.method).__name__}, but no callback uses it; add "
            "qvlm_lightning.callbacks.PercentileSearch to trainer.callbacks"
        )


def train_main(args: ArgsType = None, summary: bool = True) -> CalibrationCLI:
    """Run the calibration program.

    Args:
        args: command line without the program's name; default ``sys.argv``.
        summary: print what the run did and the commands that follow.

    Raises:
        SystemExit: code 2 on a user fault, printed as one sentence; 128 and its number after a
            signal.
    """
    folder = RunFolder()
    # inside another program its command goes on
    faults = user_faults(folder.again if args is None else command_line)
    with faults, folder, without_foreign_notes():
        cli = CalibrationCLI(args, folder)
        trainer: Any = cli.trainer  # sets fast_dev_run on itself, undeclared
        root = Path(trainer.default_root_dir)
        reported = trainer.is_global_zero and (root / "report.json").is_file()
        if summary and reported and not trainer.fast_dev_run:
            show_run(root)
        return cli
