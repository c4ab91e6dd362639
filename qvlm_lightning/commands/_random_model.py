"""A LLaVA of random weights in a folder, written shard by shard, and pairs for it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.places import without_weights
from qvlm_lightning.nn.shards import write_shard

IMAGE, PATCHES = 3, 16


class RandomFamily(Llava):
    """A LLaVA in a folder that has no processor."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "bfloat16")

    def load_processor(self) -> Any:
        """Refuse: batches are made without one.

        Raises:
            InputError: always.
        """
        raise InputError("a random model has no processor")

    def _image_token_id(self) -> int:
        return IMAGE


def make_folder(folder: Path, layers: int, width: int, vocabulary: int) -> None:
    """Write the model; no more than one layer of it is ever in memory.

    Weights are normal with deviation 1 / sqrt(inputs), norms are 1, biases 0.

    Args:
        folder: is made.
        layers: decoder layers.
        width: of the decoder.
        vocabulary: tokens.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    folder.mkdir(parents=True, exist_ok=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            projection_dim=256,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=11 * width // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 128,
            num_key_value_heads=width // 128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=IMAGE,
        dtype="bfloat16",
    )
    model = without_weights(
        lambda: LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16),
        str(folder),
    )
    parts: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    for name, value in model.named_parameters():
        rest = name.partition("language_model.layers.")[2]
        part = f"layer-{int(rest.split('.')[0]):03d}" if rest else "others"
        parts.setdefault(part, {})[name] = (value.dtype, tuple(value.shape))
    where: dict[str, str] = {}
    for number, (part, tensors) in enumerate(sorted(parts.items())):
        generator = torch.Generator().manual_seed(number)

        def draw(
            name: str,
            tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = tensors,
            generator: torch.Generator = generator,
        ) -> Tensor:
            dtype, shape = tensors[name]
            if len(shape) < 2:
                return torch.full(shape, float(not name.endswith("bias")), dtype=dtype)
            deviation = 1.0 if "embed" in name else 1 / math.sqrt(math.prod(shape[1:]))
            return (torch.randn(shape, generator=generator) * deviation).to(dtype)

        write_shard(folder / f"{part}.safetensors", tensors, draw)
        where |= dict.fromkeys(tensors, f"{part}.safetensors")
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(folder)  # last: its presence says that the folder is complete


def make_batch(pairs: int, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    """Return random pairs: an image, then words; all of one length."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, vocabulary, (pairs, tokens - PATCHES - 1), generator=generator)
    start = torch.tensor([1] + [IMAGE] * PATCHES).expand(pairs, -1)
    ids = torch.cat([start, words], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        # the last eighth is the answer
        "labels": ids.where(torch.arange(tokens) >= tokens - tokens // 8, -100),
        "pixel_values": torch.randn(pairs, 3, 56, 56, generator=generator),
        "sample_index": torch.arange(pairs),
        "has_image": torch.ones(pairs, dtype=torch.bool),
    }
