"""Idefics3: tiles through a SigLIP-like tower, pixel shuffle and one Linear, Llama decoder."""

from typing import Any

from torch import Tensor

from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.towers import patches, tiles_by_tokens


class Idefics3(HubFamily):
    """Idefics3; arguments as for :class:`HubFamily`."""

    model_types = ("idefics3",)
    tower = "model.vision_model.encoder.layers"
    connector = "model.connector"
    decoder = "model.text_model.layers"
    sites = HubFamily.sites | {"first_in": ("modality_projection.proj",)}

    def image_rows(self, model: Any, batch: dict[str, Tensor]) -> list[int]:
        """Return the tiles of each image: each leads to equally many tokens."""
        config = model.config
        tokens = patches(config.vision_config) // config.scale_factor**2
        return tiles_by_tokens(batch, config.image_token_id, tokens)
