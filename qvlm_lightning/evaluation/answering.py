"""A loaded model as a function from questions to texts, for programs that bring their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import nn

from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.generate import cut_at_stop, end_tokens_of, generate


@dataclass(frozen=True)
class Prompt:
    """One question, and how long its answer may be."""

    question: str
    """The text after the image."""
    image: Image.Image | None = None
    """The image, or None."""
    max_new_tokens: int = 16
    """Longest answer in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""


class Answering:
    """Answers questions greedily, in batches of questions that are asked in the same way.

    Args:
        model: a Hugging Face vision-language model in ``eval()`` mode.
        processor: its processor.
        batch_size: questions at once.
    """

    def __init__(self, model: nn.Module, processor: Any, batch_size: int = 1) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return one text per question, in their order."""
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, prompt in enumerate(prompts):
            alike.setdefault((prompt.max_new_tokens, prompt.stop), []).append(place)
        texts = [""] * len(prompts)
        for (longest, stop), places in alike.items():
            for start in range(0, len(places), self.batch_size):
                chunk = places[start : start + self.batch_size]
                answered = self._answer([prompts[i] for i in chunk], longest, stop)
                for place, text in zip(chunk, answered, strict=True):
                    texts[place] = text
        return texts

    def _answer(self, prompts: Sequence[Prompt], longest: int, stop: tuple[str, ...]) -> list[str]:
        samples = [Sample(str(i), x.image, x.question) for i, x in enumerate(prompts)]
        batch = collate(samples, self.processor, with_answer=False)
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        decode = self.processor.tokenizer.decode

        def text(tokens: list[int]) -> str:
            return decode(tokens, skip_special_tokens=True)

        def stopped(tokens: list[int]) -> bool:
            return any(s in text(tokens) for s in stop)

        ends = end_tokens_of(self.model, self.processor, stop)
        answers = generate(self.model, batch, ends, longest, stopped=stopped if stop else None)
        answers.check([prompt.question for prompt in prompts])
        return [cut_at_stop(text(row), stop).strip() for row in answers.rows()]
