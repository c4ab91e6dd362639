"""What quantization is: pure functions on tensors and frozen dataclasses, on torch alone."""

from qvlm_lightning.quant.scheme import ActivationMode, PartScheme, Scheme

__all__ = ["ActivationMode", "PartScheme", "Scheme"]
