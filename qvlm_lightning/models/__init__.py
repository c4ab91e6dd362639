"""Families of vision-language models: what their parts are called."""

from qvlm_lightning.models.family import ANSWER, PAD, PROMPT, VISION, VLMFamily
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny_family import Tiny

__all__ = ["ANSWER", "PAD", "PROMPT", "VISION", "Llava", "Tiny", "VLMFamily"]
