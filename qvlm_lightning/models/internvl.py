"""InternVL 2.5 / 3 in its Hugging Face form: tiles through an InternViT, two-layer projector."""

from typing import Any

from torch import Tensor

from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.processors import ImageProcessorOnly
from qvlm_lightning.models.towers import tiles_by_tokens


class InternVL(ImageProcessorOnly, HubFamily):
    """InternVL; arguments as for :class:`HubFamily`."""

    model_types = ("internvl",)
    tower = "model.vision_tower.encoder.layer"
    connector_norm = "layer_norm"
    sites = HubFamily.sites | {
        "attn_in": (
            *HubFamily.sites["attn_in"],
            *(f"attention.{x}_proj" for x in "qkv"),
        ),
        "o_in": (*HubFamily.sites["o_in"], "attention.projection_layer"),
    }

    def image_rows(self, model: Any, batch: dict[str, Tensor]) -> list[int]:
        """Return the tiles of each image: each leads to ``image_seq_length`` tokens."""
        return tiles_by_tokens(batch, model.config.image_token_id, model.config.image_seq_length)
