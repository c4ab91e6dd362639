"""What a build must show: it answers, and what makes it hard to quantize was not trained away."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.progress import bar
from tools.joined.questions import YES_NO, Picture

PASSAGE = Path(__file__).parent / "passage.txt"
"""The beginning of On the Origin of Species (Charles Darwin, 1859), in the public domain."""
ACCURACY, PERPLEXITY, ACTIVATIONS = 80.0, 0.10, 0.20
"""Least per cent of easy-VQA's test questions, largest relative change of the other two."""
SAME, LAST_NORM = 1e-3, "/backbone/layernorm/Add_1_output_0"
"""How far the tower may be from the package's file, by its largest output; what that output is
called in the file."""


@dataclass(frozen=True)
class Language:
    """How a language model reads the passage.

    Attributes:
        perplexity: of its tokens behind the first.
        down_input: largest magnitude in the input of a layer's down projection, over the layers.
        residual: largest magnitude in the hidden states between layers.
        site: the layer of ``down_input``.
    """

    perplexity: float
    down_input: float
    residual: float
    site: int


@torch.no_grad()
def reading(decoder: Any, head: nn.Module, tokenizer: Any) -> Language:
    """Return how a decoder reads the passage.

    Args:
        decoder: with ``layers``; takes ``input_ids`` and gives the last hidden state.
        head: the output head.
        tokenizer: makes the tokens.
    """
    text = PASSAGE.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    largest: dict[int, float] = {}

    def note(index: int, _: nn.Module, inputs: tuple[Tensor]) -> None:
        largest[index] = float(inputs[0].abs().max())

    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(partial(note, index))
        for index, layer in enumerate(decoder.layers)
    ]
    try:
        out = decoder(input_ids=ids, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    logits = head(out.last_hidden_state[0, :-1]).float()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    site = max(largest, key=lambda index: largest[index])
    between = max(float(x.abs().max()) for x in out.hidden_states[:-1])
    return Language(float(loss.exp()), largest[site], between, site)


@torch.no_grad()
def check_tower(file: Path, tower: Any) -> float:
    """Return how far a tower is from the file it was read from, run by ONNX Runtime on noise.

    Args:
        file: the package's ONNX file; it says the size of the image.
        tower: of :func:`~tools.joined.assemble.read_tower`.

    Returns:
        The largest difference of the last norm's output, relative to its largest value.

    Raises:
        InputError: more than ``SAME``.
    """
    import onnx
    import onnxruntime

    graph = onnx.load(str(file))
    graph.graph.output.extend([onnx.ValueInfoProto(name=LAST_NORM)])
    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (entry,) = session.get_inputs()
    image = torch.randn(1, *entry.shape[1:], generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([LAST_NORM], {entry.name: image.numpy()})
    wanted = torch.from_numpy(expected)
    found = tower(pixel_values=image).last_hidden_state
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= SAME:
        raise InputError(
            f"the tower differs from {file.name} by {difference:.1e} of its largest output; "
            f"allowed is {SAME:.0e}"
        )
    return difference


@torch.no_grad()
def accuracy(
    model: Any, processor: Any, pictures: Sequence[Picture], count: int | None
) -> dict[str, float]:
    """Return per cent of right answers: ``all``, ``open`` and ``yes/no``.

    Args:
        model: the joined model.
        processor: its processor.
        pictures: asked about.
        count: questions, drawn with a fixed seed; ``None`` for all.
    """
    asked = [(picture, *turn) for picture in pictures for turn in picture.turns]
    Random(0).shuffle(asked)
    samples = [
        Sample(id=f"{picture.name}-{n}", image=picture.image, question=question, answer=answer)
        for n, (picture, question, answer) in enumerate(asked[:count])
    ]
    samples.sort(key=lambda sample: len(sample.question))
    right: dict[str, list[bool]] = {"open": [], "yes/no": []}
    for first in range(0, len(samples), 32):
        some = samples[first : first + 32]
        batch = collate(some, processor, with_answer=False)
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "pixel_values")}
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        told = out[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(told, skip_special_tokens=True)
        for sample, text in zip(some, texts, strict=True):
            kind = "yes/no" if sample.answer in YES_NO else "open"
            right[kind].append(text.strip().lower() == sample.answer)
        bar("questions", min(first + 32, len(samples)), len(samples))
    found = {kind: 100 * sum(hits) / max(1, len(hits)) for kind, hits in right.items()}
    hits = [hit for some in right.values() for hit in some]
    return {"all": 100 * sum(hits) / max(1, len(hits))} | found


def shortfalls(before: Language, after: Language, answered: dict[str, float] | None) -> list[str]:
    """Return what a build falls short of, in sentences.

    Args:
        before: the language model of the package.
        after: that of the joined model.
        answered: of :func:`accuracy`, where the data were at hand.
    """
    found = []
    compared = {
        "perplexity of the passage": (before.perplexity, after.perplexity, PERPLEXITY),
        "largest input of a down projection": (before.down_input, after.down_input, ACTIVATIONS),
        "largest residual": (before.residual, after.residual, ACTIVATIONS),
    }
    for what, (was, now, allowed) in compared.items():
        if abs(now / was - 1) > allowed:
            found.append(f"{what} is {now:.1f}; allowed is {was:.1f} within {allowed:.0%}")
    if answered is not None and answered["all"] < ACCURACY:
        found.append(
            f"{answered['all']:.1f} % of the questions are answered; at least {ACCURACY:.0f} %"
        )
    return found
