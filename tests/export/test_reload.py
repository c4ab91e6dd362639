"""What is exported is loaded by a process that cannot import this package."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvlm_lightning.artifact import load
from qvlm_lightning.export import export_compressed_tensors, save_compressed
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.export.making import small_artifact, small_batch, tiny_artifact, tiny_inputs
from tests.models.conftest import BUILDERS

W8A8 = Scheme.parse("w8a8", activation_mode="dynamic_token", weight_symmetric=True)
W4A16 = Scheme.parse("w4a16", group_size=8)
W4A4 = Scheme.parse("w4a4", activation_mode="dynamic_token", weight_symmetric=True)
OFF = PartScheme(16, 16)
DECODER = {"vision": OFF, "projector": OFF}  # the tower has Linear layers too, left alone

# name -> (model, scheme, quantized layers)
CASES = {
    "embedded_w8a8": ("embedded", W8A8, 74),
    "embedded_w4a16": ("embedded", W4A16, 74),
    "embedded_w4a4": ("embedded", W4A4, 74),
    "onevision_w8a8": ("llava_onevision", W8A8, 28),
    "onevision_w4a16": ("llava_onevision", W4A16, 28),
    "onevision_w4a4_decoder": ("llava_onevision", replace(W4A4, **DECODER), 14),
    "qwen2_vl_w8a8_decoder": ("qwen2_vl", replace(W8A8, **DECODER), 14),
    "qwen2_vl_w4a16": ("qwen2_vl", W4A16, 24),
    "dinov2_w8a8": ("llava_dinov2", W8A8, 34),
    "qwen2_vl_artifact": ("qwen2_vl", replace(W4A16, target="compressed-tensors"), 24),
}

READER = """
import json, sys
sys.modules["qvlm_lightning"] = None
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from compressed_tensors.utils.match import match_named_modules
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers import AutoTokenizer
torch.set_num_threads(1)
told, logits = {}, {}
for folder in map(Path, sys.argv[2:]):
    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    modules = {
        name
        for group in config["config_groups"].values()
        for name, _ in match_named_modules(model, group["targets"], config["ignore"])
    }
    AutoTokenizer.from_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder)
    if model.config.model_type == "llava":  # others want torchvision, for videos
        AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        inputs = load_file(folder.with_suffix(".inputs"))
        logits[folder.name] = model.eval()(**inputs).logits
    told[folder.name] = [len(modules), sorted(n for n, what in found.items() if what)]
    try:
        import qvlm_lightning
    except ImportError:
        continue
    raise SystemExit("the package can be imported")
save_file(logits, sys.argv[1])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory) -> dict[str, tuple[torch.Tensor, torch.Tensor, int, list[str]]]:
    """Return by case the logits here, the logits there, the quantized layers there and what the
    loading complained of.
    """
    root = tmp_path_factory.mktemp("reload")
    ours = {}
    for name, (kind, scheme, _) in CASES.items():
        artifact = root / f"artifact_{name}"
        if kind == "embedded":
            made, inputs = tiny_artifact(artifact, scheme), tiny_inputs()
        else:
            small = BUILDERS[kind]()
            made = small_artifact(artifact, small, scheme)
            inputs = model_inputs(small_batch(small))
        if scheme.target is None:
            export_compressed_tensors(made, root / name, artifact)
        else:
            save_compressed(root / name, made)
            assert torch.equal(
                *(load(path, simulate=True)[0](**inputs).logits for path in (artifact, root / name))
            )
        save_file(inputs, (root / name).with_suffix(".inputs"))
        with torch.no_grad():
            ours[name] = made.model(**inputs).logits
    folders = [str(root / name) for name in CASES]
    run = subprocess.run(
        [sys.executable, "-c", READER, str(root / "logits"), *folders],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    theirs, told = load_file(root / "logits"), json.loads(run.stdout.splitlines()[-1])
    return {name: (ours[name], theirs[name], *told[name]) for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_same_to_the_bit(reloaded, name: str) -> None:
    """In float32 codes, scales and sums are the same: no tolerance."""
    ours, theirs, layers, complaints = reloaded[name]
    assert complaints == []
    assert layers == CASES[name][2]
    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_cases_quantize_what_they_name(reloaded, tmp_path: Path) -> None:
    """No case compares full precision with itself."""
    small = BUILDERS["qwen2_vl"]()
    with torch.no_grad():
        plain = small.model()(**model_inputs(small_batch(small))).logits
    for name in ("qwen2_vl_w8a8_decoder", "qwen2_vl_w4a16"):
        assert not torch.allclose(reloaded[name][0], plain, atol=1e-3)
