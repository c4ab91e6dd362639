"""How the units of a tower are called, caught in one pass."""

import gc

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.replay import catch_calls
from qvlm_lightning.nn.structure import Unit

SHAPE = (2, 3, 5)


class Chain(nn.Module):
    """Layers one after another; something is added in front of the layer ``where``."""

    def __init__(self, count: int, where: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SHAPE[-1], SHAPE[-1]) for _ in range(count))
        self.where = where
        self.alive = 0

    def forward(self, hidden: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index == len(self.layers) - 1:
                self.alive = sum(type(x) is Tensor and x.shape == SHAPE for x in gc.get_objects())
            hidden = layer(hidden + 1 if index == self.where else hidden)
        return hidden


def caught(count: int, where: int = -1):
    model = Chain(count, where)
    units = [Unit(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]
    call = catch_calls(model, units, {"hidden": torch.ones(SHAPE)})
    assert call is not None
    return call, model.alive


def test_what_is_added_between_units_is_kept_and_nothing_else():
    call, _ = caught(5, where=3)
    assert torch.equal(call.hidden, torch.ones(SHAPE))
    assert list(call.per_unit) == ["layers.3"]
    assert torch.equal(call.of("layers.3").added, torch.ones(SHAPE))
    assert caught(5)[0].per_unit == {}


def test_memory_does_not_grow_with_the_number_of_units():
    assert caught(20)[1] == caught(4)[1]


def test_units_behind_the_first_do_not_compute():
    model, ran = Chain(5, where=3), []
    units = [Unit(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]
    for layer in model.layers:
        compute = layer.forward
        vars(layer)["forward"] = lambda x, c=compute, n=layer: ran.append(n) or c(x)
    before = [vars(layer)["forward"] for layer in model.layers]
    call = catch_calls(model, units, {"hidden": torch.ones(SHAPE)})
    assert ran == [model.layers[0]]
    assert [vars(layer)["forward"] for layer in model.layers] == before
    assert torch.equal(call.per_unit["layers.3"].added, torch.ones(SHAPE))
    assert list(call.per_unit) == ["layers.3"]


def test_an_output_that_the_model_changes_in_place_is_no_ones_else():
    class Adding(Chain):
        def forward(self, hidden: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                hidden = layer(hidden)
                if index == self.where:
                    hidden += 1
            return hidden

    model = Adding(5, where=1)
    units = [Unit(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]
    call = catch_calls(model, units, {"hidden": torch.ones(SHAPE)})
    assert {name: float(own.added.mean()) for name, own in call.per_unit.items()} == {
        "layers.2": 1.0
    }
