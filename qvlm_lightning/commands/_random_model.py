"""A LLaVA of random weights in a folder, written shard by shard, and pairs for it."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.collate import Batch
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.weight_map import without_weights
from qvlm_lightning.tensor_files import write_shard


class RandomPairs(VQADataModule):
    """Random pairs of one length: an image, words, an answer; nothing to evaluate.

    Args:
        family: the random model.
        pairs: calibration pairs.
        search_pairs: the first of them, used by the search.
        batch_size: pairs of a batch.
        tokens: per pair, those of the image included.
        config: of the model.

    Raises:
        InputError: there is no room for words behind the image.
    """

    def __init__(
        self,
        family: VLMFamily,
        pairs: int,
        search_pairs: int,
        batch_size: int,
        tokens: int,
        config: Any,
    ) -> None:
        super().__init__(family, pairs, search_pairs, batch_size)
        self._pairs = make_batches(pairs, batch_size, tokens, config)

    def calibration_samples(self) -> list[Sample]:
        """Return nothing: there are batches only."""
        return []

    evaluation_samples = calibration_samples

    @property
    def calibration_ids(self) -> list[str]:
        """Numbers of the pairs."""
        return [str(n) for n in range(self.calibration_pairs)]

    def setup(self, stage: str) -> None:
        """Do nothing: there are no samples to check."""

    def calibration_batches(self) -> list[Batch]:
        """Return all pairs in batches."""
        return [dict(batch) for batch in self._pairs]

    def search_batches(self) -> list[Batch]:
        """Return the first ``search_pairs`` pairs in batches."""
        firsts = range(0, self.search_pairs, self.batch_size)
        return [
            {name: x[: self.search_pairs - first] for name, x in batch.items()}
            for first, batch in zip(firsts, self._pairs, strict=False)
        ]

    def rank_batches(self, rank: int, world_size: int) -> list[Batch]:
        """Return one process's share of every batch."""
        return [{name: x[rank::world_size] for name, x in batch.items()} for batch in self._pairs]


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
        config = json.loads((Path(self.path) / "config.json").read_text(encoding="utf-8"))
        return int(config["image_token_id" if "image_token_id" in config else "image_token_index"])


def shape_of(folder: Path, layers: int | None) -> Any:
    """Return the configuration of a LLaVA, with another number of decoder layers if given.

    Raises:
        InputError: the folder has no ``config.json`` of a LLaVA.
    """
    from transformers import LlavaConfig

    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"shape {str(folder)!r} has no config.json; give a folder that has one")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is no JSON object: {error}") from error
    if kind != LlavaConfig.model_type:
        raise InputError(f"shape {str(folder)!r} is of a {kind!r} model; allowed: 'llava'")
    config = LlavaConfig.from_pretrained(folder)
    config.dtype = config.text_config.dtype = config.vision_config.dtype = torch.bfloat16
    config.text_config.num_hidden_layers = (
        config.text_config.num_hidden_layers if layers is None else layers
    )
    return config


def small_shape(layers: int, width: int, vocabulary: int) -> Any:
    """Return the configuration of a LLaVA with a tower of 4 narrow layers and 16 patches.

    Args:
        layers: decoder layers.
        width: of the decoder; its MLP is 2.75 times as wide.
        vocabulary: tokens.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
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
        image_token_index=3,
        dtype="bfloat16",
    )


def folder_name(config: Any) -> str:
    """Return the name of a model's folder, another for every configuration."""
    values = json.loads(config.to_json_string(use_diff=False))
    values.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    text = config.text_config
    return f"{text.num_hidden_layers}x{text.hidden_size}-{digest[:12]}"


def make_folder(folder: Path, config: Any, device: str = "cpu") -> None:
    """Write a model; no more than one layer of it is ever in memory.

    Weights are normal with deviation 1 / sqrt(inputs), norms are 1, biases 0.

    Args:
        folder: is made.
        config: of a LLaVA.
        device: where numbers are drawn; each kind draws its own.
    """
    from transformers import LlavaForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
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
        generator = torch.Generator(device).manual_seed(number)

        def draw(
            name: str,
            tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = tensors,
            generator: torch.Generator = generator,
        ) -> Tensor:
            dtype, shape = tensors[name]
            if len(shape) < 2:
                return torch.full(shape, float(not name.endswith("bias")), dtype=dtype)
            deviation = 1.0 if "embed" in name else 1 / math.sqrt(math.prod(shape[1:]))
            drawn = torch.randn(shape, generator=generator, device=device)
            return (drawn * deviation).to("cpu", dtype)

        write_shard(folder / f"{part}.safetensors", tensors, draw)
        where |= dict.fromkeys(tensors, f"{part}.safetensors")
    index = {"metadata": {}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)
    config.save_pretrained(folder)  # last: its presence says that the folder is complete


def make_batches(pairs: int, batch_size: int, tokens: int, config: Any) -> list[dict[str, Tensor]]:
    """Return random pairs in batches: an image, words, an answer; all of one length.

    Raises:
        InputError: there is no room for words behind the image.
    """
    image, vision = config.image_token_index, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    if tokens < patches + 16:
        raise InputError(
            f"{tokens} tokens is not allowed; at least {patches + 16}: an image has {patches}"
        )
    generator = torch.Generator().manual_seed(0)
    # words lie on one side of the image's token
    low, high = (4, config.text_config.vocab_size) if image < 4 else (4, image)
    words = torch.randint(low, high, (pairs, tokens - patches - 1), generator=generator)
    start = torch.tensor([1] + [image] * patches).expand(pairs, -1)
    ids = torch.cat([start, words], dim=1)
    size = vision.image_size
    whole = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        # the last eighth of the words is the answer
        "labels": ids.where(torch.arange(tokens) >= tokens - words.shape[1] // 8, -100),
        "pixel_values": torch.randn(pairs, 3, size, size, generator=generator),
        "sample_index": torch.arange(pairs),
        "has_image": torch.ones(pairs, dtype=torch.bool),
    }
    cuts = range(0, pairs, batch_size)
    return [{name: x[n : n + batch_size] for name, x in whole.items()} for n in cuts]
