"""SmolVLM: Idefics3's form in a small size; its own processor also wants videos."""

from qvlm_lightning.models.idefics3 import Idefics3
from qvlm_lightning.models.processors import ImageProcessorOnly


class SmolVLM(ImageProcessorOnly, Idefics3):
    """SmolVLM; arguments as for :class:`HubFamily`."""

    model_types = ("smolvlm",)
