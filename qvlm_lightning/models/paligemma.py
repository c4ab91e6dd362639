"""PaliGemma: SigLIP tower of one resolution, one Linear as projector, Gemma decoder."""

from typing import Any

from torch import nn

from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.llava import pooling_head
from qvlm_lightning.models.processors import PREFIX_CHAT, prefixing
from qvlm_lightning.models.towers import patches


class PaliGemma(HubFamily):
    """PaliGemma 1 and 2; arguments as for :class:`HubFamily`."""

    model_types = ("paligemma",)
    sites = HubFamily.sites | {"first_in": ("linear",)}

    def unreachable_layers(self, model: Any) -> list[tuple[str, nn.Module, str]]:
        """Return the tower's pooling head, where its configuration has one."""
        return pooling_head(model, "model.vision_tower")

    def read_processor(self) -> Any:
        """Read the processor from the folder; where it has no chat template, the usual prompt."""
        from transformers import PaliGemmaProcessor

        processor = prefixing(PaliGemmaProcessor).from_pretrained(self.path)
        processor.chat_template = processor.chat_template or PREFIX_CHAT
        return processor

    def vision_positions(self, model: Any) -> int | None:
        """Return the patches of one image."""
        return patches(model.config.vision_config)
