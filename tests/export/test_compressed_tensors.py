"""Folders in the compressed-tensors format: what is in them, and what transformers makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qvlm_lightning.artifact import Artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.export import export_compressed_tensors
from qvlm_lightning.export.patterns import matches
from qvlm_lightning.export.plain import plain_model
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.export.making import small_artifact, tiny_artifact, tiny_inputs, values
from tests.models.conftest import BUILDERS

PER_TOKEN = {"activation_mode": "dynamic_token"}
SYMMETRIC = {"weight_symmetric": True}
MIXED = Scheme(
    vision=PartScheme(16, 16),
    projector=PartScheme(8, 16),
    language=PartScheme(4, 8),
    overrides={"down_proj": {"weight_bits": 6}},
    **PER_TOKEN,
    **SYMMETRIC,
)
# name -> (scheme, format of the folder, quantized layers); all of them computed as here, to the bit
EXACT = {
    "w8a8": (Scheme.parse("w8a8", **PER_TOKEN, **SYMMETRIC), "int-quantized", 74),
    "w8a8 asymmetric groups": (
        Scheme.parse("w8a8", **PER_TOKEN, group_size=64),
        "int-quantized",
        74,
    ),
    "w4a16": (Scheme.parse("w4a16", **SYMMETRIC, group_size=32), "pack-quantized", 74),
    "w4a16 asymmetric": (Scheme.parse("w4a16", group_size=32), "pack-quantized", 74),
    "w3a16 asymmetric": (Scheme.parse("w3a16"), "pack-quantized", 74),
    "w4a8": (Scheme.parse("w4a8", **PER_TOKEN, **SYMMETRIC), "pack-quantized", 74),
    "w4a4 asymmetric": (Scheme.parse("w4a4", **PER_TOKEN), "int-quantized", 74),
    "groups of two widths": (Scheme.parse("w4a16", group_size=128), "int-quantized", 74),
    "mixed": (MIXED, "pack-quantized", 44),
}


def reload(folder: Path) -> tuple[Any, dict[str, Any]]:
    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {name: what for name, what in found.items() if what}


def write(artifact: Artifact, tmp_path: Path, **options: Any) -> Path:
    export_compressed_tensors(artifact, tmp_path / "export", tmp_path / "artifact", **options)
    return tmp_path / "export"


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(**tiny_inputs()).logits
    return found


QUICK = ("w8a8", "w4a16 asymmetric", "mixed")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in EXACT if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_transformers_computes_what_the_simulated_model_does(tmp_path, name: str) -> None:
    """In float32 codes, scales and sums are the same, so that logits are too, to the bit."""
    scheme, expected, count = EXACT[name]
    artifact = tiny_artifact(tmp_path / "artifact", scheme)
    folder = write(artifact, tmp_path)
    model, complaints = reload(folder)
    assert complaints == {}
    assert settings_of(folder)["format"] == expected
    assert torch.equal(logits(model), logits(artifact.model))
    assert len(artifact.structure.quantized) == count
    for layer in ("model.language_model.layers.2.mlp.down_proj", "lm_head"):
        weight = model.get_submodule(layer).weight.double()
        ours = artifact.model.get_submodule(layer).weight.double()
        assert torch.equal(weight, ours)


def test_bfloat16_weights_are_equal_to_the_bit(tmp_path) -> None:
    scheme = Scheme.parse("w4a16", **SYMMETRIC, group_size=32)
    artifact = tiny_artifact(tmp_path / "artifact", scheme, dtype="bfloat16")
    model, complaints = reload(write(artifact, tmp_path))
    assert complaints == {}
    assert model.dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(artifact.model))


@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_static_ranges_differ_at_ties_only(tmp_path, symmetric: bool) -> None:
    """compressed-tensors adds the zero point before it rounds, which moves ties to the neighbouring
    code; an element that is no tie has the code it has here.
    """
    scheme = Scheme.parse("w8a8", activation_mode="static_tensor", weight_symmetric=symmetric)
    artifact = tiny_artifact(tmp_path / "artifact", scheme)
    model, complaints = reload(write(artifact, tmp_path))
    assert complaints == {}
    apart: list[float] = []
    seen: list[int] = []

    def compare(name: str, linear: Any) -> Any:
        scale = float(model.get_submodule(name).input_scale)
        theirs: list[torch.Tensor] = []

        def run(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            from compressed_tensors.quantization.lifecycle.forward import forward_quantize

            other = model.get_submodule(name)
            args_of = other.quantization_scheme.input_activations
            theirs.append(forward_quantize(other, args[0], "input", args_of))
            ours = module.site(args[0])
            steps = (ours / scale - theirs[-1] / scale).round()
            tie = (args[0] / scale).double().frac().abs().sub(0.5).abs()
            seen.append(steps.numel())
            apart.extend(tie[steps != 0].tolist())
            assert steps.abs().max() <= 1

        return linear.register_forward_pre_hook(run)

    logits(model)  # unpacks the weights
    handles = [
        compare(name, artifact.model.get_submodule(name)) for name in artifact.structure.quantized
    ]
    logits(artifact.model)
    for handle in handles:
        handle.remove()
    assert all(distance < 1e-4 for distance in apart)
    assert len(apart) < 1e-4 * sum(seen)
    agree = (logits(model).argmax(-1) == logits(artifact.model).argmax(-1)).double().mean()
    assert agree > 0.98


def test_another_code_in_the_file_is_seen(tmp_path) -> None:
    """The comparison above can fail: one code of one layer, one step away."""
    artifact = tiny_artifact(tmp_path / "artifact", Scheme.parse("w8a8", **PER_TOKEN))
    folder = write(artifact, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = -tensors[name][0, 0] - 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert not torch.equal(logits(reload(folder)[0]), logits(artifact.model))


@pytest.mark.parametrize(("bits", "symmetric"), [(3, False), (4, True)])
def test_packed_words_hold_the_codes(tmp_path, bits: int, symmetric: bool) -> None:
    """Read bit by bit: code i of a row lies at bit i x b, from the lowest bit of its word on."""
    scheme = Scheme.parse(f"w{bits}a16", weight_symmetric=symmetric, group_size=64)
    artifact = tiny_artifact(tmp_path / "artifact", scheme)
    tensors = load_file(write(artifact, tmp_path) / "model.safetensors")
    name = "multi_modal_projector.linear_1"
    words, half = tensors[f"{name}.weight_packed"], 2 ** (bits - 1)
    outputs, inputs = tensors[f"{name}.weight_shape"].tolist()
    scale, expected = tensors[f"{name}.weight_scale"], values(artifact, f"model.{name}")
    assert words.shape == (outputs, -(-inputs * bits // 32))

    def read(row: torch.Tensor, index: int) -> int:
        bit = [(int(row[k // 32]) >> (k % 32)) & 1 for k in range(index * bits, (index + 1) * bits)]
        return sum(value << place for place, value in enumerate(bit)) - half

    zero_points = tensors.get(f"{name}.weight_zero_point")
    for row in range(0, outputs, 17):
        for column in range(0, inputs, 5):
            group = column // 64
            zero = 0 if zero_points is None else read(zero_points[:, group], row)
            value = (read(words[row], column) - zero) * scale[row, group].double()
            assert value == expected[row, column], (row, column)
    assert (zero_points is None) == symmetric


def test_layers_left_alone_are_left_alone_under_both_namings(tmp_path) -> None:
    """A tower and a head that are not quantized, by the names of transformers and of the file."""
    off = PartScheme(16, 16)
    given = Scheme(vision=off, projector=off, language=PartScheme(4, 16), weight_symmetric=True)
    artifact = tiny_artifact(tmp_path / "artifact", given)
    folder = write(artifact, tmp_path)
    ignore = settings_of(folder)["ignore"]
    left = [
        "vision_tower.encoder.layers.0.self_attn.q_proj",
        "multi_modal_projector.linear_1",
        "lm_head",
    ]
    kept = ["layers.0.self_attn.q_proj", "layers.5.mlp.down_proj"]
    for name in left:
        for prefix in ("", "model.", "language_model."):
            assert any(matches(pattern, prefix + name) for pattern in ignore), name
    for name in kept:
        for prefix in ("model.language_model.", "language_model.model."):
            assert not any(matches(pattern, prefix + name) for pattern in ignore), name
    tensors = load_file(folder / "model.safetensors")
    assert sum(name.endswith("weight_packed") for name in tensors) == 42
    assert tensors["vision_tower.encoder.layers.0.self_attn.q_proj.weight"].is_floating_point()


def test_shards_and_their_index(tmp_path) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", Scheme.parse("w4a16", **SYMMETRIC))
    folder = write(artifact, tmp_path, shard_bytes=500_000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 600_000 for file in files)
    model, complaints = reload(folder)
    assert complaints == {}
    assert torch.equal(logits(model), logits(artifact.model))


def test_the_folder_has_what_a_user_needs(tmp_path) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", EXACT["w8a8"][0])
    card = tmp_path / "artifact" / "README.md"
    text = card.read_text().replace("library_name:", "license: mit\nlibrary_name:", 1)
    card.write_text(text.replace("Not evaluated yet", "| accuracy | 97 |"))
    folder = write(artifact, tmp_path)
    assert {"config.json", "model.safetensors", "README.md", "generation_config.json"} < {
        file.name for file in folder.iterdir()
    }
    for file in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / file).read_bytes() == (tmp_path / "artifact" / file).read_bytes()
    images = json.loads((folder / "preprocessor_config.json").read_text())
    assert images["image_processor_type"] == "CLIPImageProcessor"
    assert images["processor_class"] == "LlavaProcessor"
    written = (folder / "README.md").read_text()
    assert "license: mit" in written
    assert "| accuracy | 97 |" in written
    assert "vllm serve" in written
    assert "w8a8, per channel, symmetric, per token: int-quantized" in written


REFUSED = [
    ({"activation_mode": "static_channel"}, "activation_mode: static_tensor, or dynamic_token"),
    ({"overrides": {"down_proj": {"weight_bits": 16}}}, "nearest that it holds is weight_bits: 8"),
    ({"sink": "bypass"}, "the nearest that it holds is sink: none"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=["channel", "weights", "sinks"])
def test_what_the_format_cannot_hold(tmp_path, options: dict[str, Any], words: str) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", Scheme.parse("w8a8", **options))
    with pytest.raises(InputError, match=words):
        write(artifact, tmp_path)
    assert not (tmp_path / "export").exists()


def test_clipped_tokens_are_refused(tmp_path) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", EXACT["w8a8"][0])
    site = artifact.structure.sites[3].quantizer
    site.set_range(torch.tensor(-0.9), torch.tensor(0.9), 0.9)
    with pytest.raises(InputError, match=r"cannot hold the clip ratio 0\.9 on the range of each"):
        write(artifact, tmp_path)


def test_what_a_layer_does_beside_is_refused(tmp_path) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", EXACT["w8a8"][0])
    name = next(iter(artifact.structure.quantized))
    artifact.model.get_submodule(name).add_module("turn", torch.nn.Identity())
    with pytest.raises(InputError, match="cannot hold its turn, which runs beside the layer"):
        write(artifact, tmp_path)


def test_a_model_that_transformers_lacks_is_refused(tmp_path) -> None:
    scheme = Scheme.parse("w8a8", **PER_TOKEN)
    artifact = small_artifact(tmp_path / "artifact", BUILDERS["moe_llava"](), scheme)
    with pytest.raises(InputError, match="is a model of this package: transformers alone cannot"):
        write(artifact, tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlp.experts.0.up_proj.weight", "keeps all experts of a layer in one tensor"),
        ("mlp.gain", "has no weight .*mlp.gain; the artifact is what can be loaded"),
    ],
)
def test_weights_that_transformers_lacks_are_refused(name: str, words: str) -> None:
    with torch.device("meta"):
        model = BUILDERS["llava"]().plain()
    weights = set(model.state_dict())
    plain_model(model, weights)
    with pytest.raises(InputError, match=words):
        plain_model(model, weights | {f"model.language_model.layers.0.{name}"})


def test_a_folder_that_stood_there_stays_on_a_fault(tmp_path, monkeypatch) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", EXACT["w8a8"][0])
    (tmp_path / "export").mkdir()
    monkeypatch.setattr("qvlm_lightning.export.compressed_tensors.write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(artifact, tmp_path)
    assert list((tmp_path / "export").iterdir()) == []
