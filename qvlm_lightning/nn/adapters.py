"""Small trainable changes of the tower's full-precision weights; merged into the weights on
export.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.structure import Structure


class LowRank(nn.Module):
    """``B A`` added to a weight [O, I] before it is quantized; B starts at 0, so nothing changes at
    first.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__()
        start = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        self.a = nn.Parameter(start.to(device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + self.b @ self.a


class NormShift(nn.Module):
    """Trainable factor and offset behind a norm; on while the quantizers that read the norm are
    on.
    """

    reader: QuantLinear

    def __init__(self, norm: nn.LayerNorm, reader: QuantLinear, device: torch.device) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones_like(norm.weight, device=device))
        self.offset = nn.Parameter(torch.zeros_like(norm.weight, device=device))
        object.__setattr__(self, "reader", reader)

    def hook(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook on the norm."""
        return output * self.factor + self.offset if self.reader.enabled else None


def add_lora(structure: Structure, rank: int, seed: int, device: torch.device) -> None:
    """Give every quantized Linear of the tower a low-rank update.

    Args:
        structure: of the model.
        rank: of the updates.
        seed: of their first factors.
        device: where they are; a streamed model's weights are nowhere.

    Raises:
        InputError: the rank is below 1.
    """
    if rank < 1:
        raise InputError(f"lora_rank {rank} is not allowed; at least 1")
    generator = torch.Generator().manual_seed(seed)
    for site in structure.towers["vision"].sites:
        for linear in site.linears.values():
            linear.adapter = LowRank(linear, rank, generator, device)


def add_norm_shifts(structure: Structure, device: torch.device) -> None:
    """Make the gain and offset of every norm in the tower's layers trainable, on ``device``."""
    for unit in structure.towers["vision"].units:
        if unit.sites:
            for norm in [m for m in unit.module.modules() if isinstance(m, nn.LayerNorm)]:
                norm.adapter = NormShift(norm, unit.sites[0].leader, device)
                norm.register_forward_hook(norm.adapter.hook)


@torch.no_grad()
def merged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return, by their names in ``model``, the tensors that hold what its adapters learned.

    Raises:
        RuntimeError: a norm has no bias.
    """
    merged: dict[str, Tensor] = {}
    module: Any
    for name, module in model.named_modules():
        adapter = getattr(module, "adapter", None)
        if isinstance(adapter, LowRank):
            merged[f"{name}.weight"] = adapter(module.weight)
        elif isinstance(adapter, NormShift):
            if module.bias is None:
                raise RuntimeError("a norm without bias cannot hold a learned offset")
            merged[f"{name}.weight"] = module.weight * adapter.factor
            merged[f"{name}.bias"] = module.bias * adapter.factor + adapter.offset
    return merged
