"""The optional C++ extension (dense.cpp), built once with the system's compiler.

It is plain C behind ``ctypes``: building takes a few seconds, none of torch's headers are read.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import first_line
from qvlm_lightning.nn.packed_linear import PackedLinear

_SOURCE = Path(__file__).with_name("dense.cpp")
_SCALES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Extension:
    """Functions of the built library on tensors of packed layers in the ``dense`` layout.

    Args:
        path: of the library.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        weight: list[Any] = [pointer, pointer, pointer, size, size, size, number, number, number]
        self._product, self._dequantize = library.qvlm_product, library.qvlm_dequantize
        self._unpack = library.qvlm_unpack
        self._product.argtypes = [*weight, pointer, pointer, size]
        self._dequantize.argtypes = [*weight, pointer]
        self._unpack.argtypes = [pointer, size, size, number, number, pointer]
        for function in (self._product, self._dequantize, self._unpack):
            function.restype = None

    def product(self, layer: PackedLinear, x: Tensor) -> Tensor:
        """Return ``x W^T`` [N, O] float32 of rows [N, I], read from the codes."""
        x = x.to(torch.float32).contiguous()
        out = torch.empty(len(x), layer.out_features)
        self._product(*_weight(layer), x.data_ptr(), out.data_ptr(), len(x))
        return out

    def dequantized(self, layer: PackedLinear) -> Tensor:
        """Return the weight [O, I] in float32."""
        out = torch.empty(layer.out_features, layer.in_features)
        self._dequantize(*_weight(layer), out.data_ptr())
        return out

    def signed(self, layer: PackedLinear) -> Tensor:
        """Return the codes minus 2^(b-1), int8 [O, I]."""
        out = torch.empty(layer.out_features, layer.in_features, dtype=torch.int8)
        place, threads = _tensor(layer.codes), torch.get_num_threads()
        sizes = layer.out_features, layer.in_features
        self._unpack(place, *sizes, layer.bits, threads, out.data_ptr())
        return out


def _weight(layer: PackedLinear) -> list[Any]:
    scale: Any = layer.scale
    tensors = [_tensor(x) for x in (layer.codes, scale, layer.zero_point)]
    sizes = [layer.out_features, layer.in_features, layer.groups, layer.bits]
    return [*tensors, *sizes, _SCALES[scale.dtype], torch.get_num_threads()]


def _tensor(tensor: Any) -> int | None:
    """Return where a tensor's values lie; the C++ code trusts its size and layout."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return int(tensor.data_ptr())


@cache
def _built() -> tuple[Extension | None, str]:
    """Return the extension, or the reason why there is none."""
    avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    flags = ["-O3", "-std=c++17", "-fopenmp", *(["-mavx2", "-mfma", "-mbmi2"] if avx2 else [])]
    name = "qvlm_dense_avx2" if avx2 else "qvlm_dense"
    try:
        # outside of the try it would fail where no compiler is
        from torch.utils import cpp_extension

        path = cpp_extension.load(
            name,
            [str(_SOURCE)],
            extra_cflags=flags,
            extra_ldflags=["-fopenmp"],
            is_python_module=False,
            verbose=False,
        )
        return Extension(_library(path, name)), ""
    except (OSError, RuntimeError, ImportError) as error:
        return None, first_line(error)


def _library(path: Any, name: str) -> str:
    """Return the file of a built library; torch returns nothing where it has loaded it itself."""
    if path is not None and Path(str(path)).is_file():
        return str(path)
    from torch.utils.cpp_extension import _get_build_directory

    return str(Path(_get_build_directory(name, verbose=False)) / f"{name}.so")


def extension() -> Extension | None:
    """Return the extension; the first call builds it, or finds what an earlier process built."""
    return _built()[0]


def why_no_extension() -> str:
    """Return why there is no extension, in one line; empty where there is one."""
    return _built()[1]
