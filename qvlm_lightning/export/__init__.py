"""Artifacts in the formats of other programs: compressed-tensors and GGUF, written from codes."""

from qvlm_lightning.export.compressed_tensors import (
    check_model,
    export_compressed_tensors,
    save_compressed,
)
from qvlm_lightning.export.gguf import export_gguf

__all__ = ["check_model", "export_compressed_tensors", "export_gguf", "save_compressed"]
