"""Two versions of the C++ extension against each other, on the same weights.

    git worktree add ../before COMMIT
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/sources.py ../before/qvlm_lightning/kernels

Both take turns in one process, on more memory than the caches hold. A ratio is that of two passes
one after the other; the table has the best pass of each, and the median and middle half of ratios.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _common import bandwidth, clock, write

from qvlm_lightning.kernels import extension
from qvlm_lightning.kernels.extension import Extension
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given
from qvlm_lightning.nn.packing import PackedWeight, packed_bytes

# bits of weights and inputs, group size
FORMATS = {
    "w8a8 channel": (8, 8, None),
    "w6a6 channel": (6, 6, None),
    "w4a16 channel": (4, 16, None),
    "w4a16 g128": (4, 16, 128),
    "w4a16 g32": (4, 16, 32),
    "w3a16 g128": (3, 16, 128),
    "w4a8 channel": (4, 8, None),
    "w4a4 channel": (4, 4, None),
}
BEYOND_CACHES = 64 * 2**20


def random_weight(outputs: int, inputs: int, bits: int, group: int | None) -> PackedWeight:
    """Return a weight of random codes."""
    groups = 1 if group is None else inputs // group
    codes = torch.randint(0, 256, (outputs, packed_bytes(inputs, bits)), dtype=torch.uint8)
    scale = (0.01 * torch.rand(outputs, groups) + 0.001).to(torch.bfloat16)
    zeros = torch.randint(0, 256, (packed_bytes(outputs * groups, bits),), dtype=torch.uint8)
    return PackedWeight(codes, scale, zeros, bits, (outputs, inputs))


def random_row(inputs: int, bits: int) -> Given:
    """Return one row in bfloat16, or as codes."""
    if bits == 16:
        return torch.randn(1, inputs).to(torch.bfloat16)
    codes = torch.randint(0, 2**bits, (1, inputs)).to(torch.uint8)
    return InputCodes(codes, torch.full((1, 1), 0.1), 2 ** (bits - 1), torch.bfloat16)


def passed(built: Extension, weights: list[PackedWeight], given: Given) -> float:
    """Return the seconds of a pass through the weights."""
    start = clock()
    for weight in weights:
        built.products([weight], given)
    return clock() - start


def measured(
    name: str, shape: tuple[int, int], before: Extension, turns: int, roof: float
) -> dict[str, Any]:
    """Return a row of the table."""
    bits, input_bits, group = FORMATS[name]
    present = extension.extension()
    assert present is not None, extension.why_no_extension()
    size = shape[0] * packed_bytes(shape[1], bits)
    weights = [random_weight(*shape, bits, group) for _ in range(-(-BEYOND_CACHES // size))]
    given = random_row(shape[1], input_bits)
    expected = before.products(weights[:1], given)[0]
    off = float((present.products(weights[:1], given)[0] - expected).norm() / expected.norm())
    times = []
    for turn in range(turns):
        pair = (before, present) if turn % 2 else (present, before)
        taken = {id(built): passed(built, weights, given) for built in pair}
        times.append((taken[id(before)], taken[id(present)]))
    held = sum(weight.nbytes for weight in weights)
    ratios = sorted(old / new for old, new in times)
    speeds = [held / 1e9 / min(column) for column in zip(*times, strict=True)]
    quarter = turns // 4
    return {
        "shape": f"{shape[0]}x{shape[1]}",
        "format": name,
        "GB/s before": round(speeds[0], 1),
        "GB/s": round(speeds[1], 1),
        "% of what memory gives": round(100 * speeds[1] * 1e9 / roof),
        "times faster": round(ratios[turns // 2], 2),
        "middle half": f"{ratios[quarter]:.2f}-{ratios[-1 - quarter]:.2f}",
        "difference": f"{off:.0e}",
    }


def main() -> None:
    """Let both versions take turns, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path, help="folder of the other version's C++ files")
    parser.add_argument("--shape", default="5632x2048", help="outputs x inputs")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/sources"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if not (options.before / "product.cpp").is_file():
        parser.error(
            f"{options.before} holds no product.cpp; give a folder like {extension._FOLDER}"
        )
    outputs, inputs = map(int, options.shape.split("x"))
    before, roof = extension.from_sources(options.before), bandwidth()
    rows = [
        measured(name, (outputs, inputs), before, options.turns, roof) for name in options.formats
    ]
    note = f"Products of one row, {torch.get_num_threads()} threads, {roof / 1e9:.0f} GB/s read"
    write(rows, options.out, "sources", note)


if __name__ == "__main__":
    main()
