"""X6 (docs/paper.md): what is exported is loaded with equal logits, or refused with a reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import qvlm_lightning
from qvlm_lightning.artifact import load_artifact, save_artifact, split_state
from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.data import Sample
from qvlm_lightning.data.collate import collate
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS, generate
from qvlm_lightning.nn.adapters import add_lora, add_norm_shifts
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import PartScheme, Scheme

MODES = ["static_tensor", "static_channel", "dynamic_token"]


def batch_of(split: str, count: int) -> dict[str, Tensor]:
    """Return questions of the embedded task; of four, the fourth family on has no image."""
    made = generate(split, 40)[::3][:count]
    samples = [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]
    return collate(samples, AutoProcessor.from_pretrained(WEIGHTS), with_answer=True)


@pytest.fixture(scope="module")
def questions() -> dict[str, Tensor]:
    return model_inputs(batch_of("test", 6))


def calibrate(
    scheme: Scheme, family: Llava | None = None, change: Callable[[nn.Module], None] | None = None
) -> tuple[nn.Module, Structure]:
    """Return the embedded model with ranges, quantizers on."""
    family = family or Llava(str(WEIGHTS))
    model = family.load_model()
    if change:
        change(model)
    batch = batch_of("calibration", 4)
    calibrator = Calibrator(model, family, scheme, [batch], [batch])
    calibrator.collect()
    for site in calibrator.structure.sites:
        low, high = calibrator.statistics.ranges(site, [0.985])
        site.quantizer.set_range(low[0], high[0], 0.985)
    calibrator.structure.enable(True)
    return model, calibrator.structure


def shake(structure: Structure) -> None:
    """Put all learnable ratios where an optimisation might have left them."""
    with torch.no_grad():
        for site in structure.sites:
            parameters = [site.quantizer.low_ratio, site.quantizer.high_ratio]
            for p in [*parameters, *(x.clip_ratio for x in site.linears.values())]:
                p.copy_(1 - 0.2 * torch.rand_like(p))


def export(folder: Path, model: nn.Module, scheme: Scheme) -> Path:
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    save_artifact(folder, model, processor, {"method": "sequential", "scheme": scheme.to_dict()})
    return folder


SCHEMES = {
    **{mode: Scheme.parse("w4a4", activation_mode=mode) for mode in MODES},
    "groups": Scheme.parse("w3a8", group_size=32, weight_symmetric=True),
    "parts": Scheme(vision=PartScheme(16, 16), language=PartScheme(4, 16), ignore=("o_proj",)),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_x6_exported_and_loaded_model_has_equal_logits(tmp_path, questions, name):
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


@pytest.mark.parametrize("train", ["lora", "norms"])
def test_x6_holds_with_adapters_merged_into_the_weights(tmp_path, questions, train):
    scheme = Scheme.parse("w6a6")
    model, structure = calibrate(scheme)
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
    loaded, _ = qvlm_lightning.load(export(tmp_path / "artifact", model, scheme))
    assert not [name for name, _ in loaded.named_parameters() if "adapter" in name]
    logits = loaded(**questions).logits
    assert torch.equal(model(**questions).logits, learned), "exporting changes nothing"
    if train == "lora":
        assert torch.equal(logits, learned)
    else:  # a factor rounds elsewhere, and a value may cross the border between two codes
        assert torch.allclose(logits, learned, atol=0.1 * float((learned - before).abs().max()))


def test_x6_holds_in_half_precision(tmp_path, questions):
    scheme = Scheme.parse("w8a8")
    model, _ = calibrate(scheme, Llava(str(WEIGHTS), dtype="bfloat16"))
    logits = model(**questions).logits
    loaded, _ = qvlm_lightning.load(export(tmp_path / "artifact", model, scheme))
    assert logits.dtype == loaded(**questions).logits.dtype == torch.bfloat16
    assert torch.equal(loaded(**questions).logits, logits)


def tie(model: nn.Module) -> None:
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight


def test_x6_holds_with_tied_embeddings(tmp_path, questions):
    scheme = Scheme.parse("w4a4")
    model, _ = calibrate(scheme, change=tie)
    folder = export(tmp_path / "artifact", model, scheme)
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) + (
        "model.language_model.embed_tokens.weight" in stored
    ) == 1
    loaded, _ = qvlm_lightning.load(folder)
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


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Path, nn.Module]:
    """An artifact on disk and the model it was made from."""
    scheme = Scheme.parse("w4a4")
    model, _ = calibrate(scheme)
    return export(tmp_path_factory.mktemp("stored") / "artifact", model, scheme), model


@pytest.fixture
def folder(stored, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(stored[0], tmp_path / "artifact")


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
    for name in ("model.safetensors", "quantizers.safetensors", "quantization.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_plain_transformers_loads_the_full_precision_weights(folder, questions):
    """The quantizers lie in a file of their own, which plain transformers does not look at."""
    model, loading = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    exact = Llava(str(WEIGHTS)).load_model()
    assert torch.equal(model.eval()(**questions).logits, exact(**questions).logits)


# --- the folder as a whole ------------------------------------------------------------------------


def test_an_older_artifact_is_replaced_as_a_whole(stored, tmp_path):
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "left_over.txt").write_text("old")
    export(target, stored[1], Scheme.parse("w4a4"))
    assert not (target / "left_over.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    load_artifact(target)


def test_a_failed_export_leaves_the_older_artifact(folder, stored):
    class Failing:
        def save_pretrained(self, path: Any) -> None:
            raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(OSError, match="No space"):
        save_artifact(folder, stored[1], Failing(), {"scheme": Scheme.parse("w4a4").to_dict()})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    export(folder, stored[1], Scheme.parse("w4a4"))  # what was left behind is no obstacle
    assert [p.name for p in folder.parent.iterdir()] == ["artifact"]


# --- what cannot be loaded ------------------------------------------------------------------------

FILES = ["quantization.json", "quantizers.safetensors", "model.safetensors", "config.json"]


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as fault:
        qvlm_lightning.load(folder)
    message = str(fault.value)
    assert str(folder) in message
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"has no {name}")


def test_a_folder_that_is_none_is_named(tmp_path):
    refused(tmp_path / "nowhere", "is not an artifact")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not an artifact")
    refused(WEIGHTS, "is not an artifact", "quantization.json")


@pytest.mark.parametrize("name", ["model.safetensors", "quantizers.safetensors"])
@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_a_truncated_tensor_file_is_named(folder, name, size):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:size])
    refused(folder, "is broken", name)


@pytest.mark.parametrize("name", ["quantization.json", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_garbage_instead_of_json_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder)


def rewrite(path: Path, **changes: Any) -> None:
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def test_another_format_is_named(folder):
    rewrite(folder / "quantization.json", format=2)
    refused(folder, "format 2", "allowed: 1")


@pytest.mark.parametrize(
    ("scheme", "word"),
    [
        (None, "scheme"),
        ("w4a4", "scheme"),
        ({"vision": {"weight_bits": 1}}, "weight_bits 1"),
        ({"vision": 4}, "vision"),
        ({"colour": 4}, "colour"),
    ],
)
def test_a_manifest_without_a_usable_scheme_is_refused(folder, scheme, word):
    rewrite(folder / "quantization.json", scheme=scheme)
    refused(folder, word)


@pytest.mark.parametrize("file", ["model.safetensors", "quantizers.safetensors"])
def test_tensors_that_do_not_fit_are_named(folder, file):
    tensors = load_file(folder / file)
    name = sorted(tensors)[-1]
    less = {k: v for k, v in tensors.items() if k != name}
    save_file(less, folder / file)
    refused(folder, name)
    save_file(less | {"one.more": tensors[name]}, folder / file)
    refused(folder, "does not fit")
    save_file(less | {name: torch.zeros(3, 1, 4)}, folder / file)
    refused(folder, name)


def test_tied_weights_that_are_missing_under_both_names_are_named(tmp_path):
    scheme = Scheme.parse("w8a8")
    model, _ = calibrate(scheme, change=tie)
    folder = export(tmp_path / "artifact", model, scheme)
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if "lm_head" not in k and "embed_tokens" not in k}
    save_file(kept, folder / "model.safetensors")
    refused(folder, "lm_head.weight")


def test_another_architecture_is_refused(folder):
    rewrite(folder / "config.json", model_type="bert", architectures=["BertModel"])
    refused(folder)
