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
