"""``qvlm_lightning.quantize``: the calibration without a configuration; X4 (docs/paper.md)."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import qvlm_lightning
from qvlm_lightning.cli import train_main
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import LeastSquares
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.notebook import METHODS, PRESETS
from qvlm_lightning.quant.scheme import Scheme

CONFIGS = Path(__file__).parents[2] / "configs"


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationQuantizer)}


def ratios(model: nn.Module, tower: str) -> Tensor:
    """Return every learnable factor of a tower in one vector."""
    names = ("low_ratio", "high_ratio", "clip_ratio")
    found = [p for n, p in model.named_parameters() if tower in n and n.endswith(names)]
    return torch.cat([p.detach().flatten() for p in found])


@pytest.mark.parametrize("method", [*METHODS, *PRESETS])
def test_every_method_quantizes_the_model_in_place(
    model, original, processor, samples, question, method, small
):
    result = qvlm_lightning.quantize(model, processor, samples, method=method, **small)
    assert result is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    sites = quantizers(model)
    assert len(sites) == 2 * 4 + 2 + 2 * 4
    assert all(q.enabled and q.low.isfinite().all() and q.low <= q.high for q in sites.values())
    logits, exact = model(**question).logits, original(**question).logits
    assert logits.isfinite().all()
    assert not torch.equal(logits, exact)
    if method in set(PRESETS) - {"mse", "moving_average"}:
        return  # they change weights, which the quantizers of layers do not give back
    for q in [*sites.values(), *(m for m in model.modules() if isinstance(m, QuantLinear))]:
        q.enabled = False
    assert torch.equal(model(**question).logits, exact), "weights are left as they were"


class FirstLayer(Llava):
    """A family of one's own: one that knows the decoder's first layer only."""

    def decoder_layers(self, model):
        return super().decoder_layers(model)[:1]


@pytest.mark.parametrize("family", [FirstLayer, f"{__name__}.FirstLayer"])
def test_a_family_of_ones_own_is_taken(model, processor, samples, family, small):
    qvlm_lightning.quantize(model, processor, samples, method="rtn", family=family, **small)
    assert len(quantizers(model)) == 2 * 4 + 2 + 4


def test_a_family_that_is_none_is_named(model, processor, samples, small):
    with pytest.raises(InputError, match=r"'torch\.nn\.Linear' is not a family of models"):
        qvlm_lightning.quantize(model, processor, samples, family="torch.nn.Linear", **small)


def test_x4_presets_differ_in_what_they_decide(model, processor, samples, tmp_path, small):
    """Blocks come with cross-layer dependency, learned bounds with visual-encoder optimisation."""
    found = {}
    for method in METHODS:
        changed = copy.deepcopy(model)
        root = tmp_path / method
        qvlm_lightning.quantize(changed, processor, samples, method=method, output=root, **small)
        report = json.loads((root / "report.json").read_text())
        found[method] = report
        assert report["method"] == method
        joint = method in ("cdm", "qvlm")
        assert bool(report["dependency"]) == joint
        assert all(("joint" in block) == joint for block in report["objectives"])
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
            [b for b in found[m]["objectives"] if b["tower"] == "vision"] for m in (one, other)
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
        search = preset["model"]["init_args"]["method"]["class_path"].rpartition(".")[2]
        module = preset["model"]["class_path"].rpartition(".")[2]
        assert preset["model"]["init_args"]["name"] == name
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


def test_the_command_line_decides_the_same(model, processor, samples, tmp_path, small):
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
    qvlm_lightning.quantize(model, processor, samples, "w4a4", "qvlm", output=notebook, **small)
    reports = [
        json.loads((root / "report.json").read_text()) for root in (tmp_path / "program", notebook)
    ]
    assert set(reports[0]) == set(reports[1])
    assert reports[0]["percentiles"] == reports[1]["percentiles"]
    for key in set(reports[0]) - {"model", "search", "spent"}:
        assert reports[0][key] == reports[1][key], key
    for file in ("quantizers.safetensors", "weights.packed"):
        assert (tmp_path / "program" / "artifact" / file).read_bytes() == (
            notebook / "artifact" / file
        ).read_bytes()


def test_x6_what_is_kept_has_the_logits_of_what_is_returned(
    model, processor, samples, question, tmp_path, small
):
    scheme = Scheme.parse("w4a8", activation_mode="static_channel")
    options = {"scheme": scheme, "method": "veo", "output": tmp_path / "run", **small}
    qvlm_lightning.quantize(model, processor, samples, **options)
    loaded, _ = qvlm_lightning.load(tmp_path / "run" / "artifact", simulate=True)
    assert torch.equal(loaded(**question).logits, model(**question).logits)


def test_nothing_is_kept_unless_asked_for_and_no_foreign_note_is_heard(
    model, processor, samples, tmp_path, monkeypatch, small, caplog, recwarn, capsys
):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        qvlm_lightning.quantize(model, processor, samples, method="rtn", **small)
    assert not list(tmp_path.iterdir())
    assert [str(w.message) for w in recwarn] + caplog.messages == []
    assert "Epoch" not in capsys.readouterr().out, "Lightning's bar beside ours"


def test_x3_the_same_seed_gives_the_same_model(model, processor, samples, small):
    states = []
    for seed in (3, 3, 4):
        changed = copy.deepcopy(model)
        torch.manual_seed(len(states))  # what was drawn before must not matter
        options = {**small, "seed": seed}
        qvlm_lightning.quantize(changed, processor, samples, method="qvlm", **options)
        states.append(changed.state_dict())
    same, other = (
        [torch.equal(states[0][name], state[name]) for name in states[0]] for state in states[1:]
    )
    assert all(same)
    assert not all(other)


def test_objective_candidates_and_method_are_those_given(
    model, processor, samples, tmp_path, small
):
    options = {"objective": "plain", "candidates": [1.0, 0.9]}
    small["scheme"] = "w4a4"
    other = copy.deepcopy(model)
    root = tmp_path / "a"
    qvlm_lightning.quantize(
        model, processor, samples, method="sequential", output=root, **options, **small
    )
    report = json.loads((root / "report.json").read_text())
    assert {name: report[name] for name in options} == options
    root = tmp_path / "b"
    method = LeastSquares([1.0, 0.95])
    qvlm_lightning.quantize(other, processor, samples, method=method, output=root, **small)
    report = json.loads((root / "report.json").read_text())
    assert (report["method"], report["candidates"]) == ("mse", [1.0, 0.95])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": LeastSquares(), "candidates": [1.0]}, "has its own"),
        ({"method": "rtn", "candidates": [1.0, 0.9]}, "rtn chooses nothing"),
        ({"method": "cdm", "candidates": [0.9, 0.8]}, "fall from 1"),
        ({"method": "cdm", "objective": "cosine"}, "'cosine' is not known"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    model, processor, samples, options, sentence, small
):
    with pytest.raises(qvlm_lightning.InputError, match=sentence):
        qvlm_lightning.quantize(model, processor, samples, **options, **small)
    assert not quantizers(model)


def test_what_an_artifact_needs_is_checked_before_the_work(
    model, original, processor, samples, tmp_path, small
):
    """Settings of generation that contradict each other are not saved by transformers."""
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.9
    with pytest.raises(InputError, match=r"^the generation_config of the model cannot be saved"):
        qvlm_lightning.quantize(
            model, processor, samples, method="rtn", output=tmp_path / "run", **small
        )
    assert not (tmp_path / "run").exists()
    kinds = [(n, type(m)) for n, m in original.named_modules()]
    assert [(n, type(m)) for n, m in model.named_modules()] == kinds, "left as it was"


def test_what_is_said_of_images_stands_in_the_report(model, processor, samples, tmp_path, small):
    deep = replace(samples[0], image=Image.new("I;16", (48, 48), 40_000))
    given = [deep, *samples[1:]]
    qvlm_lightning.quantize(model, processor, given, method="rtn", output=tmp_path, **small)
    notes = json.loads((tmp_path / "report.json").read_text())["notes"]
    assert [note[:50] for note in notes] == ["1 calibration images have grey values of 16 bits, "]
