"""Generation by LLaVA shapes of random weights that are made in packed form, against bfloat16.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/generation.py --size small

Every variant runs in a process of its own; weights are never there in full precision. Speed does
not depend on their values; massive inputs, as real models have some, would make W4A16 slower. All
variants attend and store keys and values in the same way, but ``bf16-transformers``, which does it
as transformers does, ``bf16-compiled``, which is that with a cache of one size and new tokens
compiled by torch, and ``bf16-frozen``, of which the compiler may also pack the weights. It ends
with an error where a packed layer writes its weight out for a single token although the extension
is there.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from _common import ROOT, clock, write
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StaticCache,
)

from qvlm_lightning.kernels import (
    PackedModel,
    key_value_cache,
    pack_model,
    quantize_head,
    single_query_attention,
)
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.kernels.key_values import stored_bytes
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.weight_map import without_weights
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packing import PackedWeight, packed_bytes
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.peak_memory import host_peak
from qvlm_lightning.quant.scheme import Scheme

# decoder layers, width, MLP, heads, tower layers, width, MLP, image size
SIZES = {
    "tiny": (4, 512, 1408, 4, 4, 256, 1024, 112),
    "small": (12, 1024, 2816, 8, 6, 512, 2048, 224),
    "1.7b": (24, 2048, 5632, 16, 24, 1024, 4096, 336),
    "7b": (32, 4096, 11008, 32, 24, 1024, 4096, 336),
    "13b": (40, 5120, 13824, 40, 24, 1024, 4096, 336),
}
VARIANTS = {
    "bf16": None,
    "bf16-transformers": None,
    "bf16-compiled": None,
    "bf16-frozen": None,
    "w8a8": Scheme.parse("w8a8", activation_mode="dynamic_token"),
    "w4a16": Scheme.parse("w4a16", group_size=128),
    "w3a16": Scheme.parse("w3a16", group_size=128),
    "w4a4": Scheme.parse("w4a4", activation_mode="dynamic_token"),
}
VOCABULARY, IMAGE = 32064, 32000


def shape(size: str) -> LlavaConfig:
    """Return the configuration of a size."""
    layers, width, mlp, heads, tower_layers, tower_width, tower_mlp, pixels = SIZES[size]
    vision = CLIPVisionConfig(
        hidden_size=tower_width,
        intermediate_size=tower_mlp,
        num_hidden_layers=tower_layers,
        num_attention_heads=tower_width // 64,
        image_size=pixels,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)


def random_weight(_: str, linear: QuantLinear) -> PackedWeight:
    """Return random codes for a layer."""
    quantizer = linear.weight_quantizer
    outputs, groups, _ = quantizer.shape
    inputs, bits = linear.in_features, quantizer.num_bits
    codes = torch.randint(0, 256, (outputs, packed_bytes(inputs, bits)), dtype=torch.uint8)
    scale = torch.full((outputs, groups), 2.0 / 2**bits / inputs**0.5).to(torch.bfloat16)
    middle = 0x0101010101010101 * 2 ** (bits - 1) if bits == 8 else 0
    zeros = torch.full((packed_bytes(outputs * groups, bits),), middle & 255, dtype=torch.uint8)
    return PackedWeight(codes, scale, zeros if bits == 8 else None, bits, (outputs, inputs))


def build(size: str, variant: str) -> tuple[nn.Module, Any]:
    """Return a model, packed unless the variant is ``bf16``, and what was packed."""
    config, scheme = shape(size), VARIANTS[variant]
    make = LlavaForConditionalGeneration._from_config
    model = without_weights(lambda: make(config, dtype=torch.bfloat16), str(ROOT))
    packed = None
    quantized: set[str] = set()
    if scheme is not None:
        structure = quantize_model(model, Llava(str(ROOT)), scheme, torch.device("cpu"))
        quantized = {f"{n}.{own}" for n in structure.quantized for own in ("weight",)}
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and name not in quantized:
            path, _, own = name.rpartition(".")
            owner = model.get_submodule(path)
            value = torch.empty(parameter.shape, dtype=torch.bfloat16)
            value = value.normal_(0, 0.02) if value.dim() > 1 else value.fill_(own != "bias")
            owner._parameters[own] = nn.Parameter(value, requires_grad=False)
    if scheme is not None:
        packed = pack_model(model, structure, random_weight)
    return model.eval(), packed


def few_rows_written_out(packed: PackedModel) -> list[str]:
    """Return the layers that write their weight out for one row although the extension is there."""
    if extension() is None:
        return []
    slow = ("dequantize", "int4-dequantize", "reference")
    return [name for name, layer in packed.layers.items() if layer.kernel(1).name in slow]


def run(
    size: str,
    variant: str,
    prompt: int,
    tokens: int,
    head_bits: int | None = None,
    kv_cache: str = "full",
    prefilled: bool = False,
) -> dict[str, Any]:
    """Return the figures of one variant.

    Args:
        size: of the model.
        variant: of its weights.
        prompt: words behind the image.
        tokens: that are generated.
        head_bits: of the output head of packed variants.
        kv_cache: how keys and values are stored.
        prefilled: store random keys and values instead of computing those of the prompt.

    Raises:
        RuntimeError: a packed layer writes its weight out for a single token.
    """
    model, packed = build(size, variant)
    if head_bits is not None and packed is not None:
        quantize_head(model, head_bits, packed)
    if packed is not None and (wrong := few_rows_written_out(packed)):
        raise RuntimeError(f"{len(wrong)} layers write their weight out, {wrong[0]} the first")
    resident = resident_bytes()
    config: Any = model.config
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    words = torch.randint(10, 30000, (1, prompt))
    ids = torch.cat([torch.tensor([[1] + [IMAGE] * patches]), words], dim=1)
    pixels = torch.randn(1, 3, config.vision_config.image_size, config.vision_config.image_size)
    pixels = pixels.to(torch.bfloat16)
    plain = variant.startswith("bf16-")
    compiled = plain and variant != "bf16-transformers"
    if compiled:
        cache: Any = StaticCache(config=config, max_cache_len=ids.shape[1] + tokens)
    else:
        cache = DynamicCache(config=config) if plain else key_value_cache(config, kv_cache)
    token, seconds = torch.tensor([[11]]), {"vision s": "", "prefill s": ""}
    if prefilled:
        fill(cache, config.text_config, ids.shape[1])
    else:
        token, seconds = prefill(model, ids, pixels, cache)
    if plain:
        model.set_attn_implementation("eager")  # fused attention is slower for one query on a CPU
        attention = "eager"
        torch._inductor.config.freezing = variant == "bf16-frozen"
        step = torch.compile(model) if compiled else model
        decode = decode_seconds(step, token, cache, tokens)
    else:
        with single_query_attention(model) as single:
            attention = "extension" if single else "sdpa"
            decode = decode_seconds(model, token, cache, tokens)
    held = sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])
    layers = 0 if packed is None else packed.nbytes()
    return {
        "size": size,
        "variant": variant,
        "threads": torch.get_num_threads(),
        "prompt tokens": ids.shape[1],
        "tensors MiB": round(held / 2**20),
        "of packed layers MiB": round(layers / 2**20),
        "resident after load MiB": round(resident / 2**20),
        "peak MiB": round(host_peak() / 2**20),
        **seconds,
        "decode ms": round(1e3 * decode, 1),
        "head bits": head_bits if packed is not None and head_bits else 16,
        "keys and values MiB": "" if plain else round(stored_bytes(cache) / 2**20, 1),
        "attention": attention,
        "kernels": "" if packed is None else ", ".join(sorted(packed.used())),
    }


def prefill(
    model: Any, ids: Tensor, pixels: Tensor, cache: Any
) -> tuple[Tensor, dict[str, float | str]]:
    """Return the first token and the seconds of the tower and of the prompt, which has it in it."""
    start = clock()
    model.model.get_image_features(pixel_values=pixels)
    vision = clock() - start
    start = clock()
    given = {"input_ids": ids, "pixel_values": pixels, "past_key_values": cache}
    out = model(**given, use_cache=True, logits_to_keep=1)
    whole = clock() - start
    found = {"vision s": round(vision, 2), "prefill s": round(whole, 2)}
    return out.logits[:, -1:].argmax(-1), found


def fill(cache: Any, config: Any, tokens: int) -> None:
    """Store random keys and values."""
    channels = config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        states = torch.randn(1, config.num_key_value_heads, tokens, channels).to(torch.bfloat16)
        cache.update(states, states.flip(2), layer)


def decode_seconds(model: Any, token: Tensor, cache: Any, tokens: int) -> float:
    """Return the time of a token that a quarter of them stay below."""
    taken = []
    for _ in range(tokens):
        start = clock()
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        taken.append(clock() - start)
    return sorted(taken)[len(taken) // 4]


def resident_bytes() -> int:
    """Return the resident set of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * 4096


def main() -> None:
    """Run every variant in its own process, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--prompt", type=int, default=44, help="words behind the image")
    parser.add_argument("--tokens", type=int, default=12, help="that are generated")
    parser.add_argument("--threads", type=int, help="default those of the environment")
    parser.add_argument("--head-bits", type=int, choices=range(2, 9), help="of packed variants")
    parser.add_argument("--kv-cache", choices=("full", "int8"), default="full")
    parser.add_argument(
        "--prefilled", action="store_true", help="random keys and values, no prompt is computed"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/generation"))
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    lengths = options.prompt, options.tokens
    if options.one:
        stored = options.head_bits, options.kv_cache, options.prefilled
        print(json.dumps(run(options.size, options.one, *lengths, *stored)))
        return
    rows = []
    for variant in options.variants:
        told = [sys.executable, __file__, "--one", variant, "--size", options.size]
        told += ["--prompt", str(options.prompt), "--tokens", str(options.tokens)]
        told += ["--kv-cache", options.kv_cache, "--threads", str(torch.get_num_threads())]
        told += ["--prefilled"] if options.prefilled else []
        told += [] if options.head_bits is None else ["--head-bits", str(options.head_bits)]
        done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        first = rows[0]
        for what in ("prefill s", "decode ms")[options.prefilled :]:
            rows[-1][f"x {first['variant']}, {what.split()[0]}"] = round(
                first[what] / rows[-1][what], 2
            )
    write(rows, options.out, f"generation-{options.size}", "Generation, random weights")


if __name__ == "__main__":
    main()
