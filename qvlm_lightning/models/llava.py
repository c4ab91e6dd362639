"""LLaVA-1.5 in its Hugging Face form: a CLIP, SigLIP or DINOv2 tower, a two-layer projector, any
decoder.

Vicuna's LLaVA-1.3 has the same form once it is converted.
"""

from typing import Any, ClassVar

from torch import nn

from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.towers import patches


class Llava(HubFamily):
    """LLaVA-1.5 from a local folder or a hub name.

    Args:
        path: folder in the Hugging Face layout, or a repository id on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    model_types = ("llava",)
    towers: ClassVar[dict[str, str]] = {
        "clip_vision_model": "model.vision_tower.encoder.layers",
        "siglip_vision_model": "model.vision_tower.encoder.layers",
        "dinov2": "model.vision_tower.encoder.layer",
    }

    def unreachable_layers(self, model: Any) -> list[tuple[str, nn.Module, str]]:
        """Return the tower layers behind ``vision_feature_layer``, and SigLIP's pooling head."""
        return super().unreachable_layers(model) + pooling_head(model, "model.vision_tower")

    def vision_positions(self, model: Any) -> int | None:
        """Return the patches of one image, plus the class token of a CLIP or DINOv2 tower."""
        vision = model.config.vision_config
        return patches(vision) + (vision.model_type in ("clip_vision_model", "dinov2"))


def pooling_head(model: nn.Module, tower: str) -> list[tuple[str, nn.Module, str]]:
    """Return a SigLIP tower's pooling head, which runs but is not read, as unreachable.

    Args:
        model: the whole model.
        tower: name of the module that holds the head, if there is one.
    """
    head = getattr(model.get_submodule(tower), "head", None)
    reason = "pooling head: the projector reads the patches"
    return [] if head is None else [(f"{tower}.head", head, reason)]
