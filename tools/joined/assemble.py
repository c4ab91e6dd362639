"""An ordinary Hugging Face LLaVA out of a language model, a tower and a fresh projector."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

SIDE = 84
"""Pixels of an image: 6 x 6 patches of 14."""
PATCH = 14
IMAGE_TOKEN = "<image>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_language(file: Path) -> tuple[Any, Any]:
    """Return language model (float32) and tokenizer out of a GGUF file.

    Args:
        file: the GGUF file; its 4-bit blocks become float32 numbers.
    """
    given = {"gguf_file": file.name}
    tokenizer = hf.AutoTokenizer.from_pretrained(file.parent, **given)
    model = hf.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    return model, tokenizer


def read_tower(file: Path) -> hf.Dinov2Model:
    """Return the DINOv2 backbone out of an ONNX file.

    Weight matrices have no names there; each is known by the bias that is added behind it.

    Args:
        file: the ONNX file.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    tensors = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    state = {n.removeprefix("backbone."): x for n, x in tensors.items() if "backbone." in n}
    for name, weight in tensors.items():
        if name.startswith("onnx::MatMul"):
            add = readers[readers[name][0].output[0]][0]
            bias = next(n for n in add.input if n in tensors)
            state[bias.removeprefix("backbone.").removesuffix("bias") + "weight"] = weight.T
    # positions of the class token and of the patches, two constants without a name of their own
    constants = [x for n, x in tensors.items() if n.startswith("onnx::") and x.ndim == 3]
    first, patches = sorted(constants, key=lambda x: x.shape[1])
    state["embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    renamed = {
        name.replace("attention.attention.", "attention.")
        .replace("query", "q_proj")
        .replace("key", "k_proj")
        .replace("value", "v_proj")
        .replace("attention.output.dense", "attention.o_proj"): torch.tensor(np.array(x))
        for name, x in state.items()
    }
    side = int((patches.shape[1]) ** 0.5) * PATCH
    config = hf.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=side,
        patch_size=PATCH,
    )
    tower = hf.Dinov2Model(config).eval()
    wanted = tower.state_dict().keys()
    tower.load_state_dict({n: x for n, x in renamed.items() if n in wanted})
    return tower


def positions_at(table: Tensor, side: int) -> Tensor:
    """Return a table of positions for another number of patches.

    Args:
        table: [1, 1 + P, D], the class token first.
        side: patches per side of the image.

    Returns:
        [1, 1 + side * side, D]
    """
    old = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def assemble(language: Any, tokenizer: Any, tower: Any, seed: int = 0) -> tuple[Any, Any]:
    """Return the LLaVA (float32, projector at random) and its processor.

    Args:
        language: of :func:`read_language`; one token for images is added.
        tokenizer: its tokenizer, changed in place.
        tower: of :func:`read_tower`.
        seed: of the projector.
    """
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    tokenizer.image_token, tokenizer.padding_side = IMAGE_TOKEN, "left"
    text = language.config.to_dict() | {"vocab_size": len(tokenizer)}
    unwanted = {"quantization_config", "_name_or_path", "architectures", "transformers_version"}
    text = {name: x for name, x in text.items() if name not in unwanted | {"model_type"}}
    vision = tower.config.to_dict() | {"image_size": SIDE}
    lists = {"out_features", "out_indices", "stage_names", "model_type"}
    vision = {name: x for name, x in vision.items() if name not in unwanted | lists}
    config = hf.LlavaConfig(
        vision_config=hf.Dinov2Config(**vision),
        text_config=hf.LlamaConfig(**text),
        image_token_index=image_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = hf.LlavaForConditionalGeneration(config)
    state = tower.state_dict()
    table = state["embeddings.position_embeddings"]
    state["embeddings.position_embeddings"] = positions_at(table, SIDE // PATCH)
    model.model.vision_tower.load_state_dict(state)
    words = {
        n.removeprefix("model."): x for n, x in language.state_dict().items() if "lm_" not in n
    }
    table = words["embed_tokens.weight"]
    more = table.mean(dim=0, keepdim=True).repeat(len(tokenizer) - len(table), 1)
    words["embed_tokens.weight"] = torch.cat([table, more])
    model.model.language_model.load_state_dict(words)
    model.tie_weights()
    ids = {"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "bos_token_id": 1}
    model.generation_config = hf.GenerationConfig(**ids, pad_token_id=ids["eos_token_id"])
    return model.eval(), processor_of(tokenizer)


def processor_of(tokenizer: Any) -> Any:
    """Return the processor of the joined model."""
    pixels = {"height": SIDE, "width": SIDE}
    images = hf.CLIPImageProcessorPil(
        size=pixels, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    )
    return hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
