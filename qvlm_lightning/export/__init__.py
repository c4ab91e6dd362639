"""Artifacts in the formats of other programs: compressed-tensors and GGUF, written from codes."""

from qvlm_lightning.export.compressed_tensors import export_compressed_tensors
from qvlm_lightning.export.gguf import export_gguf

__all__ = ["export_compressed_tensors", "export_gguf"]
