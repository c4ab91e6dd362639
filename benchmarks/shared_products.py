"""Layers that share their input: one product for all of them against one of each.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/shared_products.py

Both variants take turns in one process, on the same weights, which are more than the caches hold. A
ratio is that of two passes one after the other; the table has their median and middle half.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import clock, write

from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.kernels.packed_model import share_products
from qvlm_lightning.kernels.table import holding_of
from qvlm_lightning.nn.packed_input import PackedInput
from qvlm_lightning.nn.packed_linear import PackedLinear
from qvlm_lightning.nn.packed_site import SharedProduct
from qvlm_lightning.nn.packing import PackedWeight
from qvlm_lightning.nn.quantizer import ActivationQuantizer

# hidden, keys and values, MLP, layers, group size of W4A16 (576 is no multiple of 128)
SHAPES = {"smollm2-135m": (576, 192, 1536, 30, 64), "1.7b": (2048, 2048, 5632, 4, 128)}
SCHEMES = ("w4a16", "w4a4")
Layers = list[PackedLinear]


def site(inputs: int, outputs: Sequence[int], scheme: str, group: int) -> Layers:
    """Return packed layers of one input, of random weights in bfloat16."""
    bits, given = (16, None) if scheme == "w4a16" else (4, quantized(len(outputs)))
    layers = []
    for size in outputs:
        groups = inputs // group if bits == 16 else 1
        codes = torch.randint(0, 256, (size, inputs // 2), dtype=torch.uint8)
        scale = (0.01 * torch.rand(size, groups) + 0.001).to(torch.bfloat16)
        weight = PackedWeight(codes, scale, None, 4, (size, inputs))
        layers.append(PackedLinear(weight, holding_of(weight, bits)[0], None, given))
    share_products(layers)
    return layers


def quantized(consumers: int) -> PackedInput:
    """Return what makes codes of 4 bits, one range per token."""
    quantizer = ActivationQuantizer(4, "dynamic_token", (), consumers)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0), 1.0)
    built = extension()
    return PackedInput(quantizer, torch.bfloat16, None if built is None else built.quantized)


def passed(sites: Sequence[tuple[Layers, SharedProduct | None]], x: torch.Tensor) -> float:
    """Return the seconds of a pass through sites, together where they have a shared product."""
    for layers, shared in sites:
        for layer in layers:
            layer.shared = shared
    start = clock()
    for layers, _ in sites:
        for layer in layers:
            layer(x)
    return clock() - start


def measured(shape: str, scheme: str, part: str, turns: int) -> dict[str, Any]:
    """Return a row of the table."""
    hidden, stored, mlp, count, group = SHAPES[shape]
    outputs = (hidden, stored, stored) if part == "q, k, v" else (mlp, mlp)
    made = [site(hidden, outputs, scheme, group) for _ in range(count)]
    together = [(layers, layers[0].shared) for layers in made]
    single: list[tuple[Layers, SharedProduct | None]] = [(layers, None) for layers in made]
    assert all(shared is not None for _, shared in together), "no extension here"
    x = torch.randn(1, 1, hidden).to(torch.bfloat16)
    ratios, times = [], []
    for turn in range(turns + 1):
        pair = (together, single) if turn % 2 else (single, together)
        taken = {id(sites): passed(sites, x) for sites in pair}
        if turn:  # the first turn warms up
            times.append((taken[id(single)], taken[id(together)]))
            ratios.append(taken[id(single)] / taken[id(together)])
    low, middle, high = torch.tensor(ratios).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    each, one = (sorted(x)[len(x) // 2] / count for x in zip(*times, strict=True))
    return {
        "shape": shape,
        "layers": part,
        "scheme": scheme,
        "single, us": round(1e6 * each),
        "together, us": round(1e6 * one),
        "times faster": round(middle, 2),
        "middle half": f"{low:.2f} to {high:.2f}",
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/shared_products"))
    parser.add_argument("--turns", type=int, default=60)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = [
        measured(shape, scheme, part, options.turns)
        for shape in SHAPES
        for scheme in SCHEMES
        for part in ("q, k, v", "gate, up")
    ]
    note = f"Products of a site together, one row, {torch.get_num_threads()} threads"
    write(rows, options.out, "shared_products", note)


if __name__ == "__main__":
    main()
