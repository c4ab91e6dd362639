"""From an authors' checkpoint folder to one that transformers loads, tensor by tensor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlm_lightning.errors import InputError, first_line, parse_json
from qvlm_lightning.files import writing_folder
from qvlm_lightning.models.checkpoint import SHARD_BYTES, WeightWriter
from qvlm_lightning.models.original_layout import Layout, Settings, layout_of, mixture_of
from qvlm_lightning.models.original_parts import (
    VisionTower,
    image_token_of,
    make_processor,
    read_tokenizer,
    vision_tower_of,
)
from qvlm_lightning.models.original_weights import (
    IDENTITY,
    VOCABULARY,
    Pieces,
    stored_name,
    with_rows,
)


@dataclass
class Converted:
    """What was done.

    Attributes:
        model_type: of the new folder.
        tensors: written.
        nbytes: of all of them.
        notes: what the reader of the folder should know.
    """

    model_type: str
    tensors: int = 0
    nbytes: int = 0
    notes: list[str] = field(default_factory=list)


def convert(
    source: Path,
    target: Path,
    vision_tower: Path | None = None,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write an original LLaVA or MoE-LLaVA checkpoint in the layout of transformers.

    At most one shard is held in memory; types of weights are kept. The folder appears as a whole
    or not at all.

    Args:
        source: the authors' folder, with ``config.json`` and weights.
        target: new folder.
        vision_tower: folder of the tower that the checkpoint refers to, if it does not hold it.
        tokenizer: folder of the tokenizer, if it is not in ``source``.
        shard_bytes: size at which a file of weights is closed.
        progress: called as ``progress(done, of)`` after every tensor.

    Raises:
        InputError: an unknown or incomplete checkpoint, or a target that exists.
    """
    settings = _settings(source)
    if target.exists():
        raise InputError(f"{str(target)!r} exists already; give a new folder")
    layout = layout_of(settings, repr(str(source)))
    mixture = mixture_of(settings, repr(str(source)))
    tower = vision_tower_of(settings, layout, source, vision_tower)
    words = read_tokenizer(tokenizer or source)
    image_token, added = image_token_of(words)
    single = _single_projector(settings, layout)
    config = _config(settings, layout, mixture, tower, words, image_token, single)
    model = _on_meta(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    pieces = Pieces(source, layout, tower, wanted, single)
    pieces.check()

    result = Converted(config.model_type, notes=_notes(single, added, tower, image_token))
    with writing_folder(target) as scratch:
        writer = WeightWriter(scratch, shard_bytes)
        for name, tensor in pieces:
            if name in VOCABULARY:
                config.dtype = tensor.dtype  # what the settings say may differ
                tensor = with_rows(tensor, wanted[name][0])
            if tensor.shape != wanted[name]:
                raise InputError(
                    f"{name} has shape {tuple(tensor.shape)}; the configuration of "
                    f"{str(source)!r} asks for {tuple(wanted[name])}"
                )
            writer.add(stored_name(name, config.model_type), tensor)
            result.tensors += 1
            if progress:
                progress(result.tensors, len(wanted))
        writer.close()
        result.nbytes = writer.total
        config.save_pretrained(scratch)
        _generation(config).save_pretrained(scratch)
        make_processor(settings, layout, tower, words, image_token).save_pretrained(scratch)
    return result


def _settings(source: Path) -> Settings:
    if (source / "adapter_config.json").is_file():
        raise InputError(
            f"{str(source)!r} holds LoRA weights, no whole model; merge them into their base model "
            "with the authors' program first"
        )
    try:
        found = parse_json((source / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{str(source)!r} has no config.json; give a folder as its authors published it"
        ) from error
    except ValueError as error:
        raise InputError(f"config.json of {str(source)!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"config.json of {str(source)!r} is no JSON object")
    return found


def _single_projector(settings: Settings, layout: Layout) -> bool:
    """Return whether the projector is one Linear layer, as up to LLaVA-1.3."""
    kind = settings.get(layout.projector_key) or "linear"
    if kind not in ("linear", "mlp2x_gelu"):
        raise InputError(
            f"{layout.projector_key} {kind!r} is not known; allowed: 'linear', 'mlp2x_gelu'"
        )
    return bool(kind == "linear")


def _config(
    settings: Settings,
    layout: Layout,
    mixture: dict[str, list[int]],
    tower: VisionTower,
    tokenizer: Any,
    image_token: str,
    single: bool,
) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlavaConfig

    from qvlm_lightning.models.moe_llava_model import MoeLlavaConfig

    index = int(tokenizer.convert_tokens_to_ids(image_token))
    kind = MoeLlavaConfig if mixture else LlavaConfig
    try:
        text = layout.text(settings)
        text["vocab_size"] = max(text["vocab_size"], index + 1)
        made = kind(
            vision_config=tower.config,
            text_config=text,
            image_token_index=index,
            image_seq_length=tower.tokens,
            # one layer is written as two with nothing between and the second the identity
            projector_hidden_act="linear" if single else "gelu",
            vision_feature_layer=settings.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy=tower.strategy,
            tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
            **mixture,
        )
    except KeyError as error:
        raise InputError(f"the checkpoint's config.json has no {error}") from error
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = first_line(error)
        raise InputError(f"the checkpoint's config.json cannot be used: {reason}") from error
    return made


def _on_meta(config: Any) -> nn.Module:
    from transformers import LlavaForConditionalGeneration

    from qvlm_lightning.models.moe_llava_model import MoeLlavaForConditionalGeneration

    mixed = config.model_type == "moe_llava"
    kind: Any = MoeLlavaForConditionalGeneration if mixed else LlavaForConditionalGeneration
    with torch.device("meta"):
        made: nn.Module = kind(config)
    config.architectures = [kind.__name__]
    return made


def _generation(config: Any) -> Any:
    from transformers import GenerationConfig

    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        suppress_tokens=[config.image_token_index],
    )


def _notes(single: bool, added: bool, tower: VisionTower, image_token: str) -> list[str]:
    notes = []
    if single:
        notes.append(
            "the projector is one layer: its second is the identity; leave it alone with "
            rf"ignore: ['{IDENTITY.replace('.', chr(92) + '.')}$']"
        )
    if added:
        notes.append(f"{image_token} was added to the vocabulary; it is never generated")
    if tower.padded:
        notes.append("images are padded to squares, as the authors did")
    return notes
