"""Models without weights: the same buffers and names as with them; faults of a folder."""

import json
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.loaded import loaded
from qvlm_lightning.models.tiny_family import Tiny
from qvlm_lightning.weights.shards import Shards


def make_llava() -> Any:
    """CLIP and Llama of two layers, 60 KB."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    vision = CLIPVisionConfig(**shape, intermediate_size=32, image_size=16, patch_size=8)
    text = LlamaConfig(**shape, vocab_size=40, intermediate_size=32, num_key_value_heads=1)
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a small LLaVA in several shards."""
    folder = tmp_path_factory.mktemp("llava")
    make_llava().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_and_buffer_is_that_of_the_loaded_model(llava, dtype):
    family = Llava(str(llava), dtype)
    model, places = family.streamed()
    whole = family.load_model()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.is_meta for p in model.parameters())
    ours, theirs = dict(model.named_buffers()), dict(whole.named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shards = Shards(places)
    state = whole.state_dict()
    assert places.keys() == state.keys()
    for name, value in state.items():
        assert model.state_dict()[name].dtype == value.dtype
        assert torch.equal(shards.read(name).to(value.dtype), value), name
    assert model.config.to_dict() == whole.config.to_dict()
    assert model.generation_config.to_dict() == whole.generation_config.to_dict()


def test_names_differ_between_checkpoint_and_model(llava):
    """Otherwise the test above would show nothing."""
    places = Llava(str(llava)).streamed()[1]
    renamed = {name for name, (_, key) in places.items() if name != key}
    assert any(name.startswith("model.vision_tower.") for name in renamed)
    assert any(name.startswith("model.language_model.") for name in renamed)


def test_a_tensor_that_is_not_there_is_named(llava, tmp_path):
    for file in llava.iterdir():
        (tmp_path / file.name).symlink_to(file)
    index = tmp_path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    index.unlink()
    lost = next(k for k, f in entries["weight_map"].items() if "q_proj.weight" in k)
    gone = entries["weight_map"][lost]
    entries["weight_map"] = {k: f for k, f in entries["weight_map"].items() if f != gone}
    index.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"lacks \d+ weights, such as '\S+\.weight'"):
        Llava(str(tmp_path)).streamed()


def test_pickled_weights_are_refused(tmp_path):
    model = make_llava()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"needs safetensors.*or use the verb convert"):
        Llava(str(tmp_path)).streamed()


def test_what_cannot_be_streamed_says_so():
    with pytest.raises(InputError, match=r"outlier_scale 10 changes weights.*streaming: false"):
        Tiny(outlier_scale=10).streamed()
    with pytest.raises(InputError, match=r"sink_scale 1000 changes weights.*streaming: false"):
        Tiny(sink_scale=1000).streamed()
    with pytest.raises(InputError, match="in memory cannot be streamed; give its folder"):
        loaded(make_llava(), Tiny().load_processor()).streamed()
    with pytest.raises(InputError, match=r"has no config\.json"):
        Llava("/nowhere/at/all").streamed()
