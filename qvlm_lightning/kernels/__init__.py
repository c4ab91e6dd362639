"""What packed layers multiply with: layouts, kernels, and which of them is used when."""

from qvlm_lightning.kernels.packed_model import PackedModel, pack_model
from qvlm_lightning.kernels.table import Case, holding_of

__all__ = ["Case", "PackedModel", "holding_of", "pack_model"]
