"""The task of the embedded model."""

from typing import Any, Literal, get_args

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily

EvaluationSplit = Literal["test", "development"]


class TinyVQA(VQADataModule):
    """Generated scenes and questions; no scene and no text of one split is in another.

    Args:
        family: whose processor makes the batches.
        evaluation_split: ``test`` for results, ``development`` for choices between methods and
            their settings: questions that are neither reported, calibrated on nor trained on.
        sizes: the other arguments of :class:`VQADataModule`.

    Raises:
        InputError: an unknown split.
    """

    def __init__(
        self, family: VLMFamily, *, evaluation_split: EvaluationSplit = "test", **sizes: Any
    ) -> None:
        super().__init__(family, **sizes)
        allowed = get_args(EvaluationSplit)
        if evaluation_split not in allowed:
            raise InputError(
                f"evaluation_split is {evaluation_split!r}; allowed are {', '.join(allowed)}"
            )
        self.evaluation_split = evaluation_split

    @property
    def split(self) -> str:
        """Return the split that is evaluated."""
        return self.evaluation_split

    @property
    def max_new_tokens(self) -> int:
        """Return the longest answer of the task, its end included."""
        return 4

    def calibration_samples(self) -> list[Sample]:
        """Generate the calibration pairs of this seed, each about a scene of its own."""
        from qvlm_lightning.models.tiny import calibration_index

        places = [calibration_index(pair) for pair in range(self.calibration_pairs)]
        samples = _generate("calibration", places[-1] + 1, self.seed)
        return [samples[place] for place in places]

    def evaluation_samples(self) -> list[Sample]:
        """Generate the questions of the split, the same for every seed."""
        if self.evaluation_count is None:
            raise InputError("evaluation_count is None; this set has no end: allowed are integers")
        return _generate(self.evaluation_split, self.evaluation_count, 0)

    def blind_samples(self) -> list[Sample]:
        """Generate training questions, enough to know the frequent answers."""
        return _generate("train", 20_000, 0)


def _generate(split: str, count: int, seed: int) -> list[Sample]:
    from qvlm_lightning.models.tiny import generate

    return [
        Sample(
            id=sample.id,
            image=sample.image,
            question=sample.question,
            choices=sample.choices,
            answer=sample.answer,
            family=sample.family,
        )
        for sample in generate(split, count, seed)
    ]
