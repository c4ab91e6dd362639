"""What ``qvlm_lightning.quantize`` refuses, and what importing the package does not do."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import qvlm_lightning
from qvlm_lightning import InputError
from qvlm_lightning.quant.scheme import Scheme

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "magic"}, "'magic' is not known; allowed: rtn, sequential"),
    "objective": ({"method": "gptq", "objective": "plain"}, "gptq has those of its preset"),
    "scheme": ({"scheme": "w4"}, "'w4' cannot be read"),
    "width": ({"scheme": "w1a4"}, "weight_bits 1"),
    "off": ({"scheme": "fp"}, "leaves them at 16 bits"),
    "epochs": ({"epochs": 0}, "epochs 0"),
    "search pairs": ({"search_pairs": 0}, "search_pairs 0 is not allowed"),
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
def test_a_mistake_is_named_before_the_model_is_touched(
    model, original, processor, samples, name, small
):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        qvlm_lightning.quantize(model, processor, samples, **{**small, **options})
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
    model, original, processor, samples, name, small
):
    change, message = SAMPLES[name]
    with pytest.raises(InputError, match=message):
        qvlm_lightning.quantize(model, processor, change(samples), method="qvlm", **small)
    assert left_alone(model, original)


def test_another_kind_of_model_is_refused(processor, samples):
    with pytest.raises(InputError, match=r"'Linear' model was given; allowed: .*'llava'"):
        qvlm_lightning.quantize(nn.Linear(2, 2), processor, samples)


def test_a_quantized_model_is_refused(model, processor, samples, small):
    qvlm_lightning.quantize(model, processor, samples, method="rtn", **small)
    with pytest.raises(InputError, match="quantized already"):
        qvlm_lightning.quantize(model, processor, samples, method="rtn", **small)


def test_activations_that_are_not_finite_are_named(model, processor, samples, small):
    with torch.no_grad():
        mlp = model.model.language_model.layers[1].mlp
        for linear in (mlp.up_proj, mlp.gate_proj):  # finite; their product is not
            linear.weight[0] *= 1e38
    with pytest.raises(InputError, match=r"layers\.1\.down_in.*NaN"):
        qvlm_lightning.quantize(model, processor, samples, method="rtn", **small)


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
