"""What every data module shares: checked samples, fixed calibration batches, evaluation batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lightning.pytorch import LightningDataModule

from qvlm_lightning.data.collate import Batch, collate
from qvlm_lightning.data.loaders import CalibrationLoader, QuestionBatches
from qvlm_lightning.data.sample import Sample, check_disjoint, check_samples
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.answers import is_correct, parse_answer
from qvlm_lightning.metrics.target import WHOLE, Judgement
from qvlm_lightning.models.family import VLMFamily


class VQADataModule(LightningDataModule, ABC):
    """Calibration pairs in a fixed order, and evaluation questions.

    A dataset is a subclass that returns samples; nothing here shuffles, so that a run is the same
    however it is interrupted or shared between processes.

    Args:
        family: whose processor makes the batches.
        calibration_pairs: image-text pairs that calibration sees.
        search_pairs: the first of them, used by the percentile search.
        batch_size: pairs per calibration batch, over all processes.
        evaluation_count: questions that are evaluated, the first ones; None for all there are.
        evaluation_batch_size: questions generated at once; results do not depend on it.
        seed: which calibration pairs are drawn; the evaluation questions are always the same.
    """

    answers_needed = True
    """Whether every calibration sample must have an answer (only L_reg needs them, eq. 10)."""

    def __init__(
        self,
        family: VLMFamily,
        calibration_pairs: int = 64,
        search_pairs: int = 16,
        batch_size: int = 8,
        evaluation_count: int | None = 2000,
        evaluation_batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {
            "calibration_pairs": calibration_pairs,
            "search_pairs": search_pairs,
            "batch_size": batch_size,
            "evaluation_count": evaluation_count,
            "evaluation_batch_size": evaluation_batch_size,
        }
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; allowed are integers of at least 1")
        if search_pairs > calibration_pairs:
            raise InputError(
                f"search_pairs is {search_pairs}; allowed are 1 to calibration_pairs, which is "
                f"{calibration_pairs}"
            )
        self.family = family
        self.calibration_pairs = calibration_pairs
        self.search_pairs = search_pairs
        self.batch_size = batch_size
        self.evaluation_count = evaluation_count
        self.evaluation_batch_size = evaluation_batch_size
        self.seed = seed
        self.notes: list[str] = []
        self.evaluation_notes: list[str] = []
        self._collated: dict[tuple[int, int, int, int], Batch] = {}

    # --- what a dataset supplies ------------------------------------------------------------------

    @abstractmethod
    def calibration_samples(self) -> list[Sample]:
        """Return at least ``calibration_pairs`` samples, the same at every call."""

    @abstractmethod
    def evaluation_samples(self) -> list[Sample]:
        """Return at least ``evaluation_count`` samples, the same at every call and seed."""

    def blind_samples(self) -> list[Sample]:
        """Return samples that are not evaluated, from which a guesser learns frequent answers."""
        return self.calibration_samples()

    # --- how answers are scored ------------------------------------------------------------------

    @property
    def benchmark(self) -> str:
        """Name of the task in results."""
        return type(self).__name__.lower()

    @property
    def mode(self) -> str:
        """Name of the scoring rule in results."""
        return "exact"

    @property
    def split(self) -> str:
        """Name of the split that is evaluated, in results; empty where a dataset names none."""
        return ""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer worth waiting for, in tokens, unless the evaluation is told another."""
        return 16

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, unless the evaluation is told others."""
        return ()

    def judge(self, sample: Sample, text: str) -> Judgement:
        """Score one answer; a dataset with a rule of its own overrides this and :meth:`scores`.

        Args:
            sample: the question.
            text: what was generated.
        """
        choices = len(sample.choices)
        right = is_correct(text, sample.answer, choices)
        return Judgement(WHOLE if right else 0, parse_answer(text, choices))

    def scores(self, samples: Sequence[Sample], texts: Sequence[str]) -> dict[str, float]:
        """Return the benchmark's own figures by name, in percent; none by default.

        Args:
            samples: the questions.
            texts: one answer each.
        """
        return {}

    # --- checked, and read once -------------------------------------------------------------------

    @cached_property
    def processor(self) -> Any:
        """The processor that makes the batches; set it to use that of an artifact."""
        return self.family.load_processor()

    @cached_property
    def calibration(self) -> list[Sample]:
        """The calibration pairs, checked."""
        samples = self.calibration_samples()[: self.calibration_pairs]
        need = self.calibration_pairs
        self.notes += check_samples(samples, "calibration", need, self.answers_needed)
        return samples

    @cached_property
    def evaluation(self) -> list[Sample]:
        """The evaluation questions, checked."""
        samples = self.evaluation_samples()[: self.evaluation_count]
        need = self.evaluation_count or 1
        self.evaluation_notes += check_samples(samples, "evaluation", need, answers=False)
        return samples

    @property
    def calibration_ids(self) -> list[str]:
        """Ids of the calibration pairs in their order."""
        return [sample.id for sample in self.calibration]

    @property
    def evaluation_ids(self) -> list[str]:
        """Ids of the evaluation questions in their order."""
        return [sample.id for sample in self.evaluation]

    def shorten(self, pairs: int) -> None:
        """Take as few samples as show that a run works (``trainer.fast_dev_run``); before
        :meth:`setup`.

        Args:
            pairs: calibration pairs, all of one batch, that are kept at most.
        """
        self.calibration_pairs = min(self.calibration_pairs, pairs)
        self.search_pairs = min(self.search_pairs, self.calibration_pairs)
        self.batch_size = min(self.batch_size, self.calibration_pairs)
        self.evaluation_count = min(self.evaluation_count or pairs, pairs)

    def setup(self, stage: str) -> None:
        """Check everything before work starts.

        Raises:
            InputError: too few samples, undecodable images, or pairs that are also evaluated.
        """
        if stage == "fit":
            check_disjoint(self.calibration, self.evaluation)

    # --- calibration ------------------------------------------------------------------------------

    def calibration_batches(self) -> list[Batch]:
        """Return all calibration pairs in batches of ``batch_size``, in their fixed order."""
        return self._batches(self.calibration)

    def search_batches(self) -> list[Batch]:
        """Return the first ``search_pairs`` calibration pairs in batches."""
        return self._batches(self.calibration[: self.search_pairs])

    def rank_batches(self, rank: int, world_size: int) -> list[Batch]:
        """Return one process's share of every calibration batch.

        Args:
            rank: the process.
            world_size: number of processes.

        Returns:
            As many batches in every process; of a batch it has the samples ``rank::world_size``.

        Raises:
            InputError: a batch has fewer pairs than there are processes.
        """
        last = self.calibration_pairs % self.batch_size or self.batch_size
        smallest = min(last, self.batch_size, self.calibration_pairs)
        if smallest < world_size:
            raise InputError(
                f"batch_size {self.batch_size} leaves a batch of {smallest} of the "
                f"{self.calibration_pairs} calibration pairs for {world_size} processes; "
                "every process needs at least one"
            )
        return self._batches(self.calibration, rank, world_size)

    def train_dataloader(self) -> CalibrationLoader:
        """Return this process's share of the calibration batches, from the one that is next."""
        trainer = self.trainer
        if trainer is None:
            return CalibrationLoader(self.rank_batches(0, 1))
        batches = self.rank_batches(trainer.global_rank, trainer.world_size)
        module = trainer.lightning_module
        return CalibrationLoader(batches, lambda: getattr(module, "next_batch", 0))

    def _batches(self, samples: list[Sample], rank: int = 0, world_size: int = 1) -> list[Batch]:
        firsts = range(0, len(samples), self.batch_size)
        lasts = [min(first + self.batch_size, len(samples)) for first in firsts]
        return [
            self._batch(first, last, rank, world_size)
            for first, last in zip(firsts, lasts, strict=True)
        ]

    def _batch(self, first: int, last: int, rank: int, world_size: int) -> Batch:
        """Return a process's share of calibration pairs ``first`` ... ``last`` - 1, made once."""
        key = first, last, rank, world_size
        if key not in self._collated:
            share = self.calibration[first:last][rank::world_size]
            batch = collate(share, self.processor, with_answer=True)
            batch["sample_index"] = first + rank + world_size * batch["sample_index"]
            self._collated[key] = batch
        return dict(self._collated[key])

    # --- evaluation -------------------------------------------------------------------------------

    def test_dataloader(self) -> QuestionBatches:
        """Return the evaluation questions as left-padded batches of similar length."""
        return QuestionBatches(self.evaluation, self.processor, self.evaluation_batch_size)
