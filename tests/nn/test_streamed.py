"""Weights that are in place only while somebody needs them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.weights.shards import Shards
from qvlm_lightning.weights.streamed import StreamedWeights


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.second.weight
        self.register_buffer("counts", torch.zeros(2))


@pytest.fixture
def places(tmp_path):
    torch.manual_seed(0)
    state = Two().state_dict()
    state = {n: x.clone() for n, x in state.items() if n != "tied.weight"}
    state["counts"] += 5
    save_file(state, tmp_path / "x.safetensors")
    found = {name: (tmp_path / "x.safetensors", name) for name in state}
    return found | {"tied.weight": found["second.weight"]}


def empty():
    with torch.device("meta"):
        model = Two()
    model.counts = torch.zeros(2)
    return model


def test_parameters_come_and_go(places):
    model = empty()
    shards = Shards(places)
    weights = StreamedWeights(model, shards, torch.device("cpu"))
    before = dict(model.named_parameters())
    with weights.held(weights.below("first")):
        assert torch.equal(model.first.weight, shards.read("first.weight"))
        assert not model.first.bias.requires_grad
        assert model.second.weight.is_meta
        held = model.first.weight
        with weights.held(["first.weight", "second.weight"]):
            assert model.first.weight is held
            assert not model.second.weight.is_meta
        assert model.first.weight is held
        assert model.second.weight.is_meta
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_kept_parameters_are_read_once_and_nobody_writes_into_them(places, monkeypatch):
    model = empty()
    shards = Shards(places)
    weights = StreamedWeights(model, shards, torch.device("cpu"), kept=True)
    expected, names = shards.read("first.weight"), []
    read = shards.read

    def count(name):
        names.append(name)
        return read(name)

    monkeypatch.setattr(shards, "read", count)
    for _ in range(3):
        with weights.held(["first.weight"]):
            assert torch.equal(model.first.weight, expected)
            model.first.weight.data.zero_()
    assert names == ["first.weight"]


def test_tied_parameters_are_in_place_once(places, monkeypatch):
    model = empty()
    weights = StreamedWeights(model, Shards(places), torch.device("cpu"))
    read, names = weights.read, []

    def count(name):
        names.append(name)
        return read(name)

    monkeypatch.setattr(weights, "read", count)
    with weights.held(["second.weight", "first.weight", "tied.weight"]):
        assert model.tied.weight is model.second.weight
        assert torch.equal(model.tied.weight, weights.shards.read("second.weight"))
    assert names == ["second.weight", "first.weight"]
    with weights.held(["tied.weight"]):
        held = model.tied.weight
        assert model.second.weight.is_meta
        with weights.held(["second.weight"]):
            assert model.second.weight is held
        assert model.second.weight.is_meta
        assert model.tied.weight is held
    assert names == ["second.weight", "first.weight", "tied.weight"]
    assert model.tied.weight is model.second.weight
    assert model.tied.weight.is_meta


def test_equal_shapes_in_different_places_are_not_tied(places):
    """A checkpoint may hold both names, each with values of its own."""
    places["tied.weight"] = places["first.weight"]
    model = empty()
    weights = StreamedWeights(model, Shards(places), torch.device("cpu"))
    with weights.held(["second.weight", "tied.weight", "first.weight"]):
        assert model.tied.weight is model.first.weight
        assert not torch.equal(model.tied.weight, model.second.weight)


def test_they_go_even_when_something_fails(places):
    model = empty()
    weights = StreamedWeights(model, Shards(places), torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), weights.held(["first.weight"]):
        raise ZeroDivisionError
    assert model.first.weight.is_meta


def test_buffers_of_the_checkpoint_are_filled_at_once(places):
    model = empty()
    StreamedWeights(model, Shards(places), torch.device("cpu"))
    assert model.counts.tolist() == [5, 5]


def test_what_the_files_need_not_hold_stays_in_place(places):
    model = empty()
    model.first.bias = nn.Parameter(torch.ones(3), requires_grad=False)
    del places["first.bias"]
    weights = StreamedWeights(model, Shards(places), torch.device("cpu"))
    assert weights.below("first") == ["first.weight"]
    with weights.held(["first.weight", "first.bias"]):
        assert model.first.bias.tolist() == [1, 1, 1]
    assert model.first.bias.tolist() == [1, 1, 1]


def test_types_are_those_of_the_model(places):
    model = empty().to(torch.bfloat16)
    weights = StreamedWeights(model, Shards(places), torch.device("cpu"))
    exact = weights.shards.read("first.weight")
    with weights.held(["first.weight"]):
        assert torch.equal(model.first.weight, exact.to(torch.bfloat16))
    assert torch.equal(weights.sample("first.weight", 4), exact.flatten()[::4].to(torch.bfloat16))
    assert weights.nbytes(["first.weight", "first.bias"]) == 2 * (9 + 3)


def test_what_the_model_lacks_is_named(places):
    del places["first.bias"]
    with pytest.raises(InputError, match=r"weight first\.bias is missing in the checkpoint"):
        StreamedWeights(empty(), Shards(places), torch.device("cpu"))
    places["first.bias"] = places["first.weight"]
    message = r"weight first\.bias has shape \[3, 3\] in the checkpoint; the model needs \[3\]"
    with pytest.raises(InputError, match=message):
        StreamedWeights(empty(), Shards(places), torch.device("cpu"))


@pytest.mark.parametrize("kept", [False, True])
def test_a_replaced_parameter_is_made_and_tied_to_no_other(places, kept):
    model = empty()
    shards = Shards(places)
    weights = StreamedWeights(model, shards, torch.device("cpu"), kept=kept)
    second, first = shards.read("second.weight"), shards.read("first.weight")
    assert torch.equal(weights.read("first.weight"), first)
    model.tied.weight = nn.Parameter(torch.empty_like(model.second.weight), requires_grad=False)
    makers = {name: lambda name=name: weights.from_files(name) * 2 for name in weights.dtypes}
    weights.replace({name: makers[name] for name in ("tied.weight", "first.weight")})
    with weights.held(["tied.weight", "second.weight", "first.weight"]):
        assert torch.equal(model.tied.weight, second * 2)
        assert torch.equal(model.second.weight, second)
        assert torch.equal(model.first.weight, first * 2)
    assert torch.equal(weights.read("first.bias"), shards.read("first.bias"))
