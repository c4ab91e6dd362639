"""Qwen2-VL: a tower of packed patches at the image's own resolution, M-RoPE decoder."""

from typing import Any

from torch import Tensor

from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.processors import ImageProcessorOnly


class Qwen2VL(ImageProcessorOnly, HubFamily):
    """Qwen2-VL; arguments as for :class:`HubFamily`.

    The tower takes the patches of all images as [patches, D]; query, key and value are one Linear.
    """

    model_types = ("qwen2_vl",)
    tower = "model.visual.blocks"
    connector = "model.visual.merger"
    connector_norm = "ln_q"
    sites = HubFamily.sites | {
        "attn_in": ("attn.qkv", *HubFamily.sites["attn_in"]),
        "o_in": ("attn.proj", *HubFamily.sites["o_in"]),
        "first_in": ("mlp.0",),
        "second_in": ("mlp.2",),
    }

    def image_rows(self, model: Any, batch: dict[str, Tensor]) -> list[int]:
        """Return the patches of each image, from ``image_grid_thw`` [N, 3]."""
        return batch["image_grid_thw"].prod(dim=1).tolist()
