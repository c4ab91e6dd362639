"""Samples, batches and the data modules that supply them."""

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.chat import ChatData
from qvlm_lightning.data.collate import Batch, collate, model_inputs
from qvlm_lightning.data.image import LazyImage, decoded, open_image
from qvlm_lightning.data.sample import Sample, check_samples
from qvlm_lightning.data.source import Source
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
