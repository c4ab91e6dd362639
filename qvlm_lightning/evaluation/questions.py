"""The questions of one pass, dealt to the processes, less what an interrupted pass answered."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from qvlm_lightning.data.collate import Batch, prompt_text
from qvlm_lightning.data.image import LazyImage, content_of
from qvlm_lightning.data.loaders import QuestionBatches
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.journal import EvaluationKey, Journal


class SharedQuestions:
    """Batches of questions for one process.

    Whole batches are dealt, and they are those of a single process: an answer does not depend on
    who gives it, not even in its last bit. Processes without a batch left get an empty one, so that
    all take equally many steps; no question is repeated.

    Args:
        batches: all questions in batches.
        journal: what was answered so far, and where answers go.
        key: what an answer depends on (see :meth:`Journal.open`).
    """

    def __init__(self, batches: QuestionBatches, journal: Journal, key: EvaluationKey) -> None:
        self.batches = batches
        self.journal = journal
        self.key = key
        self.samples = batches.samples
        self.session = 0
        self.done: dict[int, str] = {}
        self._mine: list[list[int]] = []
        self._steps = 0

    def open(self, strategy: Any) -> str:
        """Find out what is left and which part of it this process has; all processes call this.

        Args:
            strategy: Lightning's strategy: rank, number of processes and broadcast.

        Returns:
            What to tell the user (empty: nothing).
        """
        state: tuple[int, dict[int, str], str] = (0, {}, "")
        if strategy.is_global_zero:
            session, note = self.journal.open(self.key)
            texts = self.journal.texts()
            answered = {i: texts[s.id] for i, s in enumerate(self.samples) if s.id in texts}
            state = session, answered, note
        # one process reads: another may be writing by the time a slower one looks
        self.session, self.done, note = strategy.broadcast(state)
        left = [c for c in self.batches.indices if any(i not in self.done for i in c)]
        world = strategy.world_size
        self._mine = left[strategy.global_rank :: world]
        self._steps = max(1, -(-len(left) // world))
        return note

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._steps):
            yield self.batches.make(self._mine[step]) if step < len(self._mine) else {}


def digest_questions(
    samples: Sequence[Sample], processor: Any, images: dict[int, str] | None = None
) -> str:
    """Hash what is asked and expected, with the bytes of the images.

    Args:
        samples: the questions.
        processor: its chat template is part of what is asked.
        images: hashes of images by the identity of the object; those that are missing are put in.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    known = {} if images is None else images
    for shown in (True, False):
        first = next((s for s in samples if (s.image is not None) is shown), None)
        if first is not None:
            digest.update(prompt_text(first, processor).encode())
    for sample in samples:
        row: list[Any] = [sample.id, sample.question, sample.choices, sample.answer, sample.family]
        target = sample.target
        if target is not None:
            row += [target.answers, target.choices, target.groups, target.cluster]
        digest.update(json.dumps([*row, _image_digest(sample.image, known)]).encode())
    return digest.hexdigest()[:16]


def _image_digest(image: Any, known: dict[int, str]) -> str | None:
    if image is None:
        return None
    if id(image) not in known:
        size = "" if isinstance(image, LazyImage) else f"{image.mode} {image.size} "
        content = size.encode() + content_of(image)
        known[id(image)] = hashlib.blake2b(content, digest_size=16).hexdigest()
    return known[id(image)]
