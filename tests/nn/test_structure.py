"""Quantizers and changed weights, switched by layer."""

import torch
from torch import nn

from qvlm_lightning.nn.structure import Structure


def quantized_units(structure: Structure) -> set[str]:
    """Return the units of which every quantizer is on; of the others every one is off."""
    names = set()
    for unit in structure.units:
        linears = [linear for site in unit.sites for linear in site.linears.values()]
        switches = {x.enabled for x in linears} | {site.quantizer.enabled for site in unit.sites}
        assert len(switches) == 1, unit.name
        names |= {unit.name} if switches.pop() else set()
    return names


def test_only_the_named_units_are_on_inside_the_block_and_as_before_behind_it(quantized):
    _, structure = quantized()
    first, *_, last = (unit.name for unit in structure.towers["language"].units)
    structure.enable(False)
    with structure.only_units({last}):
        assert quantized_units(structure) == {last}
        with structure.only_units({first}):
            assert quantized_units(structure) == {first}
        assert quantized_units(structure) == {last}
    assert quantized_units(structure) == set()
    structure.enable(True, {"vision"})
    try:
        with structure.only_units({first}):
            raise KeyError
    except KeyError:
        pass
    assert quantized_units(structure) == {unit.name for unit in structure.towers["vision"].units}


def test_weights_that_a_method_changed_are_in_place_with_their_unit(quantized):
    model, structure = quantized()
    units = structure.towers["language"].units
    names = [next(iter(unit.sites[0].linears)) + ".weight" for unit in units]
    outside = "model.language_model.norm.weight"
    structure.enable(False)
    originals = {name: model.get_parameter(name).clone() for name in [*names, outside]}
    for name in originals:
        structure.changes.set(model, "language", name, originals[name] + 1)

    def changed(model: nn.Module) -> list[bool]:
        now = [model.get_parameter(name) for name in originals]
        assert all(
            torch.equal(x, y) or torch.equal(x, y + 1)
            for x, y in zip(now, originals.values(), strict=True)
        )
        return [not torch.equal(x, y) for x, y in zip(now, originals.values(), strict=True)]

    assert changed(model) == [False, False, False]
    with structure.only_units({units[1].name}):
        assert changed(model) == [False, True, False]
    with structure.only_units({unit.name for unit in units}):
        assert changed(model) == [True, True, True], "the norm belongs to the whole tower"
    assert changed(model) == [False, False, False]
    structure.enable(True)
    with structure.only_units(set()):
        assert changed(model) == [False, False, False]
    assert changed(model) == [True, True, True]
