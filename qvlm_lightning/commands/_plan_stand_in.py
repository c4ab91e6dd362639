"""A small model of random weights whose layers are as wide as those of a model that is planned."""

import math
from typing import Any

import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.structure import Structure, Unit

IMAGE = 3
VOCABULARY = 512
WORDS = 16
"""Least number of tokens of a pair behind its image."""


class StandIn(Llava):
    """A LLaVA of random weights, in memory.

    Args:
        config: of the model.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    def __init__(self, config: Any, dtype: str) -> None:
        super().__init__("stand-in", dtype)
        self.config = config

    def load_model(self) -> nn.Module:
        """Return the model; weights are normal with deviation 1 / sqrt(inputs)."""
        from transformers import LlavaForConditionalGeneration

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(self.config)
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    width = 1 if "embed" in name else math.prod(parameter.shape[1:])
                    nn.init.normal_(parameter, std=width**-0.5)
        return model.to(getattr(torch, self.dtype)).eval().requires_grad_(False)

    def load_processor(self) -> Any:
        """Refuse: batches are made without one.

        Raises:
            InputError: always.
        """
        raise InputError("a model of random weights has no processor")

    def stored_types(self, model: nn.Module) -> dict[str, torch.dtype]:
        """Return nothing: there is no folder."""
        return {}

    def _image_token_id(self) -> int:
        return IMAGE


def patches_of(patches: int, tokens: int) -> int:
    """Return the patches of a stand-in's square image, each of which is a token of its decoder.

    Args:
        patches: tokens of an image in the planned model's tower.
        tokens: of a pair in its decoder.

    Example:
        >>> patches_of(577, 640), patches_of(1024, 640)
        (576, 576)
    """
    return max(1, math.isqrt(max(1, min(patches, tokens - WORDS)))) ** 2


def shape_like(
    structure: Structure, family: VLMFamily, layers: int, patches: int, tokens: int
) -> Any:
    """Return the configuration of a LLaVA with layers as wide as those of another model.

    Args:
        structure: of that model, with or without weights.
        family: of that model.
        layers: of the decoder and, as far as they are read, of the tower.
        patches: of an image, a square number.
        tokens: of a pair.

    Raises:
        InputError: the model has routed experts.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    if any(site.route for site in structure.sites):
        raise InputError("a model with routed experts cannot be rehearsed; leave out --rehearse")
    units = {name: tower.units for name, tower in structure.towers.items() if tower.units}
    vision = _widths(units.get("vision", units["language"])[0], family)
    text = _widths(units["language"][0], family)
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_attention_heads=vision["num_attention_heads"],
            num_hidden_layers=layers + 1,  # the last one is not read
            image_size=math.isqrt(patches),
            patch_size=1,
        ),
        text_config=LlamaConfig(
            **text,
            vocab_size=VOCABULARY,
            num_hidden_layers=layers,
            max_position_embeddings=max(2048, tokens),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=IMAGE,
    )


def _widths(unit: Unit, family: VLMFamily) -> dict[str, int]:
    """Return the widths and heads of a layer, as configurations name them."""
    inputs = [site.leader.in_features for site in unit.sites]
    width, attention = inputs[0], family.attention(unit.module)
    inner = max((n for n in inputs if n != width), default=width)
    if attention is None:
        heads = next(n for n in (width // 64, width // 32, 1) if n and width % (2 * n) == 0)
        return {
            "hidden_size": width,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
        }
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
    }
