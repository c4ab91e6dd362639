"""Kernels of packed layers: error against float64, time against floating products and memory.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/kernels.py --out runs/kernels

It ends with code 1 if the float64 reference ran in the place of a kernel.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import bandwidth, seconds, write

from qvlm_lightning.kernels import torch_kernels
from qvlm_lightning.kernels.self_test import dense
from qvlm_lightning.kernels.table import holding_of
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, Holding, Kernel, PackedLinear
from qvlm_lightning.nn.packing import PackedWeight, packed_bytes

FORMATS = {
    "w8a8 channel": (8, 8, None),
    "w6a6 channel": (6, 6, None),
    "w4a16 g128": (4, 16, 128),
    "w3a16 g128": (3, 16, 128),
    "w4a8 channel": (4, 8, None),
    "w4a4 channel": (4, 4, None),
}
BEYOND_CACHES = 96 * 2**20


def random_weight(features: tuple[int, int], bits: int, group: int | None) -> PackedWeight:
    """Return a packed weight of random codes, never in full precision."""
    outputs, inputs = features
    codes = torch.randint(0, 256, (outputs, packed_bytes(inputs, bits)), dtype=torch.uint8)
    groups = 1 if group is None else inputs // group
    scale = (0.01 * torch.rand(outputs, groups) + 0.001).to(torch.bfloat16)
    zeros = torch.randint(0, 256, (packed_bytes(outputs * groups, bits),), dtype=torch.uint8)
    return PackedWeight(codes, scale, zeros, bits, features)


def random_input(rows: int, inputs: int, bits: int) -> Given:
    """Return rows in bfloat16, or as codes."""
    if bits == 16:
        return torch.randn(rows, inputs).to(torch.bfloat16)
    codes = torch.randint(0, 2**bits, (rows, inputs)).to(torch.uint8)
    return InputCodes(codes, torch.full((rows, 1), 0.1), 2 ** (bits - 1), torch.bfloat16)


def error(layer: PackedLinear, weight: PackedWeight, given: Given) -> float:
    """Return ``||y - y64|| / ||y64||`` before the result is rounded to the type of the model."""
    plain = Kernel("reference", None, torch_kernels.reference)
    exact = torch_kernels.reference(
        PackedLinear(weight, Holding("x", dense(weight), [plain])), given
    )
    found = layer.kernel(len(exact)).run(layer, given).double()
    return float((found - exact).norm() / exact.norm())


def measured(features: tuple[int, int], rows: int, name: str, roof: float) -> dict[str, Any]:
    """Return a row of the table."""
    bits, activation_bits, group = FORMATS[name]
    outputs, inputs = features
    copies = max(2, BEYOND_CACHES // (outputs * inputs)) if rows == 1 else 1
    weights = [random_weight(features, bits, group) for _ in range(copies)]
    layers = [PackedLinear(w, holding_of(w, activation_bits)[0]) for w in weights]
    given = random_input(rows, inputs, activation_bits)
    kernel = layers[0].kernel(rows)
    times = max(1, min(10, 60 // rows))
    taken = seconds([lambda x=x: kernel.run(x, given) for x in layers], times)
    wide = [torch.randn(features).to(torch.bfloat16) for _ in range(max(1, copies // 2))]
    x = torch.randn(rows, inputs).to(torch.bfloat16)
    plain = seconds([lambda w=w: F.linear(x, w) for w in wide], 1 if rows > 64 else times)
    narrow = [w.float() for w in wide[: max(1, len(wide) // 2)]]
    single = seconds([lambda w=w: F.linear(x.float(), w) for w in narrow], times)
    floor = layers[0].nbytes() / roof
    return {
        "shape": f"{outputs}x{inputs}",
        "rows": rows,
        "format": name,
        "kernel": kernel.name,
        "error": f"{error(layers[0], weights[0], given):.1e}" if rows <= 4 else "",
        "ms": round(1e3 * taken, 2),
        "x bf16": round(plain / taken, 2),
        "x float32": round(single / taken, 2),
        "% of the memory roofline": round(100 * floor / taken) if rows == 1 else "",
    }


def main() -> int:
    """Measure, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/kernels"))
    parser.add_argument("--shapes", nargs="+", default=["2048x2048", "4096x4096", "11008x4096"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 64, 620])
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    roof = bandwidth()
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    rows = [
        measured((outputs, inputs), count, name, roof)
        for outputs, inputs in shapes
        for count in options.rows
        for name in FORMATS
    ]
    note = f"Kernels, {torch.get_num_threads()} threads, {roof / 1e9:.0f} GB/s read"
    write(rows, options.out, "kernels", note)
    return int(any(row["kernel"] == "reference" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
