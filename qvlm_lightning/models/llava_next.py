"""LLaVA-NeXT (1.6): an image becomes an overview and tiles of one size; each is a tower row."""

from typing import Any

from torch import Tensor

from qvlm_lightning.models.llava import Llava


class LlavaNext(Llava):
    """LLaVA-NeXT; arguments as for :class:`HubFamily`."""

    model_types = ("llava_next",)
    image_vectors = ("model.image_newline",)

    def vision_positions(self, model: Any) -> int | None:
        """Return ``None``: a place in a tile is no place in the image."""
        return None

    def image_rows(self, model: Any, batch: dict[str, Tensor]) -> list[int]:
        """Return the tiles of each image, the overview included, from ``image_sizes`` [N, 2]."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        grids, size = model.config.image_grid_pinpoints, model.config.vision_config.image_size
        return [image_size_to_num_patches(one, grids, size) for one in batch["image_sizes"]]
