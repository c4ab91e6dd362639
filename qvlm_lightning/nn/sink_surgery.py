"""What sink tokens ask of a model: which layers store outputs, which sites let them pass."""

from collections.abc import Sequence

from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.sinks import SinkOutput, SinkTokens
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import OFF, Scheme


def keep_sinks(model: nn.Module, structure: Structure, stored: Sequence[str]) -> None:
    """Let the quantizers of the decoder know sink tokens, and make room for stored outputs.

    Args:
        model: with quantized layers; changed in place.
        structure: its towers; ``sinks`` is filled in.
        stored: of :func:`stored_projections`.
    """
    structure.sinks = SinkTokens(stored=bool(stored))
    if not stored:
        structure.notes.append("sink: bypass is a simulation; no kernel leaves single tokens out")
    structure.sinks.watch(model)
    for site in structure.towers["language"].sites:
        site.quantizer.sinks, site.quantizer.route = structure.sinks, site.route
    for name in stored:
        linear = model.get_submodule(name)
        assert isinstance(linear, QuantLinear)
        linear.sink_output = SinkOutput(structure.sinks)


def stored_projections(family: VLMFamily, structure: Structure, scheme: Scheme) -> list[str]:
    """Return the Linear layers whose outputs for the first tokens are stored.

    Args:
        family: knows the attention of a layer.
        structure: what is quantized; not yet in the model.
        scheme: says what is done about sinks.

    Raises:
        InputError: there is nothing to be done about sinks, or keys and values of a decoder layer
            do not come from quantized Linear layers.
    """
    if scheme.sink == "none":
        return []
    if "language" not in structure.quantized.values():
        raise InputError(
            f"sink {scheme.sink!r} is about the decoder, and the scheme leaves it in full "
            "precision; quantize the language part, or sink: none"
        )
    widths = [scheme.widths(p, n) for n, p in structure.quantized.items() if p == "language"]
    if scheme.sink == "bypass" and all(w.activation_bits == OFF for w in widths):
        raise InputError(
            "sink 'bypass' leaves activations of sink tokens alone, and the scheme quantizes none "
            "in the decoder; allowed here: 'none', 'prefix'"
        )
    names: list[str] = []
    for unit in structure.towers["language"].units if scheme.sink == "prefix" else ():
        attention = family.attention(unit.module)
        if attention is None:
            raise InputError(
                f"sink 'prefix' needs to know the keys and values of every decoder layer, and the "
                f"attention of {unit.name} has another form; allowed here: 'none', 'bypass'"
            )
        found = dict.fromkeys(f"{unit.name}.{x.name}" for x in (attention.k, attention.v))
        plain = next((name for name in found if name not in structure.quantized), None)
        if plain is not None:
            raise InputError(
                f"sink 'prefix' needs quantized key and value projections in every decoder layer; "
                f"{plain} is left alone ({structure.ignored.get(plain, 'not quantized')})"
            )
        names += found
    return names
