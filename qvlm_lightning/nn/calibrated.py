"""What calibration decided in a model, by name, for checkpoints, artifacts and sizes alike."""

from collections.abc import Iterator

from torch import Tensor, nn

_QUANTIZERS = ("input_quantizer", "weight_quantizer", "sink_output")
_ADAPTER = "adapter"


def is_quantizer_tensor(name: str) -> bool:
    """Return whether a tensor of a model belongs to a quantizer, or to its stored sink tokens.

    Args:
        name: its full name, such as ``model.layers.0.mlp.fc1.weight_quantizer.low``.
    """
    return any(part in _QUANTIZERS for part in name.split("."))


def is_learned_beside(name: str) -> bool:
    """Return whether a tensor belongs to an adapter, which is merged into a weight on export."""
    return _ADAPTER in name.split(".")


def calibrated(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of every quantizer and adapter, parameters as they are.

    Weights that a method changed are no part of it: :class:`~qvlm_lightning.nn.changes.Changes`
    holds them.

    Args:
        model: with quantized layers, with or without weights.
    """
    for name, value in model.state_dict(keep_vars=True).items():
        if is_quantizer_tensor(name) or is_learned_beside(name):
            yield name, value
