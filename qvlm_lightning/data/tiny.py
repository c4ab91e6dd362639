"""The task of the embedded model."""

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError


class TinyVQA(VQADataModule):
    """Generated scenes and questions; no scene and no text of one split is in another.

    Arguments are those of :class:`VQADataModule`.
    """

    @property
    def max_new_tokens(self) -> int:
        """Return the longest answer of the task, its end included."""
        return 4

    def calibration_samples(self) -> list[Sample]:
        """Generate the calibration pairs of this seed, each about a scene of its own."""
        from qvlm_lightning.models.tiny import TASKS

        stride = len(TASKS)
        made = _generate("calibration", stride * self.calibration_pairs, self.seed)
        return [made[stride * i + i % stride] for i in range(self.calibration_pairs)]

    def evaluation_samples(self) -> list[Sample]:
        """Generate the evaluation questions, the same for every seed."""
        if self.evaluation_count is None:
            raise InputError("evaluation_count is None; this set has no end: allowed are integers")
        return _generate("test", self.evaluation_count, 0)

    def blind_samples(self) -> list[Sample]:
        """Generate training questions, enough to know the frequent answers."""
        return _generate("train", 20_000, 0)


def _generate(split: str, count: int, seed: int) -> list[Sample]:
    from qvlm_lightning.models.tiny import generate

    return [
        Sample(
            id=made.id,
            image=made.image,
            question=made.question,
            choices=made.choices,
            answer=made.answer,
            family=made.family,
        )
        for made in generate(split, count, seed)
    ]
