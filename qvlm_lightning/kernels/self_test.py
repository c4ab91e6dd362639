"""The test that a kernel of another library passes before it is used.

Such kernels can be silently wrong or slow on a processor or in a type they were not made for. Each
is compared once, on a small layer with the largest codes in it, with the float64 reference and with
the time of the floating product of the same size.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qvlm_lightning.kernels.torch_kernels import reference
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, Holding, Kernel, PackedLinear
from qvlm_lightning.nn.packing import PackedWeight, pack_codes

Held = Callable[[PackedWeight], Mapping[str, Tensor | None]]
TIMES_SLOWER = 10
_ROWS, _OUTPUTS, _INPUTS, _GROUP = 128, 256, 512, 128
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the largest output."""


@cache
def refusal(
    held: Held,
    kernel: Kernel,
    weight_bits: int,
    activation_bits: int,
    grouped: bool,
    dtype: torch.dtype,
    device: str = "cpu",
) -> str | None:
    """Return why a kernel is not used on this machine, in one sentence, or ``None``.

    Args:
        held: makes the tensors of its layout.
        kernel: the kernel.
        weight_bits: of the codes.
        activation_bits: 16 for an input in full precision.
        grouped: several scales per output channel.
        dtype: of the model.
        device: ``cpu`` or ``cuda``.
    """
    rows = min(_ROWS, kernel.most_rows or _ROWS)
    weight = sample_weight(weight_bits, _INPUTS // _GROUP if grouped else 1, dtype).to(device)
    given = sample_input(rows, activation_bits, dtype).to(device)
    exact = reference(_layer(weight, dense, kernel), given)
    try:
        layer = _layer(weight, held, kernel)
        y = kernel.run(layer, given).double()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"{kernel.name} does not run here: {str(error).partition(chr(10))[0][:120]}"
    error_of_it = float((y - exact).abs().max() / exact.abs().max())
    if not error_of_it <= _TOLERANCE[dtype]:
        return f"{kernel.name} is wrong here (error {error_of_it:.1g} of the largest output)"
    plain = weight.dequantized(torch.float32)
    x = torch.randn(rows, _INPUTS, device=device)
    expected = _seconds(lambda: F.linear(x, plain))
    taken = _seconds(lambda: kernel.run(layer, given))
    # of so small a layer a call alone takes some microseconds
    if taken > TIMES_SLOWER * max(expected, 1e-4):
        return f"{kernel.name} is {taken / expected:.0f} times slower here than a float32 product"
    return None


def dense(weight: PackedWeight) -> dict[str, Tensor | None]:
    """Return what a layer holds in the ``dense`` layout: the packed weight as it is."""
    return {"codes": weight.codes, "scale": weight.scale, "zero_point": weight.zero_point}


def sample_weight(bits: int, groups: int, dtype: torch.dtype) -> PackedWeight:
    """Return a random weight; its first outputs have the smallest and the largest codes only."""
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (_OUTPUTS, _INPUTS), generator=draw)
    codes[:4], codes[4:8] = 0, 2**bits - 1
    scale = (torch.rand(_OUTPUTS, groups, generator=draw) + 0.5).to(dtype)
    zeros = torch.randint(0, 2**bits, (_OUTPUTS * groups,), generator=draw)
    features = (_OUTPUTS, _INPUTS)
    return PackedWeight(pack_codes(codes, bits), scale, pack_codes(zeros, bits), bits, features)


def sample_input(rows: int, bits: int, dtype: torch.dtype) -> Given:
    """Return random rows, in full precision or as codes; the first has the largest codes only."""
    draw = torch.Generator().manual_seed(rows)
    if bits > 8:
        return torch.randn(rows, _INPUTS, generator=draw).to(dtype)
    codes = torch.randint(0, 2**bits, (rows, _INPUTS), generator=draw).to(torch.uint8)
    codes[0] = 2**bits - 1
    return InputCodes(codes, torch.tensor(0.25), 2 ** (bits - 1) - 1, dtype)


def _layer(weight: PackedWeight, held: Held, kernel: Kernel) -> PackedLinear:
    return PackedLinear(weight, Holding("test", held(weight), [kernel]))


def _seconds(call: Callable[[], Tensor]) -> float:
    call()
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        call()[:1].cpu()  # a GPU is still at work when the call comes back
        best = min(best, time.perf_counter() - start)
    return best
