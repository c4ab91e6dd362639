"""An artifact keeps the types of the folder that its model came from, and says who reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

import qvlm_lightning
from qvlm_lightning.artifact import load_artifact, save_artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.find import family_name
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.models.tiny_family import Tiny
from qvlm_lightning.nn.adapters import add_lora, add_norm_shifts
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import named_types
from tests.artifact.conftest import calibrate_tiny

SCHEME = Scheme.parse("w6a6")
HALF = load_file(WEIGHTS / "model.safetensors")
PROCESSOR = Llava(str(WEIGHTS)).load_processor()


def exported(folder: Path, model: nn.Module, structure: Any) -> Path:
    manifest = {"method": "rtn", "scheme": SCHEME.to_dict(), "read_by": "llava"}
    save_artifact(folder, model, PROCESSOR, manifest, stored=structure.stored)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.packed")


def plain(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights that are no codes; scales have the type that codes are computed in."""
    return {n: w for n, w in stored.items() if w.is_floating_point() and not n.endswith(".scale")}


@pytest.mark.parametrize("train", ["nothing", "lora", "norms"])
def test_weights_keep_the_type_of_their_folder(tmp_path, questions, train):
    """The embedded model is stored in float16 and computes in float32."""
    model, structure = calibrate_tiny(SCHEME)
    if train == "lora":
        add_lora(structure, 2, 0, torch.device("cpu"))
    elif train == "norms":
        add_norm_shifts(structure, torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
        expected = model(**questions).logits
    folder = exported(tmp_path / "artifact", model, structure)
    stored = weights_of(folder)
    kinds = {w.dtype for w in plain(stored).values()}
    assert kinds == {torch.float16}
    loaded, _ = qvlm_lightning.load(folder, simulate=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}, "computes as it did"
    with torch.no_grad():
        assert torch.equal(loaded(**questions).logits, expected), "J was of what is stored"
    size = sum(f.stat().st_size for f in folder.glob("*.s*"))
    assert size < 1.1 * (WEIGHTS / "model.safetensors").stat().st_size
    loaded.save_pretrained(tmp_path / "again")
    for name, weight in weights_of(tmp_path / "again").items():
        assert torch.equal(weight, stored[name])
        assert weight.dtype == stored[name].dtype


def test_a_model_whose_weights_no_folder_holds_keeps_its_own_type(tmp_path):
    """Outliers are injected when the model is loaded; half precision would round them."""
    model, structure = calibrate_tiny(SCHEME, Tiny(outlier_scale=10))
    assert not structure.stored
    stored = weights_of(exported(tmp_path / "artifact", model, structure))
    assert stored["lm_head.weight"].dtype == torch.float32


def test_a_weight_that_is_not_stored_narrower_keeps_its_type(tmp_path):
    """A folder that mixes types gives an artifact that mixes them."""
    model = Llava(str(WEIGHTS)).load_model()
    mixed = {n: w.float() if n.endswith("norm.weight") else w.half() for n, w in named(model)}
    model.save_pretrained(tmp_path / "model", state_dict=mixed)
    PROCESSOR.save_pretrained(tmp_path / "model")
    quantized, structure = calibrate_tiny(SCHEME, Llava(str(tmp_path / "model")))
    stored = weights_of(exported(tmp_path / "artifact", quantized, structure))
    kinds = {n: w.dtype for n, w in plain(stored).items()}
    assert kinds == {n: mixed[n].dtype for n in kinds}


def named(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(n, w.detach()) for n, w in model.state_dict().items() if w.is_floating_point()]


@pytest.mark.parametrize(
    "said", ["float16", {"default": "float9", "others": {}}, {"default": "float32", "others": 3}]
)
def test_types_that_are_none_are_refused(tmp_path, said):
    model, structure = calibrate_tiny(SCHEME)
    folder = exported(tmp_path / "artifact", model, structure)
    rewritten(folder, computed_in=said)
    with pytest.raises(InputError, match="computed_in is"):
        load_artifact(folder)


def test_types_are_named_once_but_for_exceptions():
    types = {"a": torch.bfloat16, "b": torch.float32, "c": torch.bfloat16, "ids": torch.int64}
    assert named_types(types) == {"default": "bfloat16", "others": {"b": "float32"}}


# --- who reads it ---------------------------------------------------------------------------------


class Own(Llava):
    """A family of one's own."""


def rewritten(folder: Path, **changes: Any) -> None:
    path = folder / "quantization.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_class_is_imported_because_a_manifest_names_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    model, structure = calibrate_tiny(SCHEME)
    folder = exported(tmp_path / "artifact", model, structure)
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'was here')!r}, 'w')")
    for key in ("read_by", "class_path"):
        for named in ("hostile.Evil", "os.system", "../../etc", "qvlm_lightning.cli.train_main"):
            rewritten(folder, **{"read_by": named, key: named})
            with pytest.raises(InputError, match="none of this package"):
                load_artifact(folder)
    assert not (tmp_path / "was here").exists()


def test_a_family_of_ones_own_is_given_by_the_caller(tmp_path):
    model, structure = calibrate_tiny(SCHEME, Own(str(WEIGHTS)))
    folder = exported(tmp_path / "artifact", model, structure)
    rewritten(folder, read_by=family_name(Own))
    with pytest.raises(InputError, match="if you trust that class, give it: load"):
        qvlm_lightning.load(folder)
    assert qvlm_lightning.load(folder, Own)[0].config.model_type == "llava"


def test_an_artifact_of_an_earlier_version_is_read_by_the_family_it_names(tmp_path):
    model, structure = calibrate_tiny(SCHEME)
    folder = exported(tmp_path / "artifact", model, structure)
    manifest = json.loads((folder / "quantization.json").read_text())
    del manifest["read_by"]
    for older in ({}, {"class_path": "qvlm_lightning.models.llava.Llava"}):
        (folder / "quantization.json").write_text(json.dumps(manifest | older))
        assert load_artifact(folder).manifest["method"] == "rtn"


# --- elsewhere ------------------------------------------------------------------------------------


def test_what_is_saved_elsewhere_is_refused_elsewhere(tmp_path):
    """Neither the artifact nor what ``save_pretrained`` of the quantized model writes is loaded."""
    model, structure = calibrate_tiny(SCHEME)
    loaded, _ = qvlm_lightning.load(exported(tmp_path / "artifact", model, structure))
    loaded.save_pretrained(tmp_path / "saved")
    for folder in ("artifact", "saved"):
        with pytest.raises(OSError, match="no file named"):
            AutoModelForImageTextToText.from_pretrained(tmp_path / folder)
    with pytest.raises(InputError, match="push_to_hub; allowed is a folder"):
        loaded.save_pretrained(tmp_path / "third", push_to_hub=True)


def test_an_artifact_of_the_hub_is_downloaded(tmp_path, monkeypatch):
    model, structure = calibrate_tiny(SCHEME)
    folder = exported(tmp_path / "artifact", model, structure)
    asked = []

    def snapshot_download(name: str) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert qvlm_lightning.load("someone/llava-w6a6")[0].config.model_type == "llava"
    assert asked == ["someone/llava-w6a6"]


def test_an_artifact_that_the_hub_has_not_is_one_sentence(monkeypatch):
    def snapshot_download(name: str) -> str:
        raise OSError("no network\nmore of it")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"no folder 'someone/none', and .*: no network"):
        qvlm_lightning.load("someone/none")
