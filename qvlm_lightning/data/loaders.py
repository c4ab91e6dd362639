"""Batches as the Trainer takes them: calibration pairs, and questions."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from qvlm_lightning.data.collate import Batch, collate, prompt_lengths
from qvlm_lightning.data.image import size_of
from qvlm_lightning.data.sample import Sample

_SMALL, _STRIP = 32, 4


class CalibrationLoader:
    """Calibration batches that are there already; an epoch that was interrupted goes on.

    Args:
        batches: of one process.
        start: says which batch an iteration begins with.
    """

    def __init__(self, batches: Sequence[Batch], start: Callable[[], int] = lambda: 0) -> None:
        self.batches, self.start = batches, start

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches[self.start() :])


def _is_odd(size: tuple[int, int]) -> bool:
    """Return whether a processor may refuse an image for its size: next to nothing, or a strip."""
    return min(size) < _SMALL or max(size) > _STRIP * min(size)


class QuestionBatches:
    """Prompts in batches, made as they are asked for; ``sample_index`` says where each row belongs.

    Questions that share images are kept together, so that the work on an image can be shared;
    others go by length, so that little is padded.

    Args:
        samples: the questions.
        processor: makes the batches.
        batch_size: questions per batch.
    """

    def __init__(self, samples: Sequence[Sample], processor: Any, batch_size: int) -> None:
        self.samples = samples
        self.processor = processor
        self.lengths = lengths = prompt_lengths(samples, processor)
        uses = Counter(id(s.image) for s in samples if s.image is not None)
        place = {key: number for number, key in enumerate(uses)}
        alone: list[int] = []
        together: list[int] = []
        text: list[int] = []
        for i, sample in enumerate(samples):
            kind = (
                text if sample.image is None else alone if uses[id(sample.image)] == 1 else together
            )
            kind.append(i)
        alone.sort(key=lambda i: lengths[i])
        text.sort(key=lambda i: lengths[i])
        together.sort(key=lambda i: place[id(samples[i].image)])
        self.indices = [
            part[first : first + batch_size]
            for part in (alone, together, text)
            for first in range(0, len(part), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, self.indices)

    def check(self, positions: int | None) -> list[str]:
        """Make what could fail before any batch is: every prompt has been written, and the longest
        and every image of an odd shape are read here, one of each size.

        Args:
            positions: tokens that the model was made for; ``None`` if that is not known.

        Returns:
            What to tell the user, one sentence each.

        Raises:
            InputError: the processor cannot read a question, which is named.
        """
        shown = [i for i, sample in enumerate(self.samples) if sample.image is not None]
        texts = [i for i, sample in enumerate(self.samples) if sample.image is None]
        sizes = {i: size_of(x) for i in shown if (x := self.samples[i].image) is not None}
        odd = {size: i for i, size in sizes.items() if _is_odd(size)}
        longest = [max(some, key=lambda i: self.lengths[i]) for some in (shown, texts) if some]
        room = dict.fromkeys((True, False), 0)
        for i in [*longest, *odd.values()]:
            spread = int(self.make([i])["attention_mask"].sum()) - self.lengths[i]
            shows = self.samples[i].image is not None
            room[shows] = max(room[shows], spread)
        if positions is None:
            return []
        long = [
            i
            for i, sample in enumerate(self.samples)
            if self.lengths[i] + room[sample.image is not None] > positions
        ]
        if not long:
            return []
        return [
            f"{len(long)} of {len(self.samples)} questions have more tokens than the model has "
            f"positions, {positions}, such as {self.samples[long[0]].id!r}; answers to them mean "
            "little"
        ]

    def make(self, chosen: Sequence[int]) -> Batch:
        """Make one batch.

        Args:
            chosen: places of its questions, usually one of :attr:`indices`.
        """
        batch = collate([self.samples[i] for i in chosen], self.processor, with_answer=False)
        batch["sample_index"] = torch.tensor(chosen)
        return batch
