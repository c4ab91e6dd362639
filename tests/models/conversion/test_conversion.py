"""Converted folders compute what the authors' parts compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.conversion import convert
from qvlm_lightning.models.find import family_for

KINDS = ["v1.5", "v1.3", "stablelm", "phi"]
SIDE, MOE_LAYERS, EXPERTS = 16, [0, 2], 4  # of the folders in conftest.py


def run(model: nn.Module, image_token: int, before: list[int], image: Tensor, behind: list[int]):
    ids = torch.tensor([[*before, *[image_token] * 4, *behind]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=image[None]).logits[0]


def load(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    family = family_for(kind)(str(folder))
    return family, family.load_model()


@pytest.mark.parametrize("original", KINDS, indirect=True)
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_converted_models_compute_what_the_parts_compute(tmp_path, folders, original, form) -> None:
    folders(original, form=form)
    steps = []
    done = convert(
        tmp_path / "in",
        tmp_path / "out",
        vision_tower=tmp_path / "clip",
        shard_bytes=20_000,
        progress=lambda *x: steps.append(x),
    )
    family, model = load(tmp_path / "out")
    image = torch.randn(3, SIDE, SIDE)
    before, behind = [1, 40, 41], [42, 43, 44]
    wanted = original.logits(before, image, behind)
    found = run(model, model.config.image_token_index, before, image, behind)
    assert torch.allclose(found[:, : original.vocabulary], wanted, atol=2e-5)
    assert wanted.std() > 0.1
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert steps[-1] == (done.tensors, done.tensors)
    assert done.nbytes == sum(p.nbytes for p in model.state_dict().values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip", "in", "out"]
    kind = family.load_processor().tokenizer.convert_ids_to_tokens(model.config.image_token_index)
    assert kind == ("<im_patch>" if original.settings.get("mm_use_im_start_end") else "<image>")


@pytest.mark.parametrize("original", ["v1.5"], indirect=True)
def test_every_weight_is_taken_as_it_is(tmp_path, folders, original) -> None:
    half = {n: t.half() for n, t in original.weights.items()}
    original.weights = half
    original.tower.half()
    folders(original, inside="model.vision_tower.vision_tower.vision_model.")
    convert(tmp_path / "in", tmp_path / "out", vision_tower=tmp_path / "clip")
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = model.state_dict()
    assert {t.dtype for t in state.values()} == {torch.float16}
    for name in (
        "layers.1.self_attn.q_proj.weight",
        "layers.3.mlp.down_proj.weight",
        "norm.weight",
    ):
        assert torch.equal(state[f"model.language_model.{name}"], half[f"model.{name}"])
    assert torch.equal(
        state["model.multi_modal_projector.linear_2.bias"], half["model.mm_projector.2.bias"]
    )
    for name, tensor in original.tower.state_dict().items():
        assert torch.equal(state[f"model.vision_tower.{name}"], tensor)
    head = state["lm_head.weight"]
    assert torch.equal(head[:-1], half["lm_head.weight"])
    assert torch.equal(head[-1], head[0]), "the added word is rated as the unknown one"


@pytest.mark.parametrize("original", ["v1.5"], indirect=True)
def test_files_have_the_names_that_other_programs_expect(tmp_path, folders, original) -> None:
    folders(original)
    convert(tmp_path / "in", tmp_path / "out", vision_tower=tmp_path / "clip")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    # names of llava-hf/llava-1.5-7b-hf
    assert {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.encoder.layers.0.self_attn.out_proj.bias",
        "vision_tower.vision_model.pre_layrnorm.weight",
    } <= names
    assert {name.split(".")[0] for name in names} == {
        "language_model",
        "multi_modal_projector",
        "vision_tower",
    }


@pytest.mark.parametrize("original", ["v1.3"], indirect=True)
def test_a_projector_of_one_layer_becomes_two_of_which_one_is_the_identity(
    tmp_path, folders, original
) -> None:
    folders(original)
    done = convert(tmp_path / "in", tmp_path / "out", vision_tower=tmp_path / "clip")
    _, model = load(tmp_path / "out")
    projector = model.model.multi_modal_projector
    x = torch.randn(2, 5, 8)
    assert torch.equal(projector(x), original.project(x))
    assert any("linear_2" in note for note in done.notes)


@pytest.mark.parametrize("original", ["stablelm"], indirect=True)
def test_routers_stay_in_float32_in_the_layers_of_the_settings(tmp_path, folders, original) -> None:
    folders(original)
    convert(tmp_path / "in", tmp_path / "out", vision_tower=tmp_path / "clip")
    model = family_for("moe_llava")(str(tmp_path / "out"), dtype="bfloat16").load_model()
    routers = {n: p.dtype for n, p in model.named_parameters() if ".router." in n}
    assert routers == {
        f"model.language_model.layers.{i}.mlp.router.weight": torch.float32 for i in MOE_LAYERS
    }
    experts = model.model.language_model.layers[2].mlp.experts
    assert len(experts) == EXPERTS
    assert experts[0].up_proj.weight.dtype == torch.bfloat16


# --- conversation and images ----------------------------------------------------------------------

QUESTION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color ?"}]}
]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("original", "image", "end"),
    [
        ("v1.5", "<image>", "</s>"),
        ("v1.3", "<im_start><im_patch><im_end>", "</s>"),
        ("stablelm", "<image>", "<|endoftext|>"),
    ],
    indirect=["original"],
)
def test_processors_write_the_authors_conversation(tmp_path, folders, original, image, end) -> None:
    folders(original)
    convert(tmp_path / "in", tmp_path / "out", vision_tower=tmp_path / "clip")
    family, model = load(tmp_path / "out")
    processor = family.load_processor()
    asked = processor.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert asked == f"{SYSTEM} USER: {image}\nwhat color ? ASSISTANT:"
    more = [{"role": "assistant", "content": "red"}, {"role": "user", "content": "why ?"}]
    text = processor.apply_chat_template([*QUESTION, *more], tokenize=False)
    assert text == f"{SYSTEM} USER: {image}\nwhat color ? ASSISTANT: red{end}USER: why ?"
    photo = Image.new("RGB", (40, 20), (255, 0, 0))
    batch = processor(text=[asked], images=[photo], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    kinds = family.token_kind(dict(batch))
    assert int((kinds == 1).sum()) == 4
    padded = original.settings.get("image_aspect_ratio") == "pad"
    red = batch["pixel_values"][0, 0]
    assert (len(red[:, SIDE // 2].unique()) > 1) == padded, "padding shows above and below"
    made = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert made.shape[1] == batch["input_ids"].shape[1] + 3
    assert model.config.image_token_index not in made[0, -3:]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llava_mpt"}, "holds a 'llava_mpt' checkpoint; allowed: 'llava'"),
        ({"vision_config": {}}, "Hugging Face layout already"),
        ({"mm_projector_type": "mlp3x_gelu"}, "'mlp3x_gelu' is not known"),
        ({"mm_vision_tower": None}, "no mm_vision_tower"),
        ({"mm_vision_select_feature": "mean"}, "'mean' is not known"),
        ({"hidden_size": 32}, "has shape .* asks for"),
        ({"hidden_size": "wide"}, r"config\.json cannot be used"),
        ({"num_hidden_layers": 5}, r"lacks 9 weights, such as 'model\.language_model\.layers\.4"),
        ({"num_hidden_layers": 3}, r"holds 'model\.layers\.3\..*no place"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, folders, settings, message) -> None:
    folder = folders("v1.5", **settings)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "out", vision_tower=tmp_path / "clip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip", "in"], "nothing is left behind"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_residual": True}, "residual experts"),
        ({"top_k_experts": 1}, "to 1 experts"),
        ({"num_experts": [4]}, "two lists of equal length"),
    ],
)
def test_other_mixtures_are_refused(tmp_path, folders, change, message) -> None:
    moe = {
        "moe_enable": True,
        "top_k_experts": 2,
        "moe_layers_idx": MOE_LAYERS,
        "num_experts": [EXPERTS, EXPERTS],
    }
    folder = folders("stablelm", moe=moe | change)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "out", vision_tower=tmp_path / "clip")


def test_a_missing_tower_is_asked_for(tmp_path, folders) -> None:
    folder = folders("v1.5")
    with pytest.raises(InputError, match=r"openai/clip-vit-large-patch14'; give .*--vision-tower"):
        convert(folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"has no config\.json; give a CLIP folder"):
        convert(folder, tmp_path / "out", vision_tower=tmp_path / "nowhere")


def test_a_missing_tokenizer_is_asked_for(tmp_path, folders, words) -> None:
    folder = folders("v1.5")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"no usable tokenizer .* --tokenizer"):
        convert(folder, tmp_path / "out", vision_tower=tmp_path / "clip")
    done = convert(folder, tmp_path / "out", vision_tower=tmp_path / "clip", tokenizer=words)
    assert done.model_type == "llava"


def test_targets_adapters_and_empty_folders_are_refused(tmp_path, folders) -> None:
    folder = folders("v1.5")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(folder, tmp_path / "out", vision_tower=tmp_path / "clip")
    with pytest.raises(InputError, match=r"has no config\.json"):
        convert(tmp_path / "nothing", tmp_path / "new")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="LoRA"):
        convert(folder, tmp_path / "new", vision_tower=tmp_path / "clip")
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        convert(folder, tmp_path / "new", vision_tower=tmp_path / "clip")
