"""LLaVA-OneVision: SigLIP tower, tiles as in LLaVA-NeXT, Qwen2 decoder; images only."""

from qvlm_lightning.models.llava_next import LlavaNext
from qvlm_lightning.models.processors import ImageProcessorOnly


class LlavaOnevision(ImageProcessorOnly, LlavaNext):
    """LLaVA-OneVision; arguments as for :class:`HubFamily`."""

    model_types = ("llava_onevision",)
