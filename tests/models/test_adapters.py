"""Adapters on the norms of a tower: LayerNorm, RMSNorm, and those that cannot be merged."""

from typing import Any

import pytest
import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.adapters import NormShift, add_lora, add_norm_shifts, merged_tensors
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

CPU = torch.device("cpu")


class OnePlus(nn.Module):
    """Gemma's RMSNorm: its gain is 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class OnePlusRMSNorm(OnePlus):
    """The same under a name that says what it is."""


def quantized(small: Any, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Structure]:
    model = small.model().to(dtype)
    structure = quantize_model(model, small.family("nowhere"), Scheme.parse("w8a8"), accepted=True)
    structure.enable(True, {"vision"})
    return model, structure


def norms_of(model: nn.Module) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in model.named_modules() if hasattr(m, "adapter")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_vl"])
def test_a_merged_norm_does_what_the_learned_one_did(make_small: Any, kind: str, dtype) -> None:
    model, structure = quantized(make_small(kind), dtype)
    add_norm_shifts(structure, CPU)
    norms = [(n, m) for n, m in norms_of(model) if isinstance(m.adapter, NormShift)]
    assert [n.split(".")[-2:] for n, _ in norms] == [
        [str(i), f"norm{j}"] for i in (0, 1) for j in (1, 2)
    ]
    offsets = [m.adapter.offset for _, m in norms]
    assert all((x is None) == (kind == "qwen2_5_vl") for x in offsets)
    inputs = torch.randn(3, 24, dtype=dtype)
    untouched = [m(inputs) for _, m in norms]
    for _, norm in norms:
        for parameter in norm.adapter.parameters():
            assert parameter.dtype == torch.float32
            parameter.data += 0.2 * torch.randn_like(parameter)
    learned = [m(inputs) for _, m in norms]
    tolerance = 1e-6 if dtype == torch.float32 else 0
    merged = merged_tensors(model)
    structure.enable(False)
    for (name, norm), before, after in zip(norms, untouched, learned, strict=True):
        assert torch.equal(norm(inputs), before)
        assert after.dtype == dtype
        assert not torch.allclose(after, before, atol=0.05)
        for own, parameter in norm.named_parameters(recurse=False):
            assert merged[f"{name}.{own}"].dtype == dtype
            parameter.data = merged[f"{name}.{own}"]
        assert torch.allclose(norm(inputs), after, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("add", ["norms", "lora"])
def test_a_step_of_adamw_on_a_half_precision_tower_is_finite(make_small: Any, add, dtype) -> None:
    """In float16 AdamW's eps of 1e-8 is 0; in bfloat16 1 + 1e-3 is 1."""
    _, structure = quantized(make_small("qwen2_5_vl"), dtype)
    if add == "norms":
        add_norm_shifts(structure, CPU)
    else:
        add_lora(structure, 2, 0, CPU)
    unit = structure.towers["vision"].units[0].module
    learned = {n: p for n, p in unit.named_parameters() if ".adapter." in n}
    before = {n: p.detach().clone() for n, p in learned.items()}
    x = torch.randn(3, 24, dtype=dtype)
    if add == "norms":
        # the first channel has no gradient, where 0 / sqrt(0) needs that constant
        (unit.norm1(x)[:, 1:].float().square().sum() + unit.norm2(x).float().sum()).backward()
    else:
        for linear in structure.towers["vision"].units[0].sites[0].linears.values():
            linear.adapter(linear.weight).float().square().sum().backward()
            assert linear.quantized_weight().dtype == dtype
    torch.optim.AdamW(learned.values(), lr=1e-3, weight_decay=0.0).step()
    assert all(p.isfinite().all() for p in learned.values())
    assert any(not torch.equal(p, before[n]) for n, p in learned.items())


@pytest.mark.parametrize("norm", [OnePlus, OnePlusRMSNorm])
def test_norms_whose_weight_is_not_their_gain_are_refused(make_small: Any, norm) -> None:
    small = make_small("qwen2_5_vl")
    model = small.model()
    for block in model.model.visual.blocks:
        block.norm1, block.norm2 = norm(24), norm(24)
    structure = quantize_model(model, small.family("nowhere"), Scheme.parse("w8a8"), accepted=True)
    found = "OnePlusRMSNorm" if norm is OnePlusRMSNorm else "None"
    with pytest.raises(InputError, match=rf"train 'norms' needs .*blocks\.0 has {found}$"):
        add_norm_shifts(structure, CPU)
