"""Fidelity of a model's text: how far it is from that of the same model in full precision.

Free prompts about photographs and a fixed passage are read by both. Full precision answers the
prompts greedily; its log-probabilities at every text token of prompts, answers and passage are
stored once, and each variant is compared with them. Greedy answers of a variant's own are compared
with full precision's, token by token.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qvlm_lightning.data.collate import Batch, collate, prompt_text
from qvlm_lightning.data.image import content_of
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.evaluation.generate import (
    end_tokens_of,
    generate,
    image_token_of,
    positions,
)
from qvlm_lightning.files import write_json, writing_folder
from qvlm_lightning.metrics.fidelity import agreement, perplexity, token_kl, token_loss
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.progress import bar
from qvlm_lightning.results.fidelity import Fidelity
from qvlm_lightning.tensor_files import put_tensors

ABOUT, PASSAGE = "reference.json", "passage"
STORED = torch.float16
"""Type of stored log-probabilities. They are normalised again when they are read: rounding then
moves a divergence by a thousandth of itself and about 1e-7 nats
(``tests/evaluation/test_fidelity.py``)."""


@dataclass(frozen=True)
class FidelityInputs:
    """What is read and answered."""

    prompts: Sequence[Sample]
    """Questions, usually with an image each; expected answers do not matter."""
    passage: str
    """Running text of at least two tokens, read as a message of the user."""
    max_new_tokens: int = 32
    """Longest greedy answer in tokens, the end of sequence included."""
    batch_size: int = 8
    """Prompts at once; results do not depend on it, but for rounding."""

    def key(self, processor: Any) -> dict[str, Any]:
        """Return what results depend on beside the weights, in plain values.

        Args:
            processor: its chat template is part of what is asked.
        """
        digest = hashlib.sha256()
        for sample in self.prompts:
            digest.update(prompt_text(sample, processor).encode())
            digest.update(hashlib.sha256(content_of(sample.image)).digest())
        return {
            "prompts": digest.hexdigest()[:16],
            "passage": hashlib.sha256(self.passage.encode()).hexdigest()[:16],
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,  # the reference is stored batch by batch
        }


class FidelityMeter:
    """Compares variants of one model with its full precision.

    Args:
        inputs: what is read and answered.
        folder: where the reference is kept: 2 bytes per text token and word of the vocabulary.
        base: fingerprint of the full-precision model.
        processor: the model's processor.
    """

    def __init__(self, inputs: FidelityInputs, folder: Path, base: str, processor: Any) -> None:
        self.inputs, self.folder, self.processor = inputs, folder, processor
        self.key = {"base": base, **inputs.key(processor)}
        self._image = image_token_of(processor)

    @property
    def is_stored(self) -> bool:
        """Whether the reference of these inputs and weights is there."""
        try:
            about = parse_json((self.folder / ABOUT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return bool(about.get("key") == self.key)

    @torch.no_grad()
    def store_reference(self, model: nn.Module) -> None:
        """Answer in full precision and store the answers and log-probabilities, unless they are
        there; the folder appears as a whole.

        Args:
            model: the full-precision model.

        Raises:
            InputError: the passage is too short, or the system refuses to write.
        """
        if self.is_stored:
            return
        answers: list[list[int]] = []
        with writing_folder(self.folder) as scratch:
            for number, prompts in self._batches("full precision"):
                told = self._answer(model, prompts)
                answers += told
                logits, mask = self._read(model, prompts, told)
                _save(scratch / f"{number}", logits[mask])
            logits, tokens = self._passage(model)
            _save(scratch / PASSAGE, logits[0])
            losses = token_loss(logits, tokens, torch.ones_like(tokens))
            about = {
                "key": self.key,
                "answers": answers,
                "perplexity": perplexity(losses),
                "passage_tokens": tokens.shape[1],
            }
            write_json(scratch / ABOUT, about)

    def reference_perplexity(self) -> tuple[float, int]:
        """Return full precision's perplexity of the passage, and the tokens of the passage."""
        about = self._about()
        return float(about["perplexity"]), int(about["passage_tokens"])

    @torch.no_grad()
    def measure(self, model: nn.Module, name: str = "fidelity") -> Fidelity:
        """Compare a variant with the stored reference.

        Args:
            model: the variant, quantizers on.
            name: what the progress bar says.

        Raises:
            InputError: no reference of these inputs and weights is stored.
        """
        if not self.is_stored:
            raise InputError(
                f"{str(self.folder)!r} holds no reference of these prompts and this model; store "
                "that of full precision first"
            )
        began = time.monotonic()
        known: list[list[int]] = self._about()["answers"]
        kl: list[float] = []
        told: list[list[int]] = []
        tokens = 0
        for number, prompts in self._batches(name):
            told += self._answer(model, prompts)
            first = number * self.inputs.batch_size
            logits, mask = self._read(model, prompts, known[first : first + len(prompts)])
            counts = mask.sum(1).tolist()
            gaps = _compared(self.folder / f"{number}", logits[mask])
            kl += [float(part.mean()) for part in gaps.split(counts)]
            tokens += sum(counts)
        logits, ids = self._passage(model)
        agreed = [agreement(*pair) for pair in zip(told, known, strict=True)]
        return Fidelity(
            kl=kl,
            tokens=tokens,
            same_tokens=[pair.share for pair in agreed],
            first_differences=[pair.first_difference for pair in agreed],
            passage_kl=float(_compared(self.folder / PASSAGE, logits[0]).mean()),
            passage_tokens=ids.shape[1],
            perplexity=perplexity(token_loss(logits, ids, torch.ones_like(ids))),
            seconds=round(time.monotonic() - began, 3),
        )

    def _about(self) -> dict[str, Any]:
        return dict(parse_json((self.folder / ABOUT).read_text(encoding="utf-8")))

    def _batches(self, name: str) -> Iterator[tuple[int, Sequence[Sample]]]:
        prompts, size = self.inputs.prompts, self.inputs.batch_size
        for number, first in enumerate(range(0, len(prompts), size)):
            yield number, prompts[first : first + size]
            bar(f"fidelity of {name}", min(first + size, len(prompts)), len(prompts))

    def _prompts(self, model: nn.Module, prompts: Sequence[Sample]) -> Batch:
        batch = collate(prompts, self.processor, with_answer=False)
        return {name: value.to(_device(model)) for name, value in batch.items()}

    def _answer(self, model: nn.Module, prompts: Sequence[Sample]) -> list[list[int]]:
        """Return the greedy answers, without their end tokens; one that names an image ends there,
        for it cannot be read again.
        """
        images = set() if self._image is None else {self._image}
        ends = end_tokens_of(model, self.processor) | images
        batch = self._prompts(model, prompts)
        longest = self.inputs.max_new_tokens
        answers = generate(model, batch, ends, longest, self._image)
        answers.check([prompt.id for prompt in prompts])
        return answers.rows()

    def _read(
        self, model: nn.Module, prompts: Sequence[Sample], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return the logits [B, T, V] of prompts with given answers, and which count [B, T]."""
        batch = followed(self._prompts(model, prompts), answers, self.processor)
        mask = batch["attention_mask"].bool()
        if self._image is not None:
            mask &= batch["input_ids"] != self._image
        inputs = model_inputs(batch)
        if "image_grid_thw" not in inputs:  # such models work out positions in three axes
            inputs["position_ids"] = positions(batch["attention_mask"])
        columns = mask.any(0).nonzero()[:, 0]
        out = model(**inputs, use_cache=False, logits_to_keep=columns)
        return out.logits, mask[:, columns]

    def _passage(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return logits [1, T, V] and tokens [1, T] of a message that is the passage.

        A message, since a model whose first keys are stored reads nothing without its template.
        """
        size = len(self.processor.tokenizer(self.inputs.passage)["input_ids"])
        if size < 2:
            raise InputError(f"the passage has {size} tokens; at least 2 are needed")
        batch = self._prompts(model, [Sample("passage", None, self.inputs.passage)])
        return model(**model_inputs(batch), use_cache=False).logits, batch["input_ids"]


def followed(batch: Batch, answers: Sequence[Sequence[int]], processor: Any) -> Batch:
    """Append an answer to each prompt of a batch; shorter ones are padded on the right.

    Args:
        batch: left-padded prompts from :func:`~qvlm_lightning.data.collate.collate`.
        answers: token ids, one answer per prompt.
        processor: knows the padding, and the type of an answer's tokens.
    """
    width = max(map(len, answers))
    ids = batch["input_ids"]
    pad = processor.tokenizer.pad_token_id
    pad = processor.tokenizer.eos_token_id if pad is None else pad
    rows = [[*answer, *[pad] * (width - len(answer))] for answer in answers]
    real = [[1] * len(answer) + [0] * (width - len(answer)) for answer in answers]
    longer = dict(batch)
    for name, behind in (("input_ids", rows), ("attention_mask", real)):
        longer[name] = torch.cat(
            [batch[name], ids.new_tensor(behind).reshape(len(answers), width)], dim=1
        )
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in batch:
            kind = getattr(processor, "answer_type", 0)
            longer[name] = torch.nn.functional.pad(batch[name], (0, width), value=kind)
    return longer


def _save(path: Path, logits_NV: Tensor) -> None:
    stored = logits_NV.float().log_softmax(-1).to(STORED).cpu().contiguous()
    put_tensors(path.with_suffix(".safetensors"), {"log_probs": stored}, metadata=None)


def _compared(path: Path, logits_NV: Tensor) -> Tensor:
    """Return the divergence [N] of logits from stored log-probabilities, nats."""
    stored = load_file(path.with_suffix(".safetensors"))["log_probs"].to(logits_NV.device)
    everything = torch.ones(1, len(stored), dtype=torch.bool)
    return token_kl(stored[None].float(), logits_NV[None].float(), everything.to(stored.device))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
