"""Decided weights are in place exactly while what they belong to is quantized."""

import pytest
import torch
from torch import nn

from qvlm_lightning.nn.changes import Changes


@pytest.fixture
def model() -> nn.Module:
    """Two towers of one weight each: ``vision.weight`` is 1, ``language.weight`` is 2."""
    made = nn.ModuleDict({"vision": nn.Linear(1, 1), "language": nn.Linear(1, 1)})
    for value, linear in enumerate(made.values(), start=1):
        linear.weight.data.fill_(value)
    return made


def decide(changes: Changes, model: nn.Module, tower: str, value: float) -> None:
    changes.set(model, tower, f"{tower}.weight", torch.full((1, 1), value))


def weights(model: nn.Module) -> list[float]:
    return [model[name].weight.item() for name in ("vision", "language")]


def test_a_switch_puts_decided_weights_in_place_and_the_original_ones_back(model):
    changes = Changes()
    decide(changes, model, "vision", 10.0)
    decide(changes, model, "language", 20.0)
    assert weights(model) == [1, 2]
    changes.switch("vision", True)
    assert weights(model) == [10, 2]
    assert changes.decided("vision.weight").item() == 10
    assert changes.decided("language.weight") is None
    changes.switch("language", True)
    changes.switch("vision", False)
    assert weights(model) == [1, 20]
    assert changes.original("language.weight", model["language"].weight).item() == 2


def test_within_a_block_exactly_the_named_are_in_place(model):
    changes = Changes()
    decide(changes, model, "vision", 10.0)
    decide(changes, model, "language", 20.0)
    changes.switch("vision", True)
    with changes.only((), {"language"}):
        assert weights(model) == [1, 20]
        with changes.only(("vision",), ()):
            assert weights(model) == [10, 2]
        assert weights(model) == [1, 20]
    assert weights(model) == [10, 2]


def test_a_second_decision_keeps_what_the_first_one_replaced(model):
    changes = Changes()
    changes.switch("vision", True)
    for value in (10.0, 11.0):
        decide(changes, model, "vision", value)
        assert weights(model) == [value, 2]
    changes.switch("vision", False)
    assert weights(model) == [1, 2]


def test_what_is_dropped_is_forgotten_and_its_tower_stays_on(model):
    changes = Changes()
    changes.switch("vision", True)
    decide(changes, model, "vision", 10.0)
    assert changes.drop("vision") == ["vision.weight"]
    assert weights(model) == [1, 2]
    assert len(changes) == 0
    decide(changes, model, "vision", 12.0)
    assert weights(model) == [12, 2]


def test_a_decision_of_another_shape_is_refused_and_changes_nothing(model):
    changes = Changes()
    with pytest.raises(ValueError, match=r"shape \[1, 1\], the decision \[2\]"):
        changes.set(model, "vision", "vision.weight", torch.zeros(2))
    assert len(changes) == 0


def test_a_buffer_of_a_model_without_weights_is_put_in_place_like_a_weight(model):
    """Its parameters are read when somebody needs them, its buffers are always there."""
    model["vision"].register_buffer("factor", torch.ones(1))
    changes = Changes()
    changes.set(model, "vision", "vision.factor", lambda: torch.full((1,), 5.0))
    changes.switch("vision", True)
    assert model["vision"].factor.item() == 5
    changes.switch("vision", False)
    assert model["vision"].factor.item() == 1
