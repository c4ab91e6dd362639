"""Artifacts that cannot be loaded say why, in one sentence."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import qvlm_lightning
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.quant.scheme import Scheme

FILES = ["quantization.json", "quantizers.safetensors", "weights.packed", "config.json"]


def refused(folder: Path, *words: str) -> None:
    for simulate in (False, True):
        with pytest.raises(InputError) as fault:
            qvlm_lightning.load(folder, simulate=simulate)
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


def test_what_a_killed_export_left_is_named(folder):
    """Between the two renames of ``writing_folder``."""
    folder.rename(folder.with_name(f".{folder.name}.old"))
    refused(folder, "was being replaced", f".{folder.name}.old'")


@pytest.mark.parametrize("name", ["weights.packed", "quantizers.safetensors"])
@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_a_truncated_tensor_file_is_named(folder, name, size):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:size])
    refused(folder, "is broken", name)


@pytest.mark.parametrize("name", ["weights.packed", "quantizers.safetensors"])
def test_a_tensor_file_of_another_artifact_is_named(folder, name):
    tensors = load_file(folder / name)
    last = sorted(tensors)[-1]
    save_file(tensors | {last: tensors[last] + 1}, folder / name)
    refused(folder, "is broken", name, "is not the file that was exported")


def test_a_manifest_without_hashes_is_refused(folder):
    rewrite(folder / "quantization.json", files=None)
    refused(folder, "is not the file that was exported")


@pytest.mark.parametrize("name", ["quantization.json", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_garbage_instead_of_json_is_refused(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder)


def rewrite(path: Path, **changes: Any) -> None:
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def test_another_format_is_named(folder):
    rewrite(folder / "quantization.json", format=6)
    refused(folder, "format 6", "allowed: 1, 2, 3, 4, 5")


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


@pytest.mark.parametrize("file", ["weights.packed", "quantizers.safetensors"])
def test_tensors_that_do_not_fit_are_named(folder, file, restore):
    tensors = load_file(folder / file)
    name = sorted(tensors)[-1]
    less = {k: v for k, v in tensors.items() if k != name}
    restore(less, folder / file)
    refused(folder, name)
    restore(less | {"one.more": tensors[name]}, folder / file)
    refused(folder, "does not fit")
    restore(less | {name: torch.zeros(3, 1, 4)}, folder / file)
    refused(folder, name)


def test_tied_weights_that_are_missing_under_both_names_are_named(
    tmp_path, calibrate, export, tie, restore
):
    scheme = Scheme.parse("w8a8")
    model, _ = calibrate(scheme, change=tie)
    folder = export(tmp_path / "artifact", model, scheme)
    tensors = load_file(folder / "weights.packed")
    kept = {k: v for k, v in tensors.items() if "lm_head" not in k and "embed_tokens" not in k}
    restore(kept, folder / "weights.packed")
    refused(folder, "lm_head.weight")


def test_another_architecture_is_refused(folder):
    rewrite(folder / "config.json", model_type="bert", architectures=["BertModel"])
    refused(folder)


NAN, INF = float("nan"), float("inf")
LAYER = "model.language_model.layers.1.mlp.down_proj"
FAULTS = {
    "low": (
        f"{LAYER}.input_quantizer.low",
        NAN,
        "NaN or infinite values in",
        "input_quantizer.low",
    ),
    "high": (f"{LAYER}.input_quantizer.high", INF, "NaN or infinite values in", "quantizer.high"),
    "order": (f"{LAYER}.input_quantizer.high", -1e6, "has a range of", "allowed: low <= high"),
    "ratio": (
        f"{LAYER}.input_quantizer.low_ratio",
        0.0,
        "the ratio",
        "low_ratio at 0; allowed: > 0",
    ),
    "clip": (f"{LAYER}.weight_quantizer.clip_ratio", -0.5, "the ratio", "clip_ratio at -0.5"),
    "clip that is none": (f"{LAYER}.weight_quantizer.clip_ratio", NAN, "NaN", "clip_ratio"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bounds_that_mean_nothing_are_neither_loaded_nor_exported(
    stored, folder, restore, export, fault
):
    name, value, *words = FAULTS[fault]
    file = folder / "quantizers.safetensors"
    tensors = load_file(file)
    given = stored[1].state_dict()[name].clone()
    given.reshape(-1)[-1] = value
    assert (name in tensors) == ("clip" not in fault), "codes have no ranges"
    if name in tensors:
        restore(tensors | {name: given}, file)
        refused(folder, *words, name.rpartition(".")[0])
    model = copy.deepcopy(stored[1])
    model.load_state_dict({name: given}, strict=False)
    with pytest.raises(InputError, match=r"^the calibrated model has ") as said:
        export(folder.parent / "new", model, Scheme.parse("w4a4"))
    assert all(word in str(said.value) for word in words)
    assert not [path for path in folder.parent.iterdir() if path != folder], "nothing is left"


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_none_are_neither_loaded_nor_exported(
    stored, folder, restore, export, value
):
    file, name = folder / "weights.packed", "lm_head.weight"
    tensors = load_file(file)
    tensors[name][0, 0] = value
    restore(tensors, file)
    refused(folder, "NaN or infinite values in", name)
    model = copy.deepcopy(stored[1])
    model.get_parameter(name).data[0, 0] = value
    with pytest.raises(InputError, match=f"^the calibrated model has NaN .* in {name}"):
        export(folder.parent / "new", model, Scheme.parse("w4a4"))
    assert not (folder.parent / "new").exists()


def test_a_clip_ratio_of_tokens_is_positive(calibrate, export, restore, tmp_path):
    """In dynamic_token mode the upper bound is a ratio on each token's largest value."""
    scheme = Scheme.parse("w4a4", activation_mode="dynamic_token")
    model, _ = calibrate(scheme)
    folder = export(tmp_path / "artifact", model, scheme)
    file, name = folder / "quantizers.safetensors", f"{LAYER}.input_quantizer.high"
    tensors = load_file(file)
    restore(tensors | {name: tensors[name] * 0}, file)
    refused(folder, "the ratio", name, "allowed: > 0")


@pytest.mark.parametrize(
    ("own", "change", "words"),
    [
        ("codes", lambda x: x[:, 1:].contiguous(), ["does not fit", "codes"]),
        ("codes", lambda x: x.to(torch.int32), ["does not fit", "codes"]),
        ("scale", lambda x: x.half(), ["does not fit", "scale"]),
        ("scale", lambda x: x.T.contiguous(), ["does not fit", "scale"]),
        ("scale", lambda x: x * NAN, ["NaN", "scale"]),
        ("scale", lambda x: x * 0, ["scale at 0; allowed: > 0"]),
        ("zero_point", lambda x: x[:1].clone(), ["does not fit", "zero_point"]),
    ],
)
def test_codes_that_cannot_be_are_refused(folder, restore, own, change, words):
    file, name = folder / "weights.packed", f"{LAYER}.{own}"
    tensors = load_file(file)
    restore(tensors | {name: change(tensors[name])}, file)
    refused(folder, LAYER, *words)


@pytest.mark.parametrize("own", ["codes", "scale", "zero_point"])
def test_codes_that_lack_a_part_are_refused(folder, restore, own):
    file = folder / "weights.packed"
    tensors = load_file(file)
    del tensors[f"{LAYER}.{own}"]
    restore(tensors, file)
    refused(folder, LAYER, "does not fit")
