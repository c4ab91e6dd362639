"""The calibration program: a LightningCLI whose faults are one sentence and exit code 2."""

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback

import qvlm_lightning.callbacks
import qvlm_lightning.methods
import qvlm_lightning.models  # noqa: F401  short class names in YAML
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.errors import InputError
from qvlm_lightning.exits import user_faults


class RunFolder(SaveConfigCallback):
    """Saves ``config.yaml`` into the run folder; refuses a folder of another run."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check and write the run folder before any work starts."""
        root = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            try:
                root.mkdir(parents=True, exist_ok=True)
                self._write(trainer, root)
            except OSError as error:
                raise InputError(
                    f"run folder {str(root)!r} cannot be written: {error.strerror}"
                ) from error

    def _write(self, trainer: Any, root: Path) -> None:
        path = root / self.config_filename
        resuming = self.config.get("ckpt_path") is not None
        if path.exists() and not resuming:
            raise InputError(
                f"run folder {str(root)!r} already holds a run; resume it with --ckpt_path last or "
                "choose another --trainer.default_root_dir"
            )
        scratch = path.with_name(f".{path.name}.part")
        scratch.unlink(missing_ok=True)
        self.parser.save(self.config, scratch, skip_none=False, overwrite=True, multifile=False)
        scratch.replace(path)


class CalibrationCLI(LightningCLI):
    """``python train.py fit --config ...``."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            QuantModule,
            VQADataModule,
            save_config_callback=RunFolder,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=args,
        )

    def add_arguments_to_parser(self, parser: Any) -> None:
        """One model for both, one seed for both, and one epoch more than the optimisation has."""
        parser.link_arguments(
            "model.init_args.family", "data.init_args.family", apply_on="instantiate"
        )
        parser.link_arguments("data.init_args.seed", "model.init_args.seed", apply_on="parse")

    def before_fit(self) -> None:
        """The final pass is an epoch of its own."""
        trainer: Any = self.trainer  # sets fast_dev_run on itself, undeclared
        if not trainer.fast_dev_run:
            trainer.fit_loop.max_epochs = self.model.epochs + 1


def train_main(args: ArgsType = None) -> CalibrationCLI:
    """Run the calibration program.

    Args:
        args: command line without the program's name; default ``sys.argv``.

    Raises:
        SystemExit: code 2 on a user fault, printed as one sentence.
    """
    with user_faults():
        return CalibrationCLI(args)
