"""Whether the bounds that calibration decided can be used: numbers, and in their order."""

from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.nn.weight_quantizer import OFF, WeightQuantizer


def check_bounds(model: nn.Module, where: str) -> None:
    """Check every quantizer of a model that changes something.

    Args:
        model: with quantized layers.
        where: what holds it, for messages.

    Raises:
        InputError: a bound, a ratio or a stored key or value is NaN or infinite, a lower bound is
            above its upper one, or a ratio is not positive; names the quantizer.
    """
    for name, module in model.named_modules():
        if isinstance(module, SinkOutput) and module.value is not None:
            check_finite([(f"{name}.value", module.value)], where)
        elif isinstance(module, ActivationQuantizer) and module.num_bits < OFF:
            check_finite(_named(module, name, "low", "high", "low_ratio", "high_ratio"), where)
            ratios = ("low_ratio", "high_ratio")
            dynamic = ("high",) if module.mode == "dynamic_token" else ()
            _check_positive(module, name, (*ratios, *dynamic), where)
            _check_order(module.low, module.high, name, where)
        elif isinstance(module, WeightQuantizer) and module.active:
            check_finite(_named(module, name, "low", "high", "clip_ratio"), where)
            _check_positive(module, name, ("clip_ratio",), where)
            _check_order(module.low, module.high, name, where)


def _named(module: nn.Module, name: str, *which: str) -> list[tuple[str, Tensor]]:
    held = [(f"{name}.{own}", getattr(module, own)) for own in which]
    return [(own, value) for own, value in held if value is not None]


def _check_positive(module: nn.Module, name: str, which: tuple[str, ...], where: str) -> None:
    for own, value in _named(module, name, *which):
        if not bool((value > 0).all()):
            raise InputError(f"{where} has the ratio {own} at {float(value.min()):g}; allowed: > 0")


def _check_order(low: Tensor | None, high: Tensor | None, name: str, where: str) -> None:
    if low is not None and high is not None and bool((low > high).any()):
        place = int((low - high).argmax())
        bounds = f"{float(low.flatten()[place]):g} to {float(high.flatten()[place]):g}"
        raise InputError(f"{where} has a range of {name} from {bounds}; allowed: low <= high")
