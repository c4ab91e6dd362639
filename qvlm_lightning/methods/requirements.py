"""What a method needs of a scheme, said before a model is read."""

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.token_weights import Uniform
from qvlm_lightning.quant.scheme import OFF, PARTS, Scheme


def widths(scheme: Scheme, what: str) -> set[int]:
    """Return all widths that a scheme gives, to parts or to single layers.

    Args:
        scheme: of the run.
        what: ``weight_bits`` or ``activation_bits``.
    """
    found: set[int] = {getattr(scheme.part(part), what) for part in PARTS}
    return found | {bits[what] for bits in scheme.overrides.values() if what in bits}


def needs_quantized_weights(method: str, scheme: Scheme) -> None:
    """Refuse a scheme that leaves all weights alone.

    Raises:
        InputError: it does.
    """
    if widths(scheme, "weight_bits") == {OFF}:
        raise InputError(
            f"method {method} decides quantized weights, and scheme {scheme.name!r} leaves them at "
            "16 bits; allowed: weight_bits from 2 to 8 in some part"
        )


def needs_quantized_activations(method: str, scheme: Scheme) -> None:
    """Refuse a scheme that leaves all activations alone.

    Raises:
        InputError: it does.
    """
    if widths(scheme, "activation_bits") == {OFF}:
        raise InputError(
            f"method {method} makes activations easier to quantize, and scheme {scheme.name!r} "
            "leaves them at 16 bits; allowed: activation_bits from 2 to 8 in some part"
        )


def needs_ranges_only(ranges: Method | None) -> None:
    """Refuse a method that changes weights as the one that decides the ranges of activations, and
    token weights of its own: those of the method that it belongs to count.

    Raises:
        InputError: it has or does.
    """
    if ranges is not None and ranges.changes_weights:
        raise InputError(
            f"ranges is {ranges.name}, which changes weights; allowed are methods that decide "
            "ranges of activations only, such as LeastSquares or JointSearch"
        )
    if ranges is not None and not isinstance(ranges.token_weights, Uniform):
        raise InputError(
            f"ranges is {ranges.name} with token weights of its own, which would be passed over; "
            "give them to the method that it belongs to, and they count in its ranges too"
        )


def check_ranges(ranges: Method | None, scheme: Scheme) -> None:
    """Let the method that decides the ranges of activations refuse a scheme, where any are
    quantized.

    Raises:
        InputError: it does.
    """
    if ranges is not None and widths(scheme, "activation_bits") != {OFF}:
        ranges.check(scheme)


def leaves_whole_tokens(method: str, candidates: list[float], scheme: Scheme) -> None:
    """Refuse a search of clip ratios on tokens for a target that measures whole tokens.

    Args:
        method: name.
        candidates: of the method for the scheme's activation mode.
        scheme: of the run.

    Raises:
        InputError: the target could not hold what the method chooses.
    """
    if scheme.target != "compressed-tensors" or scheme.activation_mode != "dynamic_token":
        return
    if candidates != [1.0] and widths(scheme, "activation_bits") != {OFF}:
        raise InputError(
            f"method {method} searches clip ratios on the range of each token, which target "
            "'compressed-tensors' cannot hold; the nearest that it holds are whole ranges: method "
            "rtn, or clip_ratios [1.0]"
        )


def holds_transforms(method: str, scheme: Scheme, instead: str) -> None:
    """Refuse transforms that run with the model for a target that has no place for them.

    Args:
        method: name.
        scheme: of the run.
        instead: what the target can hold.

    Raises:
        InputError: the scheme has a target.
    """
    if scheme.target is not None:
        raise InputError(
            f"method {method} puts transforms in front of layers, which target {scheme.target!r} "
            f"cannot hold; the nearest that it holds is {instead}"
        )
