"""Any benchmark as a data module: its questions to evaluate, its train split to calibrate on."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.data.source import Row, Rows, Source
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.tasks.base import Question, Task


class TaskData(VQADataModule):
    """Questions of a benchmark, from its release or in the layout of the hub.

    Calibration pairs are drawn from the questions with an image of ``calibration``, by the seed.

    Args:
        family: whose processor makes the batches.
        task: the benchmark, with its prompt and scoring rule.
        evaluation: where the evaluated questions lie; by default the split that the task names.
        calibration: where the calibration pairs lie; by default the task's train split. Not needed
            to evaluate.
        images: ``required``: a question whose image is missing is an error; ``present``: such
            questions are left out; ``only``: those that never had one are left out as well.
        evaluation_count: questions that are evaluated, the first ones; None for all there are.
        sizes: the other arguments of :class:`VQADataModule`.
    """

    def __init__(
        self,
        family: VLMFamily,
        task: Task,
        evaluation: Source,
        calibration: Source | None = None,
        images: Literal["required", "present", "only"] = "required",
        evaluation_count: int | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__(family, evaluation_count=evaluation_count, **sizes)
        self.task = task
        self.evaluation_source = _with_split(evaluation, task.splits[0])
        if calibration is not None and calibration.split is None and task.train_split is None:
            raise InputError(
                f"{task.name} has no train split; give calibration.split, or calibrate on other "
                "data and evaluate the artifact"
            )
        self.calibration_source = calibration and _with_split(calibration, task.train_split)
        if self.calibration_source == self.evaluation_source:
            raise InputError(
                f"calibration and evaluation are both {evaluation}; calibrate on another split"
                + (f", such as {task.train_split}" if task.train_split else "")
            )
        self.images = images
        self._files: dict[Path, LazyImage | None] = {}

    # --- samples ----------------------------------------------------------------------------------

    def evaluation_samples(self) -> list[Sample]:
        """Read the questions.

        Raises:
            InputError: they cannot be read, or lack their images.
        """
        source = self.evaluation_source
        samples: list[Sample] = []
        missing: list[str] = []
        total = 0
        for question in self._questions(source):
            image = self._image(question)
            total += 1
            if image is None and _has_image(question):
                missing.append(question.id)
            elif image is not None or self.images != "only":
                samples.append(self._sample(question, image))
            if len(samples) == self.evaluation_count:
                break
        if missing and (self.images == "required" or not samples):
            raise InputError(
                f"{len(missing)} of {total} questions in {source} have no image there, such as "
                f"{missing[0]!r}; needed is {self.task.layout}, or images: present to leave such "
                "questions out"
            )
        return samples

    def calibration_samples(self) -> list[Sample]:
        """Draw the calibration pairs.

        Raises:
            InputError: there is no calibration source, or it has too few questions with an image.
        """
        source = self.calibration_source
        if source is None:
            raise InputError(
                f"there is nothing to calibrate on; give data.calibration, such as the path of "
                f"{self.task.name} and a split that is not evaluated"
            )
        drawn = self._drawn(source)
        if len(drawn) < self.calibration_pairs:
            raise InputError(
                f"{len(drawn)} questions in {source} have an image there, but calibration_pairs is "
                f"{self.calibration_pairs}; give more data or ask for fewer"
            )
        return drawn

    def _drawn(self, source: Source) -> list[Sample]:
        drawn: list[Sample] = []
        for question in self._shuffled(source):
            if (image := self._image(question)) is not None:
                drawn.append(self._sample(question, image))
            if len(drawn) == self.calibration_pairs:
                break
        return drawn

    def blind_samples(self) -> list[Sample]:
        """Return all questions of the calibration source without images; of a stream, a draw."""
        source = self.calibration_source
        if source is None:
            return []
        if source.streaming:
            return self._drawn(source)
        if source.is_release:
            questions: Iterable[Question] = self._questions(source)
        else:
            questions = self._read(source, Rows(source, self.task.layout).without_images())
        return [self._sample(question, None) for question in questions]

    def _sample(self, question: Question, image: Image.Image | LazyImage | None) -> Sample:
        target = question.target
        return Sample(
            id=question.id,
            image=image,
            question=self.task.text(question),
            choices=target.choices,
            answer=_expected(target),
            family=target.groups[0] if target.groups else "",
            target=target,
        )

    # --- questions, whichever layout --------------------------------------------------------------

    def _questions(self, source: Source) -> Iterator[Question]:
        if source.is_release:
            assert source.here is not None
            yield from self.task.read(source.here, source.split)
        else:
            yield from self._read(source, Rows(source, self.task.layout))

    def _shuffled(self, source: Source) -> Iterator[Question]:
        if source.is_release:
            questions = list(self._questions(source))
            random.Random(self.seed).shuffle(questions)
            yield from questions
        else:
            yield from self._read(source, Rows(source, self.task.layout).shuffled(self.seed))

    def _read(self, source: Source, rows: Iterable[Row]) -> Iterator[Question]:
        for row in rows:
            try:
                yield self.task.from_hub(row)
            except InputError:
                raise
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                lacking = isinstance(error, KeyError) and error.args
                reason = f"it lacks {error.args[0]!r}" if lacking else error
                raise InputError(
                    f"a row of {source} is no question of {self.task.name} ({reason}); its columns "
                    f"are {', '.join(row)}"
                ) from error

    def _image(self, question: Question) -> Image.Image | LazyImage | None:
        image = question.image
        if not isinstance(image, Path):
            return image
        if image not in self._files:
            self._files[image] = LazyImage.of(image) if image.is_file() else None
        return self._files[image]

    # --- what the task says -----------------------------------------------------------------------

    @property
    def benchmark(self) -> str:
        """Name of the task in results."""
        return self.task.name

    @property
    def mode(self) -> str:
        """Name of the scoring rule in results."""
        return self.task.rule

    @property
    def max_new_tokens(self) -> int:
        """Longest answer worth waiting for, in tokens."""
        return self.task.max_new_tokens

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return self.task.stop

    def judge(self, sample: Sample, text: str) -> Judgement:
        """Score one answer by the task's rule.

        Args:
            sample: the question.
            text: what was generated.
        """
        assert sample.target is not None
        return self.task.judge(text, sample.target)

    def scores(self, samples: Sequence[Sample], texts: Sequence[str]) -> dict[str, float]:
        """Return the task's figures by name.

        Args:
            samples: the questions.
            texts: one answer each.
        """
        targets = [sample.target for sample in samples if sample.target is not None]
        return self.task.scores(texts, targets)


def _with_split(source: Source, split: str | None) -> Source:
    return source if source.split else replace(source, split=split)


def _has_image(question: Question) -> bool:
    """Say whether a question that came without an image should have one."""
    return bool(question.row.get("image", True))


def _expected(target: Target) -> str:
    """Return the answer most annotators give, the first one among equals."""
    return Counter(target.answers).most_common(1)[0][0] if target.answers else ""
