"""X6 (docs/paper.md): what is exported is loaded with equal logits, or refused with a reason."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
)

import qvlm_lightning
from qvlm_lightning.artifact import load_artifact, save_artifact, split_state
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.adapters import add_lora, add_norm_shifts
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from qvlm_lightning.weights.exported import sha256_of

MODES = ["static_tensor", "static_channel", "dynamic_token"]


def shake(structure: Structure) -> None:
    """Put all learnable ratios where an optimisation might have left them."""
    with torch.no_grad():
        for site in structure.sites:
            parameters = [site.quantizer.low_ratio, site.quantizer.high_ratio]
            for p in [*parameters, *(x.weight_quantizer.clip_ratio for x in site.linears.values())]:
                p.copy_(1 - 0.2 * torch.rand_like(p))


SCHEMES = {
    **{mode: Scheme.parse("w4a4", activation_mode=mode) for mode in MODES},
    "groups": Scheme.parse("w3a8", group_size=32, weight_symmetric=True),
    "parts": Scheme(vision=PartScheme(16, 16), language=PartScheme(4, 16), ignore=("o_proj",)),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_x6_exported_and_loaded_model_has_equal_logits(
    tmp_path, questions, name, calibrate, export
):
    model, structure = calibrate(SCHEMES[name])
    shake(structure)
    with torch.no_grad():
        logits = model(**questions).logits
        structure.enable(False)
        assert not torch.equal(model(**questions).logits, logits)
        structure.enable(True)
    artifact = load_artifact(export(tmp_path / "artifact", model, SCHEMES[name]))
    assert torch.equal(artifact.model(**questions).logits, logits)
    assert torch.equal(model(**questions).logits, logits), "exporting changes nothing"
    assert artifact.manifest["method"] == "sequential"
    assert Scheme.from_dict(artifact.manifest["scheme"]) == SCHEMES[name]
    assert artifact.structure.quantized == structure.quantized
    assert artifact.structure.ignored == structure.ignored
    percentiles = [float(site.quantizer.percentile) for site in structure.sites]
    assert [float(s.quantizer.percentile) for s in artifact.structure.sites] == percentiles


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("train", ["lora", "norms"])
def test_x6_holds_with_adapters_merged_into_the_weights(
    tmp_path, questions, train, dtype, calibrate, export
):
    scheme = Scheme.parse("w6a6")
    model, structure = calibrate(scheme, Llava(str(WEIGHTS), dtype=dtype))
    with torch.no_grad():
        before = model(**questions).logits
        if train == "lora":
            add_lora(structure, rank=2, seed=0, device=model.device)
        else:
            add_norm_shifts(structure, model.device)
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
        learned = model(**questions).logits
    assert not torch.allclose(learned, before, atol=1e-2)
    loaded, _ = qvlm_lightning.load(export(tmp_path / "artifact", model, scheme), simulate=True)
    assert not [name for name, _ in loaded.named_parameters() if "adapter" in name]
    types = {p.dtype for n, p in loaded.named_parameters() if n.endswith(("weight", "bias"))}
    assert types == {getattr(torch, dtype)}
    logits = loaded(**questions).logits
    assert torch.equal(model(**questions).logits, learned), "exporting changes nothing"
    if train == "lora" or dtype != "float32":
        assert torch.equal(logits, learned)
    else:  # a factor rounds elsewhere, and a value may cross the border between two codes
        assert torch.allclose(logits, learned, atol=0.1 * float((learned - before).abs().max()))


def test_x6_holds_in_half_precision(tmp_path, questions, calibrate, export):
    scheme = Scheme.parse("w8a8")
    model, _ = calibrate(scheme, Llava(str(WEIGHTS), dtype="bfloat16"))
    logits = model(**questions).logits
    loaded, _ = qvlm_lightning.load(export(tmp_path / "artifact", model, scheme), simulate=True)
    assert logits.dtype == loaded(**questions).logits.dtype == torch.bfloat16
    assert torch.equal(loaded(**questions).logits, logits)


def test_x6_holds_with_tied_embeddings(tmp_path, questions, calibrate, export, tie):
    scheme = Scheme.parse("w4a4")
    model, _ = calibrate(scheme, change=tie)
    folder = export(tmp_path / "artifact", model, scheme)
    stored = load_file(folder / "weights.packed")
    assert ("lm_head.weight" in stored) + (
        "model.language_model.embed_tokens.weight" in stored
    ) == 1
    loaded, _ = qvlm_lightning.load(folder, simulate=True)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert torch.equal(loaded(**questions).logits, model(**questions).logits)


def test_ties_are_kept_once_where_storing_copies_them():
    """As weights on a GPU are, and those that are not contiguous."""
    one, two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    one.weight = two.weight = nn.Parameter(torch.arange(9.0).reshape(3, 3).T)
    quantizers, weights = split_state(nn.Sequential(one, two))
    assert quantizers == {}
    assert list(weights) == ["0.weight"]
    assert torch.equal(weights["0.weight"], one.weight)


def test_a_loaded_model_is_ready_to_be_used(folder, questions):
    model, processor = qvlm_lightning.load(str(folder))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(m.enabled for m in model.modules() if isinstance(m, ActivationQuantizer))
    text = "red and blue"
    original = AutoProcessor.from_pretrained(WEIGHTS)
    assert processor.tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]
    assert processor.chat_template == original.chat_template
    prompt = {k: v[:1] for k, v in questions.items()}
    new = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert new.shape[1] > prompt["input_ids"].shape[1]


def test_an_artifact_can_be_exported_again(stored, tmp_path):
    folder, _ = stored
    artifact = load_artifact(folder)
    save_artifact(tmp_path / "again", artifact.model, artifact.processor, artifact.manifest)
    for name in ("weights.packed", "quantizers.safetensors", "quantization.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_no_other_program_takes_an_artifact_for_full_precision(folder):
    """Nothing quantizes it elsewhere: whoever scored it there would report full precision."""
    for load in (AutoModelForImageTextToText, AutoModel, LlavaForConditionalGeneration):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            load.from_pretrained(folder)
    assert [f.name for f in folder.glob("*.safetensors")] == ["quantizers.safetensors"]
    assert not [*folder.glob("*.bin"), *folder.glob("*.index.json")]


def test_anybody_may_read_an_artifact(folder):
    assert {f.stat().st_mode & 0o777 for f in folder.iterdir()} == {0o644}


def test_an_older_artifact_is_replaced_as_a_whole(stored, tmp_path, export):
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "left_over.txt").write_text("old")
    export(target, stored[1], Scheme.parse("w4a4"))
    assert not (target / "left_over.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    load_artifact(target)


def test_a_failed_export_leaves_the_older_artifact(folder, stored, export):
    class Failing:
        def save_pretrained(self, path: Any) -> None:
            raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="the disk is full"):
        save_artifact(folder, stored[1], Failing(), {"scheme": Scheme.parse("w4a4").to_dict()})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    export(folder, stored[1], Scheme.parse("w4a4"))  # what was left behind is no obstacle
    assert [p.name for p in folder.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_artifact_of_an_older_format_is_read(tmp_path, questions, calibrate, export, version):
    """Weights were in full precision; in formats 1 and 2 their file had the name that everybody
    looks for and no hashes; in format 1 the clip ratios of weights lay in the layers, and weights
    had no stored ranges.
    """
    model, structure = calibrate(SCHEMES["static_tensor"])
    shake(structure)
    folder = export(tmp_path / "artifact", model, SCHEMES["static_tensor"])
    with torch.no_grad():
        logits = model(**questions).logits
    quantizers, weights = split_state(model)
    (folder / "weights.packed").unlink()
    name = "weights.simulated" if version == 3 else "model.safetensors"
    save_file(weights, folder / name)
    if version == 1:
        older = {
            n.replace(".weight_quantizer.clip_ratio", ".clip_ratio"): x
            for n, x in quantizers.items()
        }
        assert older.keys() != quantizers.keys()
        quantizers = older
    save_file(quantizers, folder / "quantizers.safetensors")
    manifest = json.loads((folder / "quantization.json").read_text())
    assert manifest.pop("format") == 4
    del manifest["files"]
    if version == 3:
        files = (name, "quantizers.safetensors")
        manifest["files"] = {file: sha256_of(folder / file) for file in files}
    (folder / "quantization.json").write_text(json.dumps(manifest | {"format": version}))
    with torch.no_grad():
        assert torch.equal(load_artifact(folder).model(**questions).logits, logits)
        found = load_artifact(folder, packed=True).model(**questions).logits
    assert float((found - logits).norm() / logits.norm()) < 0.1


@pytest.mark.parametrize("name", ["static_tensor", "groups"])
def test_only_quantized_weights_can_be_kept(tmp_path, questions, name, calibrate, export):
    """The same answers and codes from one copy of each weight."""
    model, structure = calibrate(SCHEMES[name])
    shake(structure)
    artifact = load_artifact(export(tmp_path / "artifact", model, SCHEMES[name]))
    linears = {n: x for s in artifact.structure.sites for n, x in s.linears.items()}
    codes = {n: x.weight_quantizer.codes(x.weight) for n, x in linears.items()}
    with torch.no_grad():
        logits = artifact.model(**questions).logits
        artifact.structure.keep_only_quantized()
        assert torch.equal(artifact.model(**questions).logits, logits)
    for n, linear in linears.items():
        assert linear._weight_cache is None, "no second copy"
        assert linear.quantized_weight() is linear.weight
        assert torch.equal(linear.weight_quantizer.codes(linear.weight), codes[n])
