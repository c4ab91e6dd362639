"""Calibrate post-training quantization of vision-language models.

>>> import qvlm_lightning
>>> sorted(qvlm_lightning.__all__)
['InputError', 'load', 'quantize']
"""

from typing import Any

from qvlm_lightning.errors import InputError

__all__ = ["InputError", "load", "quantize"]


def __getattr__(name: str) -> Any:
    """Import the heavy doors only when somebody walks through them."""
    if name == "load":
        from qvlm_lightning.artifact import load

        return load
    if name == "quantize":
        from qvlm_lightning.notebook import quantize

        return quantize
    raise AttributeError(f"module 'qvlm_lightning' has no attribute {name!r}")
