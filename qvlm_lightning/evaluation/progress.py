"""The progress bar of an evaluation: it counts questions, not batches."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class QuestionBar(ProgressBar):
    """Shows how many questions are answered, how many per second, and how long is left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._shown = True

    def disable(self) -> None:
        """Show nothing: Lightning asks this of all processes but the main one."""
        self._shown = False

    def enable(self) -> None:
        """Show the bar."""
        self._shown = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at what an interrupted evaluation has answered."""
        questions: Any = pl_module.questions
        self._bar = tqdm(
            total=len(questions.samples),
            initial=len(questions.done),
            desc=questions.journal.folder.stem,
            unit=" questions",
            disable=not self._shown,
        )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch; the other processes are about as far as this one."""
        if self._bar is not None and batch:
            room = self._bar.total - self._bar.n
            self._bar.update(min(room, trainer.world_size * len(batch["sample_index"])))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the whole bar on the screen."""
        if self._bar is not None:
            self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
            self._bar = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the bar where it stopped."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
