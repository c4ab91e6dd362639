"""Small trainable changes of the tower's full-precision weights; merged into the weights on
export.

What is learned is float32 whatever the type of the model: steps would be lost in bfloat16, and
AdamW's smallest constant is 0 in float16.
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.structure import Structure


class LowRank(nn.Module):
    """``B A`` added to a weight [O, I] before it is quantized; B starts at 0, so nothing changes at
    first.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        generator: torch.Generator,
        device: torch.device,
        stored: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stored = stored
        start = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        self.a = nn.Parameter(start.to(device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight in the type of ``weight``, rounded to that of the artifact."""
        return (weight + self.b @ self.a).to(self.stored or weight.dtype).to(weight.dtype)


class NormShift(nn.Module):
    """Trainable factor and, where the norm has a bias, offset behind a norm; on while the
    quantizers that read the norm are on.

    In float32 it changes the output of the norm, from which the merged weight and bias differ by
    rounding. In half types, or where they will be stored in one, that is many quantization steps;
    there it runs the norm with the merged ones.
    """

    reader: QuantLinear

    def __init__(
        self,
        norm: Any,
        reader: QuantLinear,
        device: torch.device,
        stored: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stored = stored
        self.factor = nn.Parameter(torch.ones(norm.weight.shape, device=device))
        self.offset = None
        if getattr(norm, "bias", None) is not None:
            self.offset = nn.Parameter(torch.zeros(norm.weight.shape, device=device))
        object.__setattr__(self, "reader", reader)

    def merged(self, norm: Any) -> dict[str, Tensor]:
        """Return the norm's parameters with what was learned, each in its own type and rounded to
        that of the artifact.
        """
        weight, bias = norm.weight * self.factor, None
        if self.offset is not None:
            bias = norm.bias * self.factor + self.offset
        named = {"weight": weight, "bias": bias}
        kind = norm.weight.dtype
        return {n: x.to(self.stored or kind).to(kind) for n, x in named.items() if x is not None}

    def hook(self, norm: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook on the norm."""
        if not self.reader.enabled:
            return None
        if norm.weight.dtype == torch.float32 and self.stored is None:
            changed = output * self.factor
            return (changed if self.offset is None else changed + self.offset).to(output.dtype)
        other = copy(norm)
        other._parameters = norm._parameters | self.merged(norm)
        result: Tensor = other.forward(*args)  # without this hook
        return result


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
        for name, linear in site.linears.items():
            stored = structure.stored.get(f"{name}.weight")
            linear.adapter = LowRank(linear, rank, generator, device, stored)


def add_norm_shifts(structure: Structure, device: torch.device) -> None:
    """Make the gain and offset of every norm in the tower's layers trainable, on ``device``.

    Raises:
        InputError: a layer has no norm whose gain is its weight.
    """
    for unit in structure.towers["vision"].units:
        if unit.sites:
            norms = {n: m for n, m in unit.module.named_modules() if _has_gain(m)}
            if not norms:
                found = {type(m).__name__ for m in unit.module.modules()}
                raise InputError(
                    "train 'norms' needs LayerNorm, or RMSNorm with its weight as the gain; "
                    f"{unit.name} has {', '.join(sorted(n for n in found if 'Norm' in n)) or None}"
                )
            norm: Any
            for name, norm in norms.items():
                stored = structure.stored.get(f"{unit.name}.{name}.weight")
                norm.adapter = NormShift(norm, unit.sites[0].leader, device, stored)
                norm.register_forward_hook(norm.adapter.hook)


def _has_gain(module: nn.Module) -> bool:
    """Return whether a module is a norm that multiplies by its weight; some by 1 + weight."""
    if isinstance(module, nn.LayerNorm):
        return module.elementwise_affine
    own = dict(module.named_parameters())
    if not type(module).__name__.endswith("RMSNorm") or set(own) != {"weight"}:
        return False
    shape = own["weight"].shape
    return not functional_call(module, {"weight": torch.zeros(shape)}, torch.ones(1, *shape)).any()


@torch.no_grad()
def merged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return, by their names in ``model``, the tensors that hold what its adapters learned; each
    in the type of the one it replaces.
    """
    merged: dict[str, Tensor] = {}
    module: Any
    for name, module in model.named_modules():
        adapter = getattr(module, "adapter", None)
        if isinstance(adapter, LowRank):
            merged[f"{name}.weight"] = adapter(module.weight)
        elif isinstance(adapter, NormShift):
            merged |= {f"{name}.{own}": x for own, x in adapter.merged(module).items()}
    return merged
