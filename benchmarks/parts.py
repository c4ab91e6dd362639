"""Where the time of a new token goes: what of it the C++ extension takes, by function.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/parts.py --size 1.7b --variants w4a16 w4a4

Models are those of ``generation.py``, with random keys and values and an output head of 8 bits.
What is left is Python and the small operations between products. It ends with an error where a
layer does not run in the extension, since its time would be there too.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import generation
import torch
from _common import clock, write

from qvlm_lightning.kernels import key_value_cache, quantize_head, single_query_attention
from qvlm_lightning.kernels.extension import Extension

PARTS = {"products": "products", "attention": "attended", "inputs to codes": "quantized"}
PACKED = [name for name, scheme in generation.VARIANTS.items() if scheme is not None]


def timed(function: Callable[..., Any], name: str, taken: Counter[str]) -> Callable[..., Any]:
    """Return a function that adds its seconds to ``taken[name]``."""

    def call(*given: Any, **named: Any) -> Any:
        start = clock()
        found = function(*given, **named)
        taken[name] += clock() - start  # type: ignore[assignment]
        return found

    return call


def measured(size: str, variant: str, tokens: int, stored: int) -> dict[str, Any]:
    """Return the milliseconds of a token by part, means over tokens.

    Args:
        size: of the model.
        variant: of its weights, packed.
        tokens: that are generated, and two before them.
        stored: tokens before those.
    """
    taken: Counter[str] = Counter()
    kept = {method: getattr(Extension, method) for method in PARTS.values()}
    try:
        for name, method in PARTS.items():  # before layers hold them
            setattr(Extension, method, timed(kept[method], name, taken))
        whole = seconds_of_tokens(*generation.build(size, variant), tokens, stored, taken)
    finally:
        for method, function in kept.items():
            setattr(Extension, method, function)
    each = {name: round(1e3 * taken[name] / tokens, 2) for name in PARTS}
    rest = 1e3 * whole / tokens - sum(each.values())
    row = {"size": size, "variant": variant, "threads": torch.get_num_threads()}
    return row | {"token ms": round(1e3 * whole / tokens, 1), **each, "all else": round(rest, 1)}


def seconds_of_tokens(
    model: Any, packed: Any, tokens: int, stored: int, taken: Counter[str]
) -> float:
    """Return the seconds of all tokens; ``taken`` has those of its parts then."""
    quantize_head(model, 8, packed)
    cache = key_value_cache(model.config, "full")
    generation.fill(cache, model.config.text_config, stored)
    token = torch.tensor([[11]])
    with single_query_attention(model):
        generation.decode_seconds(model, token, cache, 2)
        taken.clear()
        start = clock()
        for _ in range(tokens):
            model(input_ids=token, past_key_values=cache, use_cache=True)
        whole = clock() - start
    other = packed.used().keys() - {"extension"}
    if other:
        raise RuntimeError(f"layers ran {', '.join(sorted(other))}; timed is the extension")
    return whole


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=generation.SIZES, default="small")
    parser.add_argument("--variants", nargs="+", choices=PACKED, default=PACKED)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--stored", type=int, default=621, help="tokens before the new ones")
    parser.add_argument("--out", type=Path, default=Path("runs/parts"))
    options = parser.parse_args(argv)
    torch.set_grad_enabled(False)
    lengths = options.tokens, options.stored
    rows = [measured(options.size, variant, *lengths) for variant in options.variants]
    write(rows, options.out, "parts", "New tokens by part, random weights")


if __name__ == "__main__":
    main()
