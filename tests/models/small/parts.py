"""What small models and their processors are made of."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from qvlm_lightning.models.find import family_for
from qvlm_lightning.models.moe_llava_model import MoeLlavaForConditionalGeneration

WORDS = "what color is the square ? a red circle and a blue one ."
HEAD = 16
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
}
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}

CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass
class Small:
    """Parts of a small model."""

    model_type: str
    config: Any
    processor: Any

    @property
    def family(self) -> Any:
        """The family's class."""
        return family_for(self.model_type)

    def plain(self) -> nn.Module:
        """Return the model as its class makes it; MoE-LLaVA's is not of transformers."""
        mixed = self.model_type == "moe_llava"
        kind: Any = MoeLlavaForConditionalGeneration if mixed else hf.AutoModelForImageTextToText
        make = kind._from_config if mixed else kind.from_config
        return make(self.config, dtype=torch.float32)

    def model(self) -> nn.Module:
        """Return the model with weights that matter, the same at every call."""
        torch.manual_seed(0)
        made = self.plain()
        for parameter in made.parameters():
            if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        for name, parameter in made.named_parameters():
            if "lambda_" in name:  # InternVL starts its layers at a tenth
                nn.init.ones_(parameter)
        return made.eval().requires_grad_(False)


def tokenizer(image: str, **special: str) -> Any:
    """Return a byte-level tokenizer with the family's special tokens as its attributes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokens = ["<pad>", "<s>", "</s>", image, *special.values()]
    made.train_from_iterator(
        [WORDS] * 4,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(dict.fromkeys(tokens)),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image, **special},
    )


def special_ids(tok: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tok),
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
    }


def ids_of(tok: Any, **names: str) -> dict[str, int]:
    return {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}


def clip() -> Any:
    return hf.CLIPVisionConfig(
        **TOWER, num_hidden_layers=3, image_size=16, patch_size=8, projection_dim=24
    )


def siglip(layers: int = 2, **options: Any) -> Any:
    return hf.SiglipVisionConfig(
        **TOWER, num_hidden_layers=layers, image_size=16, patch_size=8, **options
    )


SIDE = {"height": 16, "width": 16}
TILES = [[16, 32], [32, 16], [32, 32]]
