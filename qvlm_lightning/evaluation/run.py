"""Evaluate a variant and store its answers, with those it is compared with."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from qvlm_lightning.data.base import QuestionBatches, VQADataModule
from qvlm_lightning.data.controls import blind_answers, shuffle_images
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.predictions import Control, Predictions, file_name, is_stored


def evaluate(
    trainer: Trainer,
    module: VQAEvaluation,
    data: VQADataModule,
    reference: bool = True,
    controls: bool = True,
    again: bool = True,
) -> Predictions:
    """Answer all questions and store the answers under ``<default_root_dir>/predictions``.

    Args:
        trainer: runs the test loop.
        module: the variant.
        data: the questions.
        reference: for an artifact, also evaluate full precision unless its answers are stored.
        controls: with full precision, also evaluate the blind guesser and shuffled images.
        again: answer even if the variant's answers are stored.

    Returns:
        The variant's answers.
    """
    folder = Path(trainer.default_root_dir) / "predictions"
    module.build(data)
    if reference and module.artifact is not None:
        full = VQAEvaluation(module.family, max_new_tokens=module.max_new_tokens)
        evaluate(trainer, full, data, controls=controls, again=False)
    run = _Run(trainer, module, data, folder, again)
    if controls and module.artifact is None:
        run.blind()
        run.shuffled()
    return run.plain()


class _Run:
    def __init__(
        self,
        trainer: Trainer,
        module: VQAEvaluation,
        data: VQADataModule,
        folder: Path,
        again: bool,
    ) -> None:
        self.trainer, self.module, self.data = trainer, module, data
        self.folder, self.again = folder, again

    def plain(self) -> Predictions:
        name = file_name(self.module.variant)
        if self._done("", self.data.evaluation_ids):
            return Predictions.load(self.folder, name)
        self._test(self.data.test_dataloader())
        found = self.module.answered(self.data.evaluation)
        found.save(self.folder)
        return found

    def blind(self) -> None:
        asked = self.data.evaluation
        if self._done("blind", self.data.evaluation_ids):
            return
        texts = blind_answers(self.data.blind_samples(), asked)
        about: dict[str, Any] = {"variant": self.module.variant, "control": "blind"}
        about |= {"source": self.module.source, "base": self.module.base, "seconds": 0.0}
        Predictions.of(asked, texts, **about).save(self.folder)

    def shuffled(self) -> None:
        images = {id(s.image) for s in self.data.evaluation if s.image is not None}
        if len(images) < 2:
            return
        samples = shuffle_images(self.data.evaluation)
        if self._done("shuffled", [s.id for s in samples]):
            return
        size = self.data.evaluation_batch_size
        self._test(QuestionBatches(samples, self.data.processor, size))
        self.module.answered(samples, "shuffled").save(self.folder)

    def _done(self, control: Control, ids: list[str]) -> bool:
        name = file_name(self.module.variant, control)
        return not self.again and is_stored(self.folder, name, self.module.source, ids)

    def _test(self, batches: QuestionBatches) -> None:
        self.trainer.test(self.module, dataloaders=batches, verbose=False)
