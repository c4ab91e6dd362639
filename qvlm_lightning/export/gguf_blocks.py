"""Blocks of GGUF that hold given codes: 32 weights and one scale in float16.

Shapes: O outputs, I inputs, G groups, B = I / 32 blocks. Sources: the block structures of ggml
(``block_q4_0``, ``block_q5_0``, ``block_q8_0``), read by gguf-py's ``quants``.
"""

import numpy as np
from numpy.typing import NDArray

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.targets import BLOCK

LEAST = {"Q4_0": -8, "Q5_0": -16, "Q8_0": -128}
"""Block type -> the smallest step it holds; the largest is one less than its negative."""


def block_type(bits: int, symmetric: bool) -> str:
    """Return the smallest block type that holds every ``code - zero point``.

    Args:
        bits: of a code.
        symmetric: whether codes are; asymmetric ones reach twice as far from their zero point.

    Example:
        >>> block_type(4, True), block_type(4, False), block_type(8, True)
        ('Q4_0', 'Q5_0', 'Q8_0')
    """
    reach = bits if symmetric else bits + 1
    return "Q4_0" if reach <= 4 else "Q5_0" if reach <= 5 else "Q8_0"


def half_scales(scale_OG: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """Return scales as blocks store them.

    Args:
        scale_OG: of each group of inputs.
        name: of the layer, for the sentence.

    Raises:
        InputError: one is no number of float16, so that the values would be others.
    """
    with np.errstate(over="ignore"):
        half_OG = scale_OG.astype(np.float16)
    if not np.array_equal(half_OG.astype(np.float32), scale_OG):
        raise InputError(
            f"{name}: gguf stores scales in float16, which cannot hold those of this layer; the "
            "nearest that it holds is a calibration with target: gguf, which rounds them first"
        )
    return half_OG


def blocks(
    kind: str, steps_OI: NDArray[np.int16], scale_OG: NDArray[np.float32], name: str
) -> NDArray[np.uint8]:
    """Return the bytes of a weight ``steps * scale``, exactly: uint8 [O, bytes of a row].

    Args:
        kind: block type.
        steps_OI: codes minus their zero points.
        scale_OG: of each group of inputs, a multiple of 32 of them.
        name: of the layer, for the sentence.

    Raises:
        InputError: see :func:`half_scales`.
    """
    outputs, inputs = steps_OI.shape
    count = inputs // BLOCK
    half_OG = half_scales(scale_OG, name)
    scale_OB1 = np.repeat(half_OG, count // half_OG.shape[1], axis=1)[..., None]
    steps_OBI = steps_OI.reshape(outputs, count, BLOCK)
    assert steps_OBI.min() >= LEAST[kind], kind
    assert steps_OBI.max() < -LEAST[kind], kind
    parts = [scale_OB1.view(np.uint8)]
    if kind == "Q8_0":
        parts.append(steps_OBI.astype(np.int8).view(np.uint8))
    else:
        raised = (steps_OBI - LEAST[kind]).astype(np.uint8)
        if kind == "Q5_0":  # the fifth bits of a block come first
            parts.append(np.packbits(raised >> 4, axis=-1, bitorder="little"))
        first, second = raised[..., : BLOCK // 2] & 15, raised[..., BLOCK // 2 :] & 15
        parts.append((first | (second << 4)).astype(np.uint8, copy=False))
    return np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(outputs, -1))
