"""What callbacks ask of a calibration between its epochs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qvlm_lightning.methods.base import Method
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.progress import say
from qvlm_lightning.quant.scheme import OFF


@dataclass(frozen=True)
class PassSettings:
    """What a callback does between epochs.

    Attributes:
        settings: plain values that a resumed run must agree on.
        max_depth: most units in a block, of what cuts towers into blocks.
        method: of what runs a method of its own, such as a costly proxy.
    """

    settings: dict[str, Any]
    max_depth: int | None = None
    method: Method | None = None


def kept_candidates(
    method: Method | None, passes: Iterable[PassSettings], activation_mode: str
) -> list[float]:
    """Return all candidates of ranges that the methods of a run will ask the statistics for.

    Args:
        method: of the run.
        passes: of its callbacks.
        activation_mode: of the scheme.
    """
    methods = [method, *(settings.method for settings in passes)]
    kept = {c for one in methods if one is not None for c in one.candidates(activation_mode)}
    return sorted(kept, reverse=True)


def note_idle_search(method: Method | None, structure: Structure, speaks: bool) -> None:
    """Say that a method has nothing to search where no activation is quantized, in the notes of the
    report and to the user.

    Args:
        method: of the run.
        structure: of the model.
        speaks: whether this process tells the user.
    """
    if method is None or not method.searches_activations:
        return
    if all(site.quantizer.num_bits >= OFF for site in structure.sites):
        idle = (
            f"{method.name} searches ranges of activations, and none is quantized: there is "
            "nothing to search, and the result is that of rtn"
        )
        structure.notes.append(idle)
        if speaks:
            say(idle)
