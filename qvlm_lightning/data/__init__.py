"""Samples, batches and the data modules that supply them."""

from typing import TYPE_CHECKING, Any

from qvlm_lightning.data.collate import Batch, collate
from qvlm_lightning.data.image import LazyImage, decoded, open_image
from qvlm_lightning.data.sample import Sample, check_samples
from qvlm_lightning.data.source import Source
from qvlm_lightning.models.family import model_inputs

if TYPE_CHECKING:
    from qvlm_lightning.data.base import VQADataModule
    from qvlm_lightning.data.chat import ChatData
    from qvlm_lightning.data.tiny import TinyVQA

__all__ = [
    "Batch",
    "ChatData",
    "LazyImage",
    "Sample",
    "Source",
    "TinyVQA",
    "VQADataModule",
    "check_samples",
    "collate",
    "decoded",
    "model_inputs",
    "open_image",
]


def __getattr__(name: str) -> Any:
    """Import Lightning's seconds only for who asks for a data module: scoring needs none."""
    if name == "VQADataModule":
        from qvlm_lightning.data.base import VQADataModule

        return VQADataModule
    if name == "ChatData":
        from qvlm_lightning.data.chat import ChatData

        return ChatData
    if name == "TinyVQA":
        from qvlm_lightning.data.tiny import TinyVQA

        return TinyVQA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
