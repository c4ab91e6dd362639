"""Folders that cannot be loaded as a model say why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.loaded import loaded
from qvlm_lightning.models.qwen2_vl import Qwen2VL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    vision = CLIPVisionConfig(**shape, intermediate_size=32, image_size=16, patch_size=8)
    text = LlamaConfig(**shape, vocab_size=40, intermediate_size=32, num_key_value_heads=1)
    model: Any = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def drop(folder: Path, part: str) -> None:
    """Take the tensors whose names hold ``part`` out of a folder."""
    tensors = {n: x for file in folder.glob("*.safetensors") for n, x in load_file(file).items()}
    kept = {name: x for name, x in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("read", [Llava.load_model, Llava.streamed])
def test_a_missing_weight_is_named_and_not_drawn_at_random(folder: Path, read: Any) -> None:
    drop(folder, "layers.1.mlp.down_proj.weight")
    with pytest.raises(InputError, match=r"lacks 1 weights, such as '\S+layers.1.mlp.down_proj"):
        read(Llava(str(folder)))


def test_weights_that_cannot_reach_the_output_may_be_missing(folder: Path) -> None:
    image = {
        "input_ids": torch.tensor([[3, 9, 9, 9, 9, 5]]),
        "pixel_values": torch.randn(1, 3, 16, 16),
    }
    family = Llava(str(folder))
    whole = family.load_model()
    whole.config.image_token_id = 9
    logits = whole(**image).logits
    drop(folder, "encoder.layers.1.")
    model, (streamed, places) = family.load_model(), family.streamed()
    model.config.image_token_id = 9
    assert torch.equal(model(**image).logits, logits)
    ours, theirs = streamed.state_dict(), model.state_dict()
    lost = {name for name in theirs if ".encoder.layers.1." in name}
    assert lost == theirs.keys() - places.keys()
    assert len(lost) == 16
    for name in lost:
        assert theirs[name].eq(0).all()
        assert torch.equal(ours[name], theirs[name])


def test_the_broken_one_of_several_files_is_named(folder: Path) -> None:
    broken = sorted(folder.glob("*.safetensors"))[1]
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{broken.name}' cannot be read"):
        Llava(str(folder)).load_model()


def test_another_family_is_refused_before_weights_are_read(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="holds a 'llava' model; allowed: 'qwen2_vl'"):
        Qwen2VL(str(folder)).load_model()


def test_a_folder_that_does_not_exist_is_said_not_to() -> None:
    for load in (Llava("models/nowhere").load_model, Llava("models/nowhere").weightless):
        with pytest.raises(InputError, match="no folder 'models/nowhere', and no such model on"):
            load()


@pytest.mark.parametrize("read", [Llava.load_model, Llava.streamed])
def test_a_tower_of_another_kind_is_refused_before_weights_are_read(
    folder: Path, read: Any
) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"] = {"model_type": "pixtral", "image_size": 16, "patch_size": 8}
    (folder / "config.json").write_text(json.dumps(settings))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match=r"tower of type 'pixtral'.*'siglip_vision_model', 'din"):
        read(Llava(str(folder)))


def test_a_tower_of_another_kind_is_refused_in_memory() -> None:
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    text = LlamaConfig(**shape, vocab_size=40, intermediate_size=32, num_key_value_heads=1)
    vision = hf.PixtralVisionConfig(**shape, intermediate_size=32, image_size=16, patch_size=8)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    with pytest.raises(InputError, match="'dinov2'"):
        loaded(model, None)
