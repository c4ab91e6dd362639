"""The evaluation of a variant: its answers are stored, with those it is compared with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from qvlm_lightning.arguments import check_trainer_precision
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.controls import blind_answers, shuffle_images
from qvlm_lightning.data.loaders import QuestionBatches
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.journal import EvaluationKey, Journal
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.questions import SharedQuestions
from qvlm_lightning.metrics.grouped import plain_scores
from qvlm_lightning.results.predictions import Predictions, is_stored
from qvlm_lightning.results.variant import Control, file_name


def evaluate(
    trainer: Trainer,
    module: VQAEvaluation,
    data: VQADataModule,
    reference: bool = True,
    controls: bool = True,
    again: bool = True,
) -> Predictions:
    """Answer all questions and store the answers under ``<default_root_dir>/predictions``.

    An evaluation that was interrupted goes on where it was. Several processes share the questions;
    the folder must be one that all of them see.

    Args:
        trainer: runs the test loop.
        module: the variant.
        data: the questions.
        reference: for an artifact, also evaluate full precision unless its answers are stored.
        controls: with full precision, also evaluate the blind guesser and shuffled images unless
            their answers are stored.
        again: answer even if all of the variant's answers are stored.

    Returns:
        The variant's answers, in every process.

    Raises:
        InputError: the trainer would leave questions out or convert the model.
    """
    _check_trainer(trainer)
    folder = Path(trainer.default_root_dir) / "predictions"
    module.build(data)
    if reference and module.artifact is not None:
        full = VQAEvaluation(
            module.family,
            max_new_tokens=module.max_new_tokens,
            stop=module.stop,
            keep_log_probs=module.keep_log_probs,
        )
        evaluate(trainer, full, data, controls=controls, again=False)
    run = _Run(trainer, module, data, folder)
    run.check(again)
    if controls and module.artifact is None:
        run.blind()
        run.shuffled()
    return run.plain()


def _check_trainer(trainer: Trainer) -> None:
    limit = trainer.limit_test_batches
    if not isinstance(limit, float) or limit != 1.0:
        raise InputError(
            "trainer.fast_dev_run and trainer.limit_test_batches leave questions out; ask fewer "
            "with data.evaluation_count"
        )
    check_trainer_precision(trainer.precision)


class _Run:
    def __init__(
        self, trainer: Trainer, module: VQAEvaluation, data: VQADataModule, folder: Path
    ) -> None:
        self.trainer, self.module, self.data, self.folder = trainer, module, data, folder
        self.batches: QuestionBatches | None = None

    def check(self, again: bool) -> None:
        """Write every prompt before the first is answered, and say what is odd about them."""
        if not again and self._done(self.data.evaluation):
            return
        self.batches = self._in_batches(self.data.evaluation)
        assert self.module.model is not None
        notes = self.batches.check(self.module.family.positions(self.module.model))
        if self.trainer.is_global_zero:
            for note in [*self.data.evaluation_notes, *notes]:
                print(f"note: {note}", file=sys.stderr)

    def _in_batches(self, samples: Sequence[Sample]) -> QuestionBatches:
        return QuestionBatches(samples, self.data.processor, self.data.evaluation_batch_size)

    def plain(self) -> Predictions:
        if self.batches is None:
            return Predictions.load(self.folder, self._name())
        return self._answer(self.data.evaluation, self.batches)

    def blind(self) -> None:
        questions = self.data.evaluation
        if self._done(questions, "blind"):
            return
        known = self.data.blind_samples()
        if known and self.trainer.is_global_zero:
            texts = blind_answers(known, questions)
            self._predictions(questions, texts, 0.0, "blind").save(self.folder)

    def shuffled(self) -> None:
        shown = [sample for sample in self.data.evaluation if sample.image is not None]
        if not shown or self._done(shown, "shuffled"):
            return
        shuffled = shuffle_images(shown)
        if shuffled:
            self._answer(shown, self._in_batches(shuffled), "shuffled")

    def _name(self, control: Control = "") -> str:
        return file_name(self.module.variant, control, self.data.split)

    def _key(self, control: Control) -> EvaluationKey:
        # of all questions for a control too: it counts beside the answers to the same ones
        return self.module.key(self.data.evaluation, control)

    def _done(self, samples: Sequence[Sample], control: Control = "") -> bool:
        key = self._key(control)
        ids = [sample.id for sample in samples]
        done = is_stored(self.folder, self._name(control), self.module.source, ids, key)
        # once there are several processes: one looks, all do the same
        return self.trainer.strategy.broadcast(done)

    def _answer(
        self, samples: Sequence[Sample], batches: QuestionBatches, control: Control = ""
    ) -> Predictions:
        name = self._name(control)
        journal = Journal(self.folder / f"{name}.partial")
        key = self._key(control)
        self.module.questions = questions = SharedQuestions(batches, journal, key)
        self.trainer.test(self.module, dataloaders=questions, verbose=False)
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            text_of = journal.texts()
            texts = [text_of[sample.id] for sample in samples]
            answered = self._predictions(samples, texts, round(journal.seconds(), 3), control)
            if key["log_probs"]:
                answered.log_probs = journal.log_probs(answered.ids)
            answered.save(self.folder)
            journal.remove()
        self.trainer.strategy.barrier()
        return answered if self.trainer.is_global_zero else Predictions.load(self.folder, name)

    def _predictions(
        self, samples: Sequence[Sample], texts: list[str], seconds: float, control: Control
    ) -> Predictions:
        module, data = self.module, self.data
        return Predictions.of(
            samples,
            texts,
            [data.judge(sample, text) for sample, text in zip(samples, texts, strict=True)],
            variant=module.variant,
            source=module.source,
            base=module.base,
            asked=self._key(control),
            seconds=seconds,
            control=control,
            split=data.split,
            search=module.search,
            benchmark=data.benchmark,
            mode=data.mode,
            scores=plain_scores(data.scores(samples, texts)),
        )
