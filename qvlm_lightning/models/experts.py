"""Mixture-of-experts layers whose experts are plain Linear layers, and how fused ones become such.

Shapes: B samples, T tokens, D hidden, K experts per token, N = B T, S most tokens of a sample that
one expert sees.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

GATED = ("gate_proj", "up_proj", "down_proj")
PLAIN = ("fc1", "fc2")
_MIXTRAL = re.compile(r"\.experts\.\d+\.(w[123])\.weight$")
_MIXTRAL_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


class GatedExpert(nn.Module):
    """``down(act(gate(x)) * up(x))`` from given weights, without biases.

    Args:
        gate_OI: weight of ``gate_proj``.
        up_OI: weight of ``up_proj``.
        down_IO: weight of ``down_proj``.
        activation: module that is applied to the gate.
    """

    def __init__(
        self, gate_OI: Tensor, up_OI: Tensor, down_IO: Tensor, activation: nn.Module
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = _linear(gate_OI), _linear(up_OI)
        self.down_proj = _linear(down_IO)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return what this expert makes of ``x``."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _linear(weight_OI: Tensor) -> nn.Linear:
    """Return a layer with a copy of a weight, so that nothing keeps the fused tensor alive."""
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI.detach().clone(), weight_OI.requires_grad)
    return linear


class Experts(nn.ModuleList):
    """The experts of one layer; each runs on the tokens that were routed to it, and on no others.

    An expert is called with [B, S, D]: the tokens routed to it, sample by sample in their order,
    filled up with zeros. Samples stay apart, so that statistics and candidates that are stacked in
    the batch dimension work as in any other layer.

    Attributes:
        tokens: per expert, which token every row of its last input was, [B, S] int64, -1 for the
            filling; ``None`` if no token came.
    """

    tokens: list[Tensor | None]

    def __init__(self, experts: list[nn.Module]) -> None:
        super().__init__(experts)
        self.tokens = [None] * len(experts)
        self._samples = 1

    def note_samples(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the layer around: the tokens it hands on are flattened."""
        self._samples = args[0].shape[0]

    def forward(self, hidden: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs.

        Args:
            hidden: [N, D], or [B, T, D].
            chosen: [N, K] or [B, T, K] int64, the experts of every token.
            weight: the same shape, their weights.

        Returns:
            Same shape as ``hidden``.
        """
        samples = hidden.shape[0] if hidden.dim() == 3 else self._samples
        hidden_BTD = hidden.reshape(samples, -1, hidden.shape[-1])
        chosen_BTK, weight_BTK = (x.reshape(*hidden_BTD.shape[:2], -1) for x in (chosen, weight))
        out_BTD = torch.zeros_like(hidden_BTD)
        for index, expert in enumerate(self):
            hit_BTK = chosen_BTK == index
            reached_BT = hit_BTK.any(dim=-1)
            most = int(reached_BT.sum(dim=1).max()) if reached_BT.numel() else 0
            self.tokens[index] = None
            if not most:
                continue
            place_BS = reached_BT.to(torch.int8).argsort(dim=1, descending=True, stable=True)
            place_BS = place_BS[:, :most]
            real_BS = reached_BT.gather(1, place_BS)
            self.tokens[index] = place_BS.masked_fill(~real_BS, -1)
            place_BSD = place_BS[..., None].expand(-1, -1, hidden_BTD.shape[-1])
            taken_BSD = hidden_BTD.gather(1, place_BSD).where(real_BS[..., None], 0)
            share_BT = (weight_BTK * hit_BTK).sum(dim=-1)
            share_BS = share_BT.gather(1, place_BS) * real_BS
            made_BSD = expert(taken_BSD) * share_BS[..., None]
            out_BTD = out_BTD.scatter_add(1, place_BSD, made_BSD.to(out_BTD.dtype))
        return out_BTD.reshape(hidden.shape)


def unfuse_experts(model: nn.Module) -> list[str]:
    """Replace the fused experts of transformers' mixture layers by :class:`Experts`, in place.

    Those are kept that this module does not know how to read: transposed or interleaved weights,
    experts with biases, without a gate or with a gate of their own. A quantization that would touch
    them is refused with their name.

    Args:
        model: any transformers model.

    Returns:
        Names of the modules replaced.
    """
    found = [(name, x) for name, x in model.named_modules() if _can_be_unfused(x)]
    for name, fused in found:
        stacked: Any = fused
        pairs = zip(stacked.gate_up_proj, stacked.down_proj, strict=True)
        experts: list[nn.Module] = []
        for gate_up, down in pairs:
            gate, up = gate_up.chunk(2, dim=0)
            experts.append(GatedExpert(gate, up, down, stacked.act_fn))
        new = Experts(experts)
        new.train(fused.training)
        model.set_submodule(name, new)
        block = model.get_submodule(name.rpartition(".")[0])
        block.register_forward_pre_hook(new.note_samples)
    return [name for name, _ in found]


def _can_be_unfused(module: Any) -> bool:
    gate = getattr(type(module), "_apply_gate", None)
    return (
        gate is not None
        and getattr(gate, "__module__", "") == "transformers.integrations.moe"
        and isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)
        and bool(module.has_gate and module.is_concatenated)
        and not (module.is_transposed or module.has_bias)
        and not getattr(module, "has_post_expert_norm", False)
    )


def unfused_name(name: str) -> str:
    """Return the name in an un-fused model of an expert's weight as Mixtral's checkpoints call it.

    Example:
        >>> unfused_name("mlp.experts.3.w2.weight")
        'mlp.experts.3.down_proj.weight'
    """
    found = _MIXTRAL.search(name)
    return f"{name[: found.start(1)]}{_MIXTRAL_PARTS[found[1]]}.weight" if found else name


def find_experts(layer: nn.Module) -> dict[str, Experts]:
    """Return name -> experts inside a layer."""
    return {name: x for name, x in layer.named_modules() if isinstance(x, Experts)}


def find_routers(layer: nn.Module) -> list[str]:
    """Return the names of the modules beside the experts that decide about them: a weight with one
    row per expert (the router), or a single row (the gate of a shared expert).
    """
    routers = []
    for name, experts in find_experts(layer).items():
        prefix = name.rpartition(".")[0]
        for sibling, module in layer.get_submodule(prefix).named_children():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() != 2:
                continue
            if weight.shape[0] in (1, len(experts)):
                routers.append(f"{prefix}.{sibling}" if prefix else sibling)
    return routers


def expert_groups(layer: nn.Module) -> dict[str, list[str]]:
    """Return site name -> Linear layers that share one input, for the experts of a layer and the
    shared expert beside them.
    """
    present = dict(layer.named_modules())
    owners = [
        f"{name}.{index}" for name, x in find_experts(layer).items() for index in range(len(x))
    ]
    beside = {name.rpartition(".")[0] for name in find_experts(layer)}
    owners += [n for n in present if n.rpartition(".")[0] in beside and f"{n}.down_proj" in present]
    groups = {}
    for owner in owners:
        for site, names in (("mlp_in", [*GATED[:2], PLAIN[0]]), ("down_in", [GATED[2], PLAIN[1]])):
            inside = [f"{owner}.{n}" for n in names if f"{owner}.{n}" in present]
            if inside:
                groups[f"{owner}.{site}"] = inside
    return groups
