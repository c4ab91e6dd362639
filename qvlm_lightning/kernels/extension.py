"""The optional C++ extension (the .cpp files here), built once with the system's compiler.

It is plain C behind ``ctypes``: none of torch's headers are read, building takes some 20 seconds of
computing.
"""

import ctypes
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import first_line
from qvlm_lightning.nn.packed_input import InputCodes, PackedInput
from qvlm_lightning.nn.packed_linear import Given
from qvlm_lightning.nn.packing import PackedWeight

_FOLDER = Path(__file__).parent
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_WIDE = (torch.float32, torch.bfloat16)
_CODES = 3  # of an input


class _Asked(ctypes.Structure):
    """A weight and where its product goes, as ``product.cpp`` has it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "zero_point", "y")),
        ("outputs", ctypes.c_int64),
    )


class Extension:
    """Functions of the built library on tensors of packed layers in the ``dense`` layout.

    Args:
        path: of the library.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        weight: list[Any] = [pointer, pointer, pointer, size, size, size, number, number, number]
        rows: list[Any] = [pointer, number, number, pointer, size, size]
        self._product, self._dequantize = library.qvlm_product, library.qvlm_dequantize
        self._unpack, self._quantize = library.qvlm_unpack, library.qvlm_quantize
        self._attend = library.qvlm_attend
        # sources of an earlier version have none
        self._use_wide = getattr(library, "qvlm_use_wide", lambda on: 0)
        self.has_wide = bool(self._use_wide(1))
        self.has_byte_products = bool(getattr(library, "qvlm_has_byte_products", lambda: 0)())
        self._product.argtypes = [ctypes.POINTER(_Asked), size, size, size, number, number, number]
        self._product.argtypes += rows
        self._dequantize.argtypes = [*weight, pointer]
        self._unpack.argtypes = [pointer, size, size, number, number, pointer]
        for function in (self._product, self._dequantize, self._unpack, self._attend):
            function.restype = None
        self._quantize.argtypes = [pointer, number, size, size, number, number, ctypes.c_float]
        self._quantize.argtypes += [pointer, pointer, pointer]
        self._attend.argtypes = [pointer, pointer, pointer, number, pointer, size, size, size, size]
        self._attend.argtypes += [ctypes.c_float, number, pointer]
        if self.has_byte_products:
            self._byte_products = library.qvlm_byte_products
            self._byte_products.restype = None
            self._byte_products.argtypes = [*weight, pointer, number, pointer, size, size, pointer]

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy of a model, in another process too, find the library there."""
        return extension, ()

    def use_wide(self, on: bool) -> None:
        """Let products of few rows take the instructions of AVX-512 VNNI and VBMI, as they do where
        the processor has them, or those of AVX2, to compare both.
        """
        self._use_wide(int(on))

    def products(self, weights: Sequence[PackedWeight], given: Given) -> list[Tensor]:
        """Return ``x W^T`` [N, O] float32 of rows [N, I] and every weight, read from the codes in
        one call; the weights have the same inputs, groups, width and type.
        """
        scale, zero_point = None, 0
        if isinstance(given, InputCodes):
            x, kind = given.codes.contiguous(), _CODES
            scale, zero_point = given.scale.contiguous(), given.zero_point
            assert scale.dtype == torch.float32
        else:
            x = given if given.dtype in _TYPES else given.to(torch.float32)
            x, kind = x.contiguous(), _TYPES[x.dtype]
        rows, inputs = x.shape
        outs = [_empty(rows, weight.features[0]) for weight in weights]
        asked = (_Asked * len(weights))(*map(_asked, weights, outs))
        first, threads = weights[0], torch.get_num_threads()
        self._product(
            *(asked, len(weights), inputs, first.scale.shape[1], first.bits),
            *(_TYPES[first.scale.dtype], threads, x.data_ptr(), kind, zero_point),
            *(_tensor(scale), 0 if scale is None else scale.numel(), rows),
        )
        return outs

    def byte_product(self, weight: PackedWeight, given: InputCodes) -> Tensor:
        """Return ``x W^T`` [N, O] float32 of rows [N, I], with the instructions of AVX-512 VNNI;
        asked for where ``has_byte_products``.
        """
        codes, scale = given.codes.contiguous(), given.scale.contiguous()
        assert scale.dtype == torch.float32
        out = _empty(len(codes), weight.features[0])
        self._byte_products(
            *_places(weight),
            *(codes.data_ptr(), given.zero_point, _tensor(scale), scale.numel(), len(codes)),
            out.data_ptr(),
        )
        return out

    def dequantized(self, weight: PackedWeight) -> Tensor:
        """Return the weight [O, I] in float32."""
        out = _empty(*weight.features)
        self._dequantize(*_places(weight), out.data_ptr())
        return out

    def signed(self, weight: PackedWeight) -> Tensor:
        """Return the codes minus 2^(b-1), int8 [O, I]."""
        out = _empty(*weight.features, dtype=torch.int8)
        sizes = *weight.features, weight.bits, torch.get_num_threads()
        self._unpack(_tensor(weight.codes), *sizes, out.data_ptr())
        return out

    def quantized(self, site: PackedInput, x: Tensor) -> InputCodes | None:
        """Return the codes that ``site`` makes of rows [N, I]; ``None`` of numbers that are none or
        infinite, and of types that are neither float32 nor bfloat16.
        """
        if x.dtype not in _WIDE or x.device.type != "cpu":
            return None
        x, codes = x.contiguous(), _empty(*x.shape, dtype=torch.uint8)
        rows, inputs = x.shape
        stored = site.scale
        scale = _empty(rows, 1) if stored is None else stored
        given = (x.data_ptr(), _TYPES[x.dtype], rows, inputs, site.num_bits, site.zero_point)
        place = None if stored is None else stored.data_ptr()
        done = self._quantize(*given, site.clip, place, codes.data_ptr(), scale.data_ptr())
        return InputCodes(codes, scale, site.zero_point, x.dtype) if done else None

    def attended(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor | None:
        """Return attention [H, D] of one query [H, D] over keys and values [J, S, D] of J heads,
        each shared by H / J of the query's; ``None`` of other types or where channels lie apart.
        """
        kinds = {query.dtype, keys.dtype, values.dtype}
        if kinds not in ({torch.float32}, {torch.bfloat16}) or keys.shape != values.shape:
            return None
        if keys.stride(2) != 1 or values.stride(2) != 1:
            return None
        query, out = query.contiguous(), _empty(*query.shape)
        steps = (ctypes.c_int64 * 4)(*keys.stride()[:2], *values.stride()[:2])
        heads, (stored, tokens, channels) = len(query), keys.shape
        self._attend(
            *(query.data_ptr(), keys.data_ptr(), values.data_ptr(), _TYPES[query.dtype], steps),
            *(heads, heads // stored, tokens, channels, scaling),
            *(torch.get_num_threads(), out.data_ptr()),
        )
        return out.to(query.dtype)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory for the C++ code to write in, whatever torch's default type and device are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _places(weight: PackedWeight) -> list[Any]:
    """Return how the C++ code takes a weight, the number of threads last."""
    places = [_tensor(x) for x in (weight.codes, weight.scale, weight.zero_point)]
    sizes = [*weight.features, weight.scale.shape[1], weight.bits, _TYPES[weight.scale.dtype]]
    return [*places, *sizes, torch.get_num_threads()]


def _asked(weight: PackedWeight, out: Tensor) -> _Asked:
    places = (_tensor(weight.codes), _tensor(weight.scale), _tensor(weight.zero_point))
    return _Asked(*places, out.data_ptr(), weight.features[0])


def _tensor(tensor: Any) -> int | None:
    """Return where a tensor's values lie; the C++ code trusts its size and layout."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    assert tensor.is_cpu
    return int(tensor.data_ptr())


@cache
def _built() -> tuple[Extension | None, str]:
    """Return the extension, or the reason why there is none."""
    try:
        return from_sources(_FOLDER), ""
    except (OSError, RuntimeError, ImportError) as error:
        return None, first_line(error)


def from_sources(folder: Path) -> Extension:
    """Return the extension of the C++ files in a folder, built unless it has been before.

    Args:
        folder: with sources whose functions take what those here take.

    Raises:
        OSError: no compiler, or a folder that cannot be written.
        RuntimeError: the compiler refuses.
        ImportError: torch finds no compiler.
    """
    avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    flags = ["-O3", "-std=c++17", "-fopenmp", *(["-mavx2", "-mfma", "-mbmi2"] if avx2 else [])]
    sources = [*sorted(folder.glob("*.h")), *sorted(folder.glob("*.cpp"))]
    # another version of the project has another library
    version = hashlib.sha256(b"".join(x.read_bytes() for x in sources)).hexdigest()[:8]
    name = f"qvlm_{'avx2' if avx2 else 'plain'}_{version}"
    return Extension(str(library(name, sources, flags)))


def library(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Return the file of a built library, in torch's cache of extensions.

    Each process that finds none builds in a folder of its own and puts the file in its place: torch
    itself would wait, for ever, for a process that was killed while it built.

    Args:
        name: of the library; what it is made of is part of it.
        sources: C++ files, and headers beside them.
        flags: of the compiler.

    Raises:
        OSError: no compiler, or a folder that cannot be written.
        RuntimeError: the compiler refuses.
        ImportError: torch finds no compiler.
    """
    from torch.utils import cpp_extension

    built = Path(cpp_extension._get_build_directory(name, verbose=False)) / f"{name}.so"
    if not built.is_file():
        print("building the C++ extension, once: about half a minute", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
            cpp_extension.load(
                name,
                [str(x) for x in sources if x.suffix == ".cpp"],
                extra_cflags=list(flags),
                extra_ldflags=["-fopenmp"],
                build_directory=scratch,
                is_python_module=False,
                verbose=False,
            )
            (Path(scratch) / built.name).replace(built)
    return built


def extension() -> Extension | None:
    """Return the extension; the first call builds it, or finds what an earlier process built."""
    return _built()[0]


def why_no_extension() -> str:
    """Return why there is no extension, in one line; empty where there is one."""
    return _built()[1]
