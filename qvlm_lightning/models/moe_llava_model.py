"""MoE-LLaVA on transformers' parts: a LLaVA whose every second decoder layer has several MLPs.

The architecture is that of arXiv:2401.15947: experts are copies of the layer's own MLP, a router
sends every token to two of them. transformers' own LLaVA, tower and decoders are used as they are;
only the MLPs of the layers named in the configuration are replaced.

Shapes: B samples, T tokens, D hidden, E experts.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from qvlm_lightning.models.experts import Experts

EXPERTS_PER_TOKEN = 2


class MoeLlavaConfig(LlavaConfig):
    """A LLaVA's configuration and which decoder layers have how many experts."""

    model_type = "moe_llava"

    moe_layers: list[int] | None = None
    """Decoder layers with experts."""
    num_experts: list[int] | None = None
    """Experts of each of them."""


class Top2MLP(nn.Module):
    """MLPs of which every token uses the two that the router rates highest.

    ``y = (g_1 E_1(x) + g_2 E_2(x)) / (g_1 + g_2)`` with ``g = softmax(W x)`` in float32; of equal
    rates the expert of lower number is taken. Nothing is random and no token is dropped
    (docs/moe.md tells how the authors' gating differs).

    Args:
        mlp: the layer's MLP; every expert starts as a copy of it.
        experts: how many.
        width: D.
    """

    def __init__(self, mlp: nn.Module, experts: int, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts([copy.deepcopy(mlp) for _ in range(experts)])

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            rate_BTE = nn.functional.linear(hidden_BTD.float(), self.router.weight.float())
            gate_BTE = rate_BTE.softmax(dim=-1)
        order_BTE = gate_BTE.argsort(dim=-1, descending=True, stable=True)
        chosen = order_BTE[..., :EXPERTS_PER_TOKEN]
        gate = gate_BTE.gather(-1, chosen)
        return self.experts(hidden_BTD, chosen, gate / gate.sum(dim=-1, keepdim=True))


class MoeLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA with :class:`Top2MLP` in the layers that its configuration names."""

    config_class = MoeLlavaConfig
    _keep_in_fp32_modules_strict = ("router",)

    def __init__(self, config: MoeLlavaConfig) -> None:
        super().__init__(config)
        layers = self.model.language_model.layers
        width = config.text_config.hidden_size
        for index, count in zip(config.moe_layers or [], config.num_experts or [], strict=True):
            layers[index].mlp = Top2MLP(layers[index].mlp, count, width)
