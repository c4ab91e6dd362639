"""Scale folds by hand and against loops over single numbers."""

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.models.family import Source
from qvlm_lightning.nn.folding import folded, per_channel


class Gemma(nn.Module):
    """A norm's parameters, the gain less 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias)
    return made


def fold(parts: nn.ModuleDict, source: Source, factor: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return folded(parts.get_submodule, parts.get_parameter, source, factor)


def test_a_norm_with_a_bias_by_hand() -> None:
    norm = nn.LayerNorm(2)
    norm.weight, norm.bias = (nn.Parameter(torch.tensor(x)) for x in ([2.0, 3.0], [4.0, 5.0]))
    parts = nn.ModuleDict({"norm": norm, "q": linear(torch.tensor([[1.0, 10.0]]))})
    changed = fold(parts, Source("norm", "norm", ("q",)), torch.tensor([2.0, 0.5]))
    assert {name: value.tolist() for name, value in changed.items()} == {
        "norm.weight": [1.0, 6.0],
        "norm.bias": [2.0, 10.0],
        "q.weight": [[2.0, 5.0]],
    }
    assert norm.weight.tolist() == [2.0, 3.0]


def test_a_gain_that_is_stored_less_one() -> None:
    parts = nn.ModuleDict({"norm": Gemma(torch.tensor([1.0, -0.5])), "q": linear(torch.ones(1, 2))})
    source = Source("norm", "norm", ("q",), offset=1.0)
    changed = fold(parts, source, torch.tensor([4.0, 0.25]))
    assert changed["norm.weight"].tolist() == [2 / 4 - 1, 0.5 / 0.25 - 1]


def test_rows_of_a_fused_layer() -> None:
    """Only the second half, gate and up in one, is divided."""
    fused = linear(torch.arange(8.0).reshape(4, 2), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    parts = nn.ModuleDict({"gate_up": fused, "down": linear(torch.ones(1, 2))})
    source = Source("gate_up", "linear", ("down",), rows=(2, 4))
    changed = fold(parts, source, torch.tensor([2.0, 4.0]))
    assert changed["gate_up.weight"].tolist() == [[0, 1], [2, 3], [2, 2.5], [1.5, 1.75]]
    assert changed["gate_up.bias"].tolist() == [1, 2, 1.5, 1]
    assert changed["down.weight"].tolist() == [[2, 4]]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 3), (6, 2, 2), (4, 1, 5)])
def test_grouped_queries_by_loops(heads: int, kv_heads: int, dim: int) -> None:
    """Query head h reads value head h // (heads / kv_heads)."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(size, generator=generator) for size in ((kv_heads * dim, 7), (7, heads * dim))
    ]
    parts = nn.ModuleDict({"v": linear(weights[0]), "o": linear(weights[1])})
    factor = torch.rand(kv_heads * dim, generator=generator) + 0.5
    group = heads // kv_heads
    source = Source("v", "linear", ("o",), repeats=group, span=dim)
    changed = fold(parts, source, factor)
    for h in range(heads):
        for d in range(dim):
            for row in range(7):
                expected = weights[1][row, h * dim + d] * factor[h // group * dim + d]
                assert changed["o.weight"][row, h * dim + d] == pytest.approx(float(expected))
    for s in range(kv_heads * dim):
        for column in range(7):
            expected = weights[0][s, column] / factor[s]
            assert changed["v.weight"][s, column] == pytest.approx(float(expected))


def test_patches_side_by_side_share_a_norm() -> None:
    source = Source("norm", "norm", ("first",), repeats=3, span=2)
    assert source.channels(6).tolist() == [0, 1, 0, 1, 0, 1]


def test_values_of_copies_become_one() -> None:
    source = Source("v", "linear", ("o",), repeats=2, span=2)
    values = torch.tensor([1.0, 2.0, 3.0, -4.0, 5.0, 6.0, 8.0, 0.0])
    assert per_channel(source, values, "amax").tolist() == [3, 2, 8, 6]
    assert per_channel(source, values, "mean").tolist() == [2, -1, 6.5, 3]
    negative = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    assert per_channel(source, negative, "amax").tolist() == [-1, -2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_stay_and_the_arithmetic_is_double(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 3, generator=generator).to(dtype)
    parts = nn.ModuleDict({"up": linear(weight), "down": linear(weight.T.contiguous())})
    factor = torch.tensor([3.0, 7.0, 0.3, 1.1, 13.0])
    changed = fold(parts, Source("up", "linear", ("down",)), factor)
    for s in range(5):
        for i in range(3):
            exact = torch.tensor(float(weight[s, i]) / float(factor[s]), dtype=torch.float64)
            assert torch.equal(changed["up.weight"][s, i], exact.to(dtype))
            exact = torch.tensor(float(weight[s, i]) * float(factor[s]), dtype=torch.float64)
            assert torch.equal(changed["down.weight"][i, s], exact.to(dtype))


def test_folds_follow_one_another_and_keep_gradients() -> None:
    parts = nn.ModuleDict({"up": linear(torch.ones(2, 2)), "down": linear(torch.ones(1, 2))})
    source = Source("up", "linear", ("down",))
    factor = torch.tensor([2.0, 4.0], requires_grad=True)
    first = folded(parts.get_submodule, parts.get_parameter, source, factor)
    second = folded(parts.get_submodule, first.__getitem__, source, torch.tensor([0.5, 0.25]))
    assert second["up.weight"].tolist() == [[1, 1], [1, 1]]
    assert second["down.weight"].tolist() == [[1, 1]]
    first["down.weight"].sum().backward()
    assert factor.grad is not None
    assert factor.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        ([1.0], r"shape \(1,\) for the input of down; allowed: \(2,\)"),
        ([1.0, 0.0], "not positive and finite"),
        ([1.0, -2.0], "not positive and finite"),
        ([1.0, float("inf")], "not positive and finite"),
        ([1.0, float("nan")], "not positive and finite"),
    ],
)
def test_a_factor_that_is_no_factor(factor: list[float], message: str) -> None:
    parts = nn.ModuleDict({"up": linear(torch.ones(2, 2)), "down": linear(torch.ones(1, 2))})
    with pytest.raises(ValueError, match=message):
        fold(parts, Source("up", "linear", ("down",)), torch.tensor(factor))
