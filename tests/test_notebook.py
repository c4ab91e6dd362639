"""``qvlm_lightning.quantize``: the calibration without a configuration; X4 (docs/paper.md)."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import qvlm_lightning
from qvlm_lightning import InputError
from qvlm_lightning.cli import train_main
from qvlm_lightning.data import Sample, TinyVQA
from qvlm_lightning.data.collate import collate
from qvlm_lightning.models import Llava
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.notebook import METHODS
from qvlm_lightning.quant.scheme import Scheme

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL: dict[str, Any] = {"epochs": 1, "search_pairs": 2, "batch_size": 2, "seed": 3}


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    data = TinyVQA(Llava(str(WEIGHTS)), calibration_pairs=4, search_pairs=2, seed=3)
    return data.calibration_samples()


@pytest.fixture(scope="module")
def question(samples, processor) -> dict[str, Tensor]:
    return model_inputs(collate(samples, processor, with_answer=True))


@pytest.fixture(scope="module")
def original(processor) -> nn.Module:
    """A random LLaVA of 2 + 2 layers for the processor of the embedded model."""
    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=48,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(processor.image_token),
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture
def model(original) -> nn.Module:
    return copy.deepcopy(original)


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationQuantizer)}


def ratios(model: nn.Module, tower: str) -> Tensor:
    """Return every learnable factor of a tower in one vector."""
    names = ("low_ratio", "high_ratio", "clip_ratio")
    found = [p for n, p in model.named_parameters() if tower in n and n.endswith(names)]
    return torch.cat([p.detach().flatten() for p in found])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_quantizes_the_model_in_place(
    model, original, processor, samples, question, method
):
    result = qvlm_lightning.quantize(model, processor, samples, method=method, **SMALL)
    assert result is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    sites = quantizers(model)
    assert len(sites) == 2 * 4 + 2 + 2 * 4
    assert all(q.enabled and q.low.isfinite().all() and q.low <= q.high for q in sites.values())
    logits, exact = model(**question).logits, original(**question).logits
    assert logits.isfinite().all()
    assert not torch.equal(logits, exact)
    for q in [*sites.values(), *(m for m in model.modules() if isinstance(m, QuantLinear))]:
        q.enabled = False
    assert torch.equal(model(**question).logits, exact), "weights are left as they were"


def test_x4_presets_differ_in_what_they_decide(model, processor, samples, tmp_path):
    """Blocks come with cross-layer dependency, learned bounds with visual-encoder optimisation."""
    found = {}
    for method in METHODS:
        changed = copy.deepcopy(model)
        root = tmp_path / method
        qvlm_lightning.quantize(changed, processor, samples, method=method, output=root, **SMALL)
        report = json.loads((root / "report.json").read_text())
        found[method] = report
        assert report["method"] == method
        joint = method in ("cdm", "qvlm")
        assert bool(report["dependency"]) == joint
        assert all(("joint" in block) == joint for block in report["objective"])
        longest = max(b - a for t in report["partition"].values() for a, b in t)
        assert joint or longest == 0
        learned = method in ("veo", "qvlm")
        assert len(report["loss"]) == learned
        for tower in ("vision_tower", "multi_modal_projector"):
            assert ratios(changed, tower).eq(1).all() != learned
        assert ratios(changed, "language_model").eq(1).all()
        assert (method == "rtn") == (set(report["percentiles"].values()) == {1.0})
    # until the first step all do the same to the tower
    for one, other in (("sequential", "veo"), ("cdm", "qvlm")):
        blocks = [
            [b for b in found[m]["objective"] if b["tower"] == "vision"] for m in (one, other)
        ]
        assert blocks[0] == blocks[1]


def test_x4_presets_are_four_configurations():
    """The rows of the paper's Table 1, as files: two switches, each on or off."""
    switches = {}
    for name in ("sequential", "cdm", "veo", "qvlm"):
        preset = yaml.safe_load((CONFIGS / "methods" / f"{name}.yaml").read_text())
        callbacks = {
            c["class_path"].rpartition(".")[2]: c.get("init_args", {})
            for c in preset["trainer"]["callbacks+"]
        }
        search = callbacks["PercentileSearch"]["method"]["class_path"].rpartition(".")[2]
        module = preset["model"]["class_path"].rpartition(".")[2]
        assert callbacks["ArtifactExport"] == {"method": name}
        assert search == (
            "JointSearch" if "EntropyRepartition" in callbacks else "SequentialSearch"
        )
        switches[name] = (search == "JointSearch", module == "VisualEncoderOptimization")
    assert switches == {
        "sequential": (False, False),
        "cdm": (True, False),
        "veo": (False, True),
        "qvlm": (True, True),
    }


def test_the_command_line_decides_the_same(model, processor, samples, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    files = ("base", "methods/qvlm", "schemes/w4a4", "models/tiny", "data/tiny")
    train_main(
        [
            "fit",
            *(f"--config={CONFIGS / name}.yaml" for name in files),
            "--model.init_args.family=qvlm_lightning.models.Llava",
            f"--model.init_args.family.init_args.path={folder}",
            "--data.init_args.calibration_pairs=4",
            "--data.init_args.search_pairs=2",
            "--data.init_args.batch_size=2",
            "--data.init_args.seed=3",
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path / 'program'}",
            "--model.init_args.epochs=1",
        ]
    )
    notebook = tmp_path / "notebook"
    qvlm_lightning.quantize(model, processor, samples, output=notebook, **SMALL)
    reports = [
        json.loads((root / "report.json").read_text()) for root in (tmp_path / "program", notebook)
    ]
    assert set(reports[0]) == set(reports[1])
    assert reports[0]["percentiles"] == reports[1]["percentiles"]
    for key in set(reports[0]) - {"model", "search"}:
        assert reports[0][key] == reports[1][key], key
    for file in ("quantizers.safetensors", "model.safetensors"):
        assert (tmp_path / "program" / "artifact" / file).read_bytes() == (
            notebook / "artifact" / file
        ).read_bytes()


def test_x6_what_is_kept_has_the_logits_of_what_is_returned(
    model, processor, samples, question, tmp_path
):
    scheme = Scheme.parse("w4a8", activation_mode="static_channel")
    options = {"scheme": scheme, "method": "veo", "output": tmp_path / "run", **SMALL}
    qvlm_lightning.quantize(model, processor, samples, **options)
    loaded, _ = qvlm_lightning.load(tmp_path / "run" / "artifact")
    assert torch.equal(loaded(**question).logits, model(**question).logits)


def test_nothing_is_kept_unless_asked_for(model, processor, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qvlm_lightning.quantize(model, processor, samples, method="rtn", **SMALL)
    assert not list(tmp_path.iterdir())


def test_x3_the_same_seed_gives_the_same_model(model, processor, samples):
    states = []
    for seed in (3, 3, 4):
        changed = copy.deepcopy(model)
        torch.manual_seed(len(states))  # what was drawn before must not matter
        options = {**SMALL, "seed": seed}
        qvlm_lightning.quantize(changed, processor, samples, method="qvlm", **options)
        states.append(changed.state_dict())
    same, other = (
        [torch.equal(states[0][name], state[name]) for name in states[0]] for state in states[1:]
    )
    assert all(same)
    assert not all(other)


# --- mistakes -------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "gptq"}, "'gptq' is not known; allowed: rtn, sequential"),
    "scheme": ({"scheme": "w4"}, "'w4' cannot be read"),
    "width": ({"scheme": "w1a4"}, "weight_bits 1"),
    "off": ({"scheme": "fp"}, "nothing to quantize"),
    "epochs": ({"epochs": 0}, "epochs 0"),
    "search pairs": ({"search_pairs": 5}, "search_pairs is 5"),
    "batch size": ({"batch_size": 0}, "batch_size is 0"),
    "ignore": ({"scheme": Scheme.parse("w4a4", ignore=("qkv",))}, "'qkv' matches no Linear layer"),
    "group": (
        {"scheme": Scheme.parse("w4a4", group_size=5)},
        "group_size 5 divides the inputs of no",
    ),
}


def left_alone(model: nn.Module, original: nn.Module) -> bool:
    return [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in original.named_modules()
    ]


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_named_before_the_model_is_touched(model, original, processor, samples, name):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        qvlm_lightning.quantize(model, processor, samples, **{**SMALL, **options})
    assert left_alone(model, original)


SAMPLES = {
    "none": (lambda s: [], "calibration"),
    "no answer": (lambda s: [replace(s[0], answer=""), *s[1:]], "has no answer"),
    "twice": (lambda s: [s[0], s[0], *s[2:]], "twice"),
    "no image": (lambda s: [replace(x, image=None) for x in s], "has an image"),
    "a path": (lambda s: [replace(s[0], image="cat.png"), *s[1:]], "is a str"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_unusable_samples_are_named_before_the_model_is_touched(
    model, original, processor, samples, name
):
    change, message = SAMPLES[name]
    with pytest.raises(InputError, match=message):
        qvlm_lightning.quantize(model, processor, change(samples), **SMALL)
    assert left_alone(model, original)


def test_another_kind_of_model_is_refused(processor, samples):
    with pytest.raises(InputError, match=r"'Linear' model was given; allowed: .*'llava'"):
        qvlm_lightning.quantize(nn.Linear(2, 2), processor, samples)


def test_a_quantized_model_is_refused(model, processor, samples):
    qvlm_lightning.quantize(model, processor, samples, method="rtn", **SMALL)
    with pytest.raises(InputError, match="QuantLinear"):
        qvlm_lightning.quantize(model, processor, samples, method="rtn", **SMALL)


def test_activations_that_are_not_finite_are_named(model, processor, samples):
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layers\.1\.down_in.*NaN"):
        qvlm_lightning.quantize(model, processor, samples, method="rtn", **SMALL)


def test_importing_the_package_is_light():
    code = (
        "import sys, qvlm_lightning; print(sorted(qvlm_lightning.__all__), sorted("
        "{'torch', 'transformers', 'lightning', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['InputError', 'load', 'quantize'] []"


def test_an_unknown_attribute_is_an_ordinary_mistake():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qvlm_lightning.quantise
