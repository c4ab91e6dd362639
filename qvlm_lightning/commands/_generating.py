"""One answer, streamed, with its speed and memory."""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qvlm_lightning.artifact import Artifact, load_artifact
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.estimate.sizes import format_bytes
from qvlm_lightning.evaluation.generate import end_tokens_of, generate
from qvlm_lightning.files import write_json
from qvlm_lightning.kernels import key_value_cache, quantize_head, single_query_attention
from qvlm_lightning.kernels.key_values import stored_bytes
from qvlm_lightning.peak_memory import host_peak


@dataclass(frozen=True)
class Figures:
    """How an answer was made."""

    text: str
    """The answer."""
    prompt_tokens: int
    """Tokens of the prompt, those of the image included."""
    tokens: int
    """Tokens of the answer, without the one that ends it."""
    first_token_seconds: float
    """From the prepared prompt to the first token."""
    tokens_per_second: float | None
    """Behind the first token; ``None`` where there was none."""
    load_seconds: float
    """To load the artifact."""
    peak_bytes: int
    """Largest resident set of the process, loading included."""
    packed_bytes: int
    """Codes, scales, zero points and biases of packed layers; 0 where everything is simulated."""
    kernels: dict[str, int]
    """Kernel -> number of layers in which it has run."""
    layers: dict[str, Any]
    """Every packed layer with its layout, bits and the kernels that have run."""
    key_value_bytes: int
    """Stored keys and values at the end."""
    attention: str
    """What single queries attend with: ``extension``, or ``torch``."""
    notes: list[str]
    """What stayed simulated, and kernels that were refused."""

    def lines(self) -> list[str]:
        """Return the figures for people."""
        speed = self.tokens_per_second
        rate = "too few to have a speed" if speed is None else f"{speed:.1f} tokens/s"
        named = [f"{name} in {count} layers" for name, count in self.kernels.items()]
        seconds = f"first token after {self.first_token_seconds:.2f} s"
        packed, peak = format_bytes(self.packed_bytes), format_bytes(self.peak_bytes)
        return [
            f"{self.prompt_tokens} prompt tokens, {self.tokens} new ones: {rate}, {seconds}",
            f"loaded in {self.load_seconds:.1f} s; packed layers {packed}, peak memory of the "
            f"process {peak}, keys and values {format_bytes(self.key_value_bytes)}",
            f"kernels: {', '.join(named) or 'none, weights are fake-quantized'}; attention of "
            f"single queries by {self.attention}",
            *self.notes,
        ]


def run(options: argparse.Namespace) -> None:
    """Answer, and print what ``qvlm generate`` prints.

    Raises:
        InputError: the artifact or the image cannot be used, or the model answers with NaN.
    """
    image = None if options.image is None else LazyImage.of(options.image)
    if image is not None:
        image.check()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    start = time.perf_counter()
    artifact = load_artifact(str(options.artifact), packed=not options.simulate)
    if options.head_bits is not None:
        quantize_head(artifact.model, options.head_bits, artifact.packed)
    loaded = time.perf_counter() - start
    if options.simulate:
        artifact.structure.keep_only_quantized()
    sample = Sample("the prompt", image, options.prompt)
    figures = answer(artifact, sample, options.max_new_tokens, loaded, _print, options.kv_cache)
    print("\n")
    print("\n".join(figures.lines()))
    if options.json is not None:
        write_json(options.json, asdict(figures))


def _print(text: str) -> None:
    print(text, end="", flush=True)


def answer(
    artifact: Artifact,
    sample: Sample,
    longest: int,
    loaded: float,
    show: Callable[[str], None],
    kv_cache: str = "full",
) -> Figures:
    """Answer one question greedily.

    Args:
        artifact: loaded.
        sample: the question.
        longest: tokens of the answer at most.
        loaded: seconds it took to load.
        show: called with every new piece of text.
        kv_cache: how keys and values are stored, ``full`` or ``int8``.

    Raises:
        InputError: the model's logits are NaN or infinite.
    """
    processor: Any = artifact.processor
    batch = collate([sample], processor, with_answer=False)
    ends = end_tokens_of(artifact.model, processor)
    stream = _Stream(processor.tokenizer, ends, show)
    cache = key_value_cache(artifact.model.config, kv_cache)
    with single_query_attention(artifact.model) as single:
        answers = generate(artifact.model, batch, ends, longest, stopped=stream, cache=cache)
    answers.check([sample.id])
    packed = artifact.packed
    first, rate = stream.rate()
    return Figures(
        text=stream.text.strip(),
        prompt_tokens=int(batch["attention_mask"].sum()),
        tokens=int(answers.lengths[0]),
        first_token_seconds=first,
        tokens_per_second=rate,
        load_seconds=loaded,
        peak_bytes=host_peak(),
        packed_bytes=0 if packed is None else packed.nbytes(),
        kernels={} if packed is None else packed.used(),
        layers={} if packed is None else packed.report()["layers"],
        key_value_bytes=stored_bytes(cache),
        attention="extension" if single else "torch",
        notes=[] if packed is None else packed.notes(),
    )


class _Stream:
    """Sees the tokens of an answer as they come, as ``stopped`` of :func:`generate`; stops nothing.

    Args:
        tokenizer: of the model.
        ends: tokens that end an answer.
        show: called with every new piece of text.
    """

    def __init__(self, tokenizer: Any, ends: set[int], show: Callable[[str], None]) -> None:
        self.tokenizer, self.ends, self.show = tokenizer, ends, show
        self.text = ""
        self.start = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, tokens: list[int]) -> bool:
        self.times.append(time.perf_counter())
        kept = [t for t in tokens if t not in self.ends]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        # half a character is not text yet
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.show(text[len(self.text) :])
            self.text = text
        return False

    def rate(self) -> tuple[float, float | None]:
        """Return seconds to the first token, and tokens per second behind it."""
        if not self.times:  # the first token ended the answer
            return time.perf_counter() - self.start, None
        first, last = self.times[0], self.times[-1]
        more = len(self.times) - 1
        return first - self.start, more / (last - first) if more else None
