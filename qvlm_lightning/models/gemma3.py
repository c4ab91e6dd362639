"""Gemma 3: SigLIP tower of one resolution; sliding and full attention alternate in the decoder."""

from typing import Any

from torch import nn

from qvlm_lightning.models.paligemma import PaliGemma
from qvlm_lightning.models.processors import nesting


class Gemma3(PaliGemma):
    """Gemma 3 with images; arguments as for :class:`HubFamily`.

    Its projector multiplies by a bare Parameter, which stays in full precision: the projector has
    no Linear layer.
    """

    model_types = ("gemma3",)

    def full_precision(self, model: Any) -> list[tuple[str, nn.Module, str]]:
        """Return the projector."""
        name, module = self.projector(model)
        return [(name, module, "a bare parameter, no Linear layer: kept in full precision")]

    def read_processor(self) -> Any:
        """Read the processor from the folder; it takes images as those of other families do."""
        from transformers import Gemma3Processor

        return nesting(Gemma3Processor).from_pretrained(self.path)

    def _image_token_id(self) -> int:
        # the processor's image_token opens an image; what stands for its patches is another
        return int(self.load_processor().tokenizer.image_token_id)
