"""PaliGemma: SigLIP tower of one resolution, one Linear as projector, Gemma decoder."""

from typing import Any

from torch import nn

from qvlm_lightning.models.hub import HubFamily, patches
from qvlm_lightning.models.llava import pooling_head


class PaliGemma(HubFamily):
    """PaliGemma 1 and 2; arguments as for :class:`HubFamily`."""

    model_types = ("paligemma",)
    sites = HubFamily.sites | {"first_in": ("linear",)}

    def unreachable_layers(self, model: Any) -> list[tuple[str, nn.Module, str]]:
        """Return the tower's pooling head, where its configuration has one."""
        return pooling_head(model, "model.vision_tower")

    def vision_positions(self, model: Any) -> int | None:
        """Return the patches of one image."""
        return patches(model.config.vision_config)
