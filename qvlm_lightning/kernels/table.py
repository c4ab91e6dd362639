"""Which layout and which kernels a packed layer gets: by scheme, device, type and rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qvlm_lightning.kernels import int4pack, onednn, torch_kernels, triton_kernels
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.kernels.self_test import Held, dense, refusal
from qvlm_lightning.nn.packed_linear import Holding, Kernel
from qvlm_lightning.nn.packing import PackedWeight

FEW, SOME = 16, 63
STEP = 64
"""Bytes that an instruction of AVX-512 VNNI multiplies."""
NARROW = (8, 16, 32)
"""Sizes of groups that share a step: whole lanes of four bytes."""
MOST_SUMMED = 32_768
"""Inputs of which a sum of products of codes fits into 32 bits."""


@dataclass(frozen=True)
class Case:
    """What a choice depends on, beside the number of rows."""

    weight_bits: int
    """Bits of a weight's code."""
    activation_bits: int
    """Bits of an input's code; 16 for inputs in full precision."""
    features: tuple[int, int]
    """(outputs, inputs) of the layer."""
    group_size: int
    """Inputs that share a scale; all of them for one scale per output channel."""
    dtype: torch.dtype
    """Type of the model."""
    device: str
    """``cpu`` or ``cuda``."""

    @property
    def grouped(self) -> bool:
        """Whether an output channel has several scales."""
        return self.group_size < self.features[1]

    @property
    def integer(self) -> bool:
        """Whether inputs are codes too."""
        return self.activation_bits <= 8

    @classmethod
    def of(cls, weight: PackedWeight, activation_bits: int) -> "Case":
        """Return the case of a weight."""
        kind, device = weight.scale.dtype, weight.codes.device.type
        size = weight.group_size
        return cls(weight.bits, activation_bits, weight.features, size, kind, device)


@dataclass(frozen=True)
class Entry:
    """A kernel of the table and when it may be used, self-test aside."""

    kernel: Kernel
    takes: Callable[[Case], bool]
    tested: bool = True


@dataclass(frozen=True)
class Layout:
    """A layout and its kernels, the preferred ones first; unusable without its first kernel."""

    name: str
    held: Held
    entries: tuple[Entry, ...]


def _always(_: Case) -> bool:
    return True


def _on_cpu(case: Case) -> bool:
    return case.device == "cpu"


def _integers(case: Case) -> bool:
    return _on_cpu(case) and case.integer


def _integers_of_channels(case: Case) -> bool:
    return _integers(case) and not case.grouped


def _bytes_of_channels(case: Case) -> bool:
    """Whether a weight is held in oneDNN's order: not where the extension is as fast without."""
    if not (_integers_of_channels(case) and case.weight_bits == 8):
        return False
    return _reason(_VNNI, dense, case) is not None


def _with_extension(case: Case) -> bool:
    aligned = not case.grouped or case.group_size % 8 == 0
    return _on_cpu(case) and aligned and extension() is not None


def _with_vnni(case: Case) -> bool:
    """Whether the extension multiplies many rows of bytes on this processor."""
    size = case.group_size
    whole = size % STEP == 0 or (size in NARROW and case.features[1] % STEP == 0)
    fits = size <= MOST_SUMMED and (whole or not case.grouped)
    built = extension() if _integers(case) and fits else None
    return built is not None and built.has_byte_products


def _nibbles(case: Case) -> bool:
    small = case.weight_bits <= 4 and case.dtype == torch.bfloat16
    return _on_cpu(case) and small and int4pack.fits(case.features, case.group_size)


def _integers_on_gpu(case: Case) -> bool:
    """Whether the int8 tensor cores take the sizes of a case."""
    sizes = case.features[0] % 8 == 0 and case.group_size % 8 == 0
    return case.device == "cuda" and case.integer and sizes


def _with_triton(case: Case) -> bool:
    return case.device == "cuda" and triton_kernels.programs() is not None


_FEW_ROWS = Entry(
    Kernel("extension", FEW, torch_kernels.few_rows, torch_kernels.few_rows_together),
    _with_extension,
)
_VNNI = Entry(Kernel("vnni", None, torch_kernels.many_rows), _with_vnni)
_ANY_ROWS = (
    _VNNI,
    Entry(Kernel("onednn", None, onednn.product), _integers_of_channels),
    Entry(Kernel("int_mm", None, torch_kernels.integer_product), _integers),
    Entry(Kernel("dequantize", None, torch_kernels.dequantize), _always, tested=False),
)
_ON_GPU = (
    Entry(Kernel("int_mm", None, torch_kernels.integer_product), _integers_on_gpu),
    Entry(Kernel("dequantize", None, torch_kernels.dequantize), _always, tested=False),
)
TABLE = (
    Layout(
        "dense",
        dense,
        (Entry(Kernel("triton", FEW, triton_kernels.few_rows), _with_triton), *_ON_GPU),
    ),
    Layout(  # torch._int_mm takes more than 16 rows only
        "dense",
        dense,
        (Entry(Kernel("dequantize", FEW, torch_kernels.dequantize), _integers_on_gpu), *_ON_GPU),
    ),
    Layout(
        "onednn",
        onednn.held,
        (Entry(Kernel("onednn-held", None, onednn.held_product), _bytes_of_channels),),
    ),
    Layout("dense", dense, (_FEW_ROWS, *_ANY_ROWS)),
    Layout(
        "int4",
        int4pack.held,
        (
            Entry(Kernel("int4pack", SOME, int4pack.product), _nibbles),
            Entry(Kernel("int4-dequantize", None, int4pack.dequantized_product), _nibbles),
        ),
    ),
    Layout("dense", dense, _ANY_ROWS),
    Layout("dense", dense, _ANY_ROWS[1:]),
    Layout("dense", dense, _ANY_ROWS[2:]),
    Layout("dense", dense, _ANY_ROWS[3:]),
)
"""Layouts in order of preference. The last one takes whatever is left."""


def holding_of(weight: PackedWeight, activation_bits: int) -> tuple[Holding, list[str]]:
    """Return how a layer holds its weight, and what the self-test refused on the way.

    Args:
        weight: packed.
        activation_bits: of the layer's input; 16 for inputs in full precision.
    """
    case = Case.of(weight, activation_bits)
    refused: list[str] = []
    for layout in TABLE:
        kernels = _usable(layout, case, refused)
        if kernels:
            return Holding(layout.name, layout.held(weight), kernels), refused
    raise AssertionError("the last layout takes everything")


def _usable(layout: Layout, case: Case, refused: list[str]) -> list[Kernel]:
    """Return the kernels of a layout for a case, up to the first that takes any number of rows;
    none where the first one is out of question.
    """
    kernels: list[Kernel] = []
    for place, entry in enumerate(layout.entries):
        reason = _reason(entry, layout.held, case)
        if reason:
            refused.append(reason)
        if reason is not None:
            if place == 0:
                return []
            continue
        kernels.append(entry.kernel)
        if entry.kernel.most_rows is None:
            return kernels
    return []


def _reason(entry: Entry, held: Held, case: Case) -> str | None:
    """Return why an entry is not used: ``""`` where it is not made for the case."""
    if not entry.takes(case):
        return ""
    if not entry.tested:
        return None
    scheme = (case.weight_bits, case.activation_bits, case.grouped, case.dtype)
    return refusal(held, entry.kernel, *scheme, case.device)
