"""What packed layers multiply with: layouts, kernels, and which of them is used when."""

from qvlm_lightning.kernels.attention import single_query_attention
from qvlm_lightning.kernels.head import quantize_head
from qvlm_lightning.kernels.key_values import key_value_cache
from qvlm_lightning.kernels.packed_model import PackedModel, pack_model
from qvlm_lightning.kernels.table import Case, holding_of

__all__ = [
    "Case",
    "PackedModel",
    "holding_of",
    "key_value_cache",
    "pack_model",
    "quantize_head",
    "single_query_attention",
]
