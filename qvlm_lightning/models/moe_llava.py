"""MoE-LLaVA, converted from its authors' layout (docs/moe.md)."""

from typing import Any

import torch
from torch import nn

from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.original_parts import without_warnings


class MoeLlava(Llava):
    """MoE-LLaVA with a StableLM, Phi-2 or Qwen decoder.

    Args:
        path: folder that ``qvlm convert`` has written.
        dtype: ``float32``, ``bfloat16`` or ``float16``; routers stay in float32.
    """

    model_types = ("moe_llava",)

    def read_model(self, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        """Read the model from the folder (see :class:`HubFamily`)."""
        from qvlm_lightning.models.moe_llava_model import MoeLlavaForConditionalGeneration

        return MoeLlavaForConditionalGeneration.from_pretrained(
            self.path, dtype=dtype, output_loading_info=True
        )

    def empty_model(self, dtype: torch.dtype) -> nn.Module:
        """Build the model from the folder's configuration (see :class:`VLMFamily`)."""
        from qvlm_lightning.models.moe_llava_model import (
            MoeLlavaConfig,
            MoeLlavaForConditionalGeneration,
        )

        config = MoeLlavaConfig.from_pretrained(self.path)
        model = MoeLlavaForConditionalGeneration._from_config(config, dtype=dtype)
        for index in config.moe_layers:
            model.model.language_model.layers[index].mlp.router.float()
        return model.eval()

    def read_processor(self) -> Any:
        """Read the processor; transformers does not know this kind of model, and need not."""
        with without_warnings():
            return super().read_processor()

    def input_groups(self, layer: nn.Module) -> dict[str, list[str]]:
        """Add Phi's names; its attention and its MLP read the same norm."""
        groups = super().input_groups(layer)
        present = dict(layer.named_modules())
        if "self_attn.dense" not in present:
            return groups
        attn_in = [*groups.pop("attn_in"), *groups.pop("mlp_in", [])]
        return {"attn_in": attn_in, "o_in": ["self_attn.dense"], **groups}
