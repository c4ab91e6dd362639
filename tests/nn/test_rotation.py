"""Rotations of a residual stream by hand: a model of one norm, one reader, one writer and a head,
written out in loops over single numbers."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import Residual, Source
from qvlm_lightning.nn.parameters import made
from qvlm_lightning.nn.rotation import random_rotation, rotated, untie

WIDTH, INNER, WORDS = 4, 3, 5


class Model(nn.Module):
    """x = E[id]; x += W_2 (W_1 norm(x) + b_1) + b_2; logits = H norm(x)."""

    def __init__(self, centred: bool = False, reader_bias: bool = True) -> None:
        super().__init__()
        make: Any = nn.LayerNorm if centred else nn.RMSNorm
        self.embeddings = nn.Embedding(WORDS, WIDTH)
        self.norm, self.last = make(WIDTH, eps=0.0), make(WIDTH, eps=0.0)
        self.reader = nn.Linear(WIDTH, INNER, bias=reader_bias)
        self.writer = nn.Linear(INNER, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=reader_bias)
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)

    def residual(self, **changes: Any) -> Residual:
        return Residual(
            **{
                "width": WIDTH,
                "norms": (Source("norm", "norm", ("reader",)), Source("last", "norm", ("head",))),
                "writers": ("writer",),
                "embeddings": "embeddings",
                "vectors": (),
                "head": "head",
                "centred": isinstance(self.norm, nn.LayerNorm),
                "tied": False,
            }
            | changes
        )


def normalised(
    x: list[float], weight: list[float], bias: list[float], centred: bool
) -> list[float]:
    mean = sum(x) / len(x) if centred else 0.0
    x = [value - mean for value in x]
    size = math.sqrt(sum(value * value for value in x) / len(x))
    return [value / size * w + b for value, w, b in zip(x, weight, bias, strict=True)]


def times(weight: list[list[float]], x: list[float], bias: list[float]) -> list[float]:
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def run(model: Model, changed: dict[str, Tensor], word: int) -> tuple[list[float], list[float]]:
    """The stream behind the writer and the logits, by loops over Python's floats."""
    value = {n: changed.get(n, p).double().tolist() for n, p in model.named_parameters()}
    centred = isinstance(model.norm, nn.LayerNorm)

    def bias(name: str, size: int) -> list[float]:
        return value.get(f"{name}.bias", [0.0] * size)

    x = value["embeddings.weight"][word]
    inner = normalised(x, value["norm.weight"], bias("norm", WIDTH), centred)
    inner = times(value["reader.weight"], inner, bias("reader", INNER))
    added = times(value["writer.weight"], inner, bias("writer", WIDTH))
    x = [a + b for a, b in zip(x, added, strict=True)]
    inner = normalised(x, value["last.weight"], bias("last", WIDTH), centred)
    return x, times(value["head.weight"], inner, bias("head", WORDS))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("reader_bias", [False, True])
def test_against_loops(centred: bool, reader_bias: bool) -> None:
    model = Model(centred, reader_bias)
    rotation = random_rotation(WIDTH, seed=1, keeps_mean=centred)
    changed = made(
        rotated(model.get_submodule, model.get_parameter, model.residual(), rotation.float())
    )
    assert changed["norm.weight"].tolist() == changed["last.weight"].tolist() == [1.0] * WIDTH
    if centred and reader_bias:
        assert changed["norm.bias"].tolist() == [0.0] * WIDTH
    for word in range(WORDS):
        stream, logits = run(model, {}, word)
        turned, same = run(model, changed, word)
        assert same == pytest.approx(logits, rel=1e-5, abs=1e-5)
        for row in range(WIDTH):
            expected = sum(float(rotation[row, j]) * stream[j] for j in range(WIDTH))
            assert turned[row] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_quarter_turn_by_hand() -> None:
    """[x, y] -> [-y, x]; the gain 2, 3 goes into the reader; a lone vector turns like a token."""
    model = nn.Module()
    model.e, model.n = nn.Embedding(1, 2), nn.RMSNorm(2)
    model.w, model.h = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
    model.line = nn.Parameter(torch.tensor([5.0, 6.0]))
    model.requires_grad_(False)
    model.e.weight[:] = torch.tensor([[1.0, 2.0]])
    model.n.weight[:] = torch.tensor([2.0, 3.0])
    model.w.weight[:], model.w.bias[:] = torch.tensor([[3.0], [4.0]]), torch.tensor([7.0, 8.0])
    model.h.weight[:] = torch.tensor([[10.0, 100.0]])
    norms = (Source("n", "norm", ("h",)),)
    residual = Residual(2, norms, ("w",), "e", ("line",), "h", False, False)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    changed = made(rotated(model.get_submodule, model.get_parameter, residual, quarter))
    assert {name: value.tolist() for name, value in changed.items()} == {
        "e.weight": [[-2.0, 1.0]],
        "line": [-6.0, 5.0],
        "w.weight": [[-4.0], [3.0]],
        "w.bias": [-8.0, 7.0],
        "n.weight": [1.0, 1.0],
        "h.weight": [[-300.0, 20.0]],
    }
    gemma = Source("n", "norm", ("h",), offset=1.0)
    residual = Residual(2, (gemma,), ("w",), "e", (), "h", False, False)
    changed = made(rotated(model.get_submodule, model.get_parameter, residual, quarter))
    assert changed["n.weight"].tolist() == [0.0, 0.0]
    assert changed["h.weight"].tolist() == [[-400.0, 30.0]]


def test_types_stay() -> None:
    model = Model().bfloat16()
    rotation = random_rotation(WIDTH, seed=1)
    changed = made(rotated(model.get_submodule, model.get_parameter, model.residual(), rotation))
    assert {value.dtype for value in changed.values()} == {torch.bfloat16}
    exact = model.embeddings.weight.double() @ rotation.T
    assert torch.equal(changed["embeddings.weight"], exact.bfloat16())


@pytest.mark.parametrize("keeps_mean", [False, True])
def test_random_rotations(keeps_mean: bool) -> None:
    made = [random_rotation(7, seed, keeps_mean) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=0.1)
    for matrix in made:
        assert torch.allclose(matrix @ matrix.T, torch.eye(7).double(), atol=1e-12)
        moved = matrix.sum(dim=1)
        assert torch.allclose(moved, torch.ones(7).double(), atol=1e-12) is keeps_mean


def test_random_rotations_prefer_no_direction() -> None:
    """A first entry of either sign: without the signs of R in QR it never is positive."""
    signs = {bool(random_rotation(3, seed)[0, 0] > 0) for seed in range(20)}
    assert signs == {False, True}


def test_what_is_no_rotation() -> None:
    def attempt(model: Model, rotation: Tensor) -> None:
        rotated(model.get_submodule, model.get_parameter, model.residual(), rotation)

    with pytest.raises(ValueError, match=r"allowed: \(4, 4\)"):
        attempt(Model(), torch.eye(3))
    with pytest.raises(ValueError, match="not orthogonal"):
        attempt(Model(), 1.001 * torch.eye(4))
    with pytest.raises(ValueError, match="keeps_mean=True"):
        attempt(Model(centred=True), random_rotation(4, seed=0))


def test_a_bias_without_a_place() -> None:
    model = Model(centred=True, reader_bias=False)
    model.norm.weight[1] = 0
    rotation = random_rotation(WIDTH, seed=0, keeps_mean=True)
    with pytest.raises(InputError, match="norm has a channel with a bias but no gain"):
        rotated(model.get_submodule, model.get_parameter, model.residual(), rotation)


def test_tied_weights_are_refused_until_untied() -> None:
    model: Any = Model()
    model.head.weight = model.embeddings.weight
    config = SimpleNamespace(tie_word_embeddings=True)
    model.config = SimpleNamespace(tie_word_embeddings=True, get_text_config=lambda: config)
    rotation = random_rotation(WIDTH, seed=0)
    with pytest.raises(InputError, match="share one weight"):
        rotated(model.get_submodule, model.get_parameter, model.residual(), rotation)
    untie(model, model.residual())
    assert torch.equal(model.head.weight, model.embeddings.weight)
    assert model.head.weight is not model.embeddings.weight
    assert config.tie_word_embeddings is model.config.tie_word_embeddings is False
    changed = made(rotated(model.get_submodule, model.get_parameter, model.residual(), rotation))
    assert run(model, changed, 2)[1] == pytest.approx(run(model, {}, 2)[1], rel=1e-5, abs=1e-5)
