"""Writes ``report.json``, ``artifact/`` and ``report.html`` when everything is decided."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from qvlm_lightning.artifact import Artifact, save_artifact
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.report import manifest, report
from qvlm_lightning.errors import InputError
from qvlm_lightning.export import save_compressed
from qvlm_lightning.files import write_json
from qvlm_lightning.names import checked_name
from qvlm_lightning.nn.distributed import barrier, is_main
from qvlm_lightning.results.run_report import write_run_page


class ArtifactExport(Callback):
    """Exports at the end of the final epoch, before the last checkpoint is written.

    Args:
        method: deprecated, give ``model.name``.
    """

    def __init__(self, method: str | None = None) -> None:
        self.method = method

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot be exported."""
        if not isinstance(pl_module, QuantModule):
            raise InputError(
                f"ArtifactExport works on a QuantModule, not on {type(pl_module).__name__}"
            )
        # fast_dev_run is undeclared: the Trainer sets it on itself
        pl_module.reported = not cast(Any, trainer).fast_dev_run
        pl_module.exports = True
        if self.method is not None:
            pl_module.name = checked_name(self.method, "method")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export if this was the final epoch."""
        module = cast(QuantModule, pl_module)  # setup() has checked
        # fast_dev_run is undeclared: the Trainer sets it on itself
        if cast(Any, trainer).fast_dev_run or trainer.current_epoch < module.epochs:
            return
        if not module.finished:
            steps = module.state.steps
            raise RuntimeError(f"the final epoch ended after only {steps} optimiser steps")
        with module.phases("sensitivity" if module.sensitivity else "measurements"):
            sensitivity = module.sensitivity_report()
        if is_main():
            root = Path(trainer.default_root_dir)
            model = module.model
            assert model is not None
            told = report(module) | {"sensitivity": sensitivity}
            write_json(root / "report.json", told | {"spent": module.phases.spent})
            with module.phases("export"):
                processor = module.family.load_processor()
                said = manifest(module)
                weights, structure = module.streamed_weights, module.structure
                if module.scheme.target == "compressed-tensors":
                    made = Artifact(model, processor, said, structure)
                    save_compressed(root / "artifact", made, weights)
                else:
                    stored = structure.stored
                    save_artifact(root / "artifact", model, processor, said, weights, stored)
            write_json(root / "report.json", told | {"spent": module.phases.spent})
        barrier()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page, of what an earlier process exported, too."""
        root = Path(trainer.default_root_dir)
        if is_main() and not cast(Any, trainer).fast_dev_run and (root / "report.json").is_file():
            write_run_page(root)
