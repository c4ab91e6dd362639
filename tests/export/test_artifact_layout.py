"""Artifacts in the layout of compressed-tensors: read here, packed and simulated, and by others."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qvlm_lightning.artifact import Artifact, load, load_artifact
from qvlm_lightning.artifact.compressed import compressed_kinds, from_compressed, to_compressed
from qvlm_lightning.calibration.checks import check_before
from qvlm_lightning.data import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.export import export_gguf, save_compressed
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS, generate
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packing import pack_codes
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.notebook import quantize
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import sha256_of
from tests.export.base_file import write_base
from tests.export.making import tiny_artifact, tiny_inputs
from tests.models.conftest import BUILDERS

LAYER = "language_model.model.layers.2.mlp.down_proj"
TARGET = {"target": "compressed-tensors"}
PER_TOKEN = {"activation_mode": "dynamic_token"}
SCHEMES = {
    "w8a8": Scheme.parse("w8a8", **PER_TOKEN, weight_symmetric=True, **TARGET),
    "w4a16 asymmetric": Scheme.parse("w4a16", group_size=32, **TARGET),
    "w3a8 bytes": Scheme.parse("w3a8", **PER_TOKEN, **TARGET),
    "w8a8 static": Scheme.parse("w8a8", weight_symmetric=True, **TARGET),
}


def made(root: Path, scheme: Scheme, dtype: str = "float32") -> tuple[Artifact, Path]:
    """Return an artifact in our own layout, and the folder of the same one in the other."""
    own = tiny_artifact(root / "own", scheme, dtype)
    save_compressed(root / "artifact", own)
    return own, root / "artifact"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(**tiny_inputs()).logits
    return found


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SCHEMES if name != "w8a8"]


@pytest.mark.parametrize("name", ["w8a8", *SLOW])
def test_both_layouts_are_one_model(tmp_path, name: str) -> None:
    own, folder = made(tmp_path, SCHEMES[name])
    again = load_artifact(folder)
    before, after = own.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert [n for n in before if not torch.equal(before[n], after[n])] == []
    assert torch.equal(logits(own.model), logits(again.model))
    packed = [load(path)[0] for path in (tmp_path / "own", folder)]
    assert torch.equal(*map(logits, packed))
    assert again.manifest["format"] == 5
    model, complaints = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(complaints.values())
    if name != "w8a8 static":  # ties: docs/export.md
        assert torch.equal(logits(model.eval()), logits(own.model))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(5, 24, 3), (33, 40, 1)])
def test_words_are_those_of_compressed_tensors(
    bits: int, outputs: int, inputs: int, groups: int
) -> None:
    """Their packing, and there and back again, for shapes that fill no word."""
    linear = QuantLinear.from_linear(
        torch.nn.Linear(inputs, outputs),
        ActivationQuantizer(16, "static_tensor", (), 1),
        True,
        bits,
        inputs // groups,
        False,
    )
    drawn = torch.Generator().manual_seed(bits)
    codes, zeros = (
        torch.randint(0, 2**bits, shape, generator=drawn)
        for shape in ((outputs, inputs), (outputs, groups))
    )
    ours = {
        "codes": pack_codes(codes, bits),
        "scale": torch.rand(outputs, groups),
        "zero_point": pack_codes(zeros.reshape(-1), bits),
    }
    signed = [(x - 2 ** (bits - 1)).to(torch.int8) for x in (codes, zeros)]
    theirs = {
        True: (pack_to_int32(signed[0], bits), pack_to_int32(signed[1], bits, packed_dim=0)),
        False: tuple(signed),
    }
    for packed, expected in theirs.items():
        kinds = compressed_kinds(linear, packed)
        made = {end: to_compressed(end, linear, packed, ours.__getitem__) for end in kinds}
        assert {end: (x.dtype, tuple(x.shape)) for end, x in made.items()} == kinds
        assert torch.equal(made["weight_packed" if packed else "weight"], expected[0])
        assert torch.equal(made["weight_zero_point"], expected[1])
        for end, value in ours.items():
            again = from_compressed(end, linear, packed, made.__getitem__)
            assert torch.equal(again, value), (end, packed)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("layout")
    return made(root, SCHEMES["w3a8 bytes"])[1]


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(stored, tmp_path / "artifact")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as fault:
        load_artifact(folder, packed=True)
    for word in words:
        assert word in str(fault.value)


def store(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put other weights into an artifact, and their hash into its manifest."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((folder / "quantization.json").read_text())
    manifest["files"]["model.safetensors"] = sha256_of(folder / "model.safetensors")
    (folder / "quantization.json").write_text(json.dumps(manifest))


def test_broken_files_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    refused(folder, "is broken", "model.safetensors is not the file that was exported")
    file.unlink()
    refused(folder, "has no model.safetensors")
    file.write_bytes(whole)
    (folder / "quantizers.stored").unlink()
    refused(folder, "has no quantizers.stored")


CHANGES = [
    ("weight", lambda x: x[:, 1:].contiguous(), "does not fit its own config, for example at"),
    ("weight", lambda x: x.float(), "does not fit its own config, for example at"),
    ("weight", lambda x: x + 100, "codes of 3 bits lie between 0 and 7"),
    ("weight_scale", lambda x: x * 0, "scale at 0; allowed: > 0"),
    ("weight_scale", lambda x: x * float("nan"), "NaN"),
    ("weight_zero_point", lambda x: None, "does not fit its own config, for example at"),
    ("weight_scale", lambda x: None, "does not fit its own config, for example at"),
]


@pytest.mark.parametrize(("own", "change", "words"), CHANGES)
def test_tensors_that_cannot_be_are_refused(
    folder: Path, own: str, change: Any, words: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    value = change(tensors.pop(f"{LAYER}.{own}"))
    store(folder, tensors | ({} if value is None else {f"{LAYER}.{own}": value}))
    refused(folder, words)


def test_the_card_says_who_loads_the_folder(stored: Path) -> None:
    text = (stored / "README.md").read_text()
    assert "**transformers loads this folder**" in text
    assert "other programs refuse" not in text
    assert "vllm serve" in text
    assert "library_name: transformers" in text
    assert "<!-- results -->" in text


def test_vllm_finds_no_other_tensors(stored: Path) -> None:
    """It reads whatever ends in .safetensors."""
    assert [file.name for file in stored.glob("*.safetensors")] == ["model.safetensors"]
    assert load_file(stored / "quantizers.stored")


def test_a_copy_is_saved_of_either_form(stored: Path, tmp_path: Path) -> None:
    for simulate in (True, False):
        model, _ = load(stored, simulate=simulate)
        model.save_pretrained(tmp_path / str(simulate))
        for file in stored.iterdir():
            assert (tmp_path / str(simulate) / file.name).read_bytes() == file.read_bytes()


def test_a_model_that_others_lack_is_refused_before_calibration() -> None:
    family = SimpleNamespace(check_export=lambda model: None, positions=lambda model: None)
    scheme = SimpleNamespace(target="compressed-tensors")
    module = SimpleNamespace(exports=True, family=family, scheme=scheme)
    with torch.device("meta"):
        model = BUILDERS["moe_llava"]().model()
    with pytest.raises(InputError, match="transformers alone cannot load"):
        check_before(module, model, [], [])


@pytest.mark.slow
def test_gguf_is_written_of_either_layout(tmp_path) -> None:
    scheme = Scheme.parse(
        "vision-w16a16_projector-w16a16_language-w4a16", weight_symmetric=True, **TARGET
    )
    own, folder = made(tmp_path, scheme, dtype="bfloat16")
    plain = Llava(str(WEIGHTS), dtype="bfloat16").load_model()
    base = write_base(tmp_path / "base.gguf", plain)
    export_gguf(own, tmp_path / "one", base)
    export_gguf(load_artifact(folder), tmp_path / "two", base)
    files = [path / "model-q4_0.gguf" for path in (tmp_path / "one", tmp_path / "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_calibration_writes_it(tmp_path) -> None:
    """What is returned, what others load and what is loaded here, from one run."""
    family = Llava(str(WEIGHTS))
    model, processor = family.load_model(), family.load_processor()
    samples = [
        Sample(s.id, s.image, s.question, s.choices, s.answer, s.family)
        for s in generate("calibration", 4)
    ]
    scheme = SCHEMES["w8a8"]
    quantize(model, processor, samples, scheme, "rtn", output=tmp_path / "run", batch_size=2)
    folder = tmp_path / "run" / "artifact"
    ours, _ = load(folder, simulate=True)
    theirs, complaints = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(complaints.values())
    assert torch.equal(logits(ours), logits(model))
    assert torch.equal(logits(theirs.eval()), logits(model))
    assert "which transformers loads too" in (tmp_path / "run" / "report.html").read_text()
