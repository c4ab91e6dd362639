"""The verb plan: what it prints and writes, the plans of the documents, and what it refuses."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from qvlm_lightning.__main__ import main
from qvlm_lightning.methods.grid import PAPER_GRID

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SHAPES = CONFIGS / "models" / "shapes"
PLANS = sorted((ROOT / "docs" / "plans").glob("*.txt"))
PARTS = ("vision", "projector", "language", "embeddings", "head")


@pytest.fixture
def plan(tmp_path, capsys):
    """Plan with composed presets, and return what was written."""

    def run(shape: str = "llava-1.5-7b", family: str = "llava.Llava", *options: str) -> Any:
        out = tmp_path / "plan.json"
        rooms = ("base", "methods/cdm", "schemes/w4a4", "data/tiny")
        argv = [
            *(f"--config={CONFIGS / room}.yaml" for room in rooms),
            f"--model.family=qvlm_lightning.models.{family}",
            f"--model.family.path={SHAPES / shape}",
            "--model.family.dtype=bfloat16",
            *options,
        ]
        assert main(["plan", *argv, f"--json={out}"]) == 0
        return json.loads(out.read_text(encoding="utf-8")), capsys.readouterr()

    return run


def test_a_plan_adds_up(plan) -> None:
    values, _ = plan()
    assert values["total_parameters"] == 7_063_427_072
    assert values["total_full"] == 2 * 7_063_427_072
    for what in ("parameters", "full", "codes", "scales", "ranges", "left", "quantized"):
        assert values[f"total_{what}"] == sum(values[f"{part}_{what}"] for part in PARTS), what
    assert values["compression_ratio"] == values["total_full"] / values["total_quantized"]
    # 23 tower layers of 6, 2 of the projector, 32 decoder layers of 7
    assert values["linears_quantized"] == len(values["modules"]) == 23 * 6 + 2 + 32 * 7
    assert set(values["modules"].values()) == {"w4a4, per channel"}
    assert "lm_head" in values["ignored"]


def test_thirteen_billion_parameters_without_weights(plan) -> None:
    values, told = plan("llava-1.5-13b")
    assert 13.3e9 < values["total_parameters"] < 13.4e9
    assert values["peak_device"] > values["total_full"]
    assert "layer by layer" not in told.out
    assert told.err == ""


def test_streaming_needs_less(plan) -> None:
    whole, _ = plan()
    streamed, told = plan("llava-1.5-7b", "llava.Llava", "--model.streaming=true", "--device-gib=8")
    assert streamed["total_quantized"] == whole["total_quantized"]
    assert streamed["peak_device"] < whole["peak_device"] / 2
    assert streamed["fits_with"] == {"batch_size": 4, "micro_batches": 1}
    assert "fits with batches of 4" in told.out
    assert streamed["peak_device"] == streamed["alternatives"][0]["peak_device"]
    assert [row["batch_size"] for row in streamed["alternatives"]] == [8, 4, 2, 1]


def test_what_does_not_fit_names_the_lever(plan) -> None:
    _, told = plan("llava-1.5-7b", "llava.Llava", "--device-gib=16")
    assert "does not fit; --model.streaming=true" in told.out


def test_widths_per_part(plan) -> None:
    values, told = plan(
        "llava-1.5-7b",
        "llava.Llava",
        "--model.scheme.vision.weight_bits=8",
        "--model.scheme.vision.activation_bits=8",
        "--model.scheme.projector.weight_bits=16",
        "--model.scheme.projector.activation_bits=16",
    )
    kinds = {name.split(".")[1]: kind for name, kind in values["modules"].items()}
    assert kinds == {"vision_tower": "w8a8, per channel", "language_model": "w4a4, per channel"}
    assert values["projector_quantized"] == values["projector_full"]
    assert "part 'projector' is at 16 bits" in told.out


@pytest.mark.parametrize("scheme", ["w8a8", "w6a6", "w4a4", "w4a4_g128"])
def test_the_tower_is_quantized_by_default(scheme: str, plan) -> None:
    values, _ = plan("llava-1.5-7b", "llava.Llava", f"--config={CONFIGS / 'schemes' / scheme}.yaml")
    widths = scheme.partition("_")[0]
    tower = {k for n, k in values["modules"].items() if ".vision_tower." in n}
    assert tower == {f"{widths}, groups of 128" if "_" in scheme else f"{widths}, per channel"}


def test_groups_that_do_not_divide_fall_back_with_a_note(plan) -> None:
    scheme = f"--config={CONFIGS / 'schemes' / 'w4a4_g128.yaml'}"
    values, told = plan("qwen2.5-vl-7b", "qwen2_5_vl.Qwen25VL", scheme)
    fallen = {n for n, kind in values["modules"].items() if kind == "w4a4, per channel"}
    assert fallen == {f"model.visual.blocks.{i}.mlp.down_proj" for i in range(32)}
    assert len(values["notes"]) == 32
    assert "note (32x): model.visual.blocks.*.mlp.down_proj: group size 128 does not" in told.out


def test_siglip_falls_back_too(plan, tmp_path) -> None:
    """4304 inputs, as in SigLIP so400m."""
    config = json.loads((SHAPES / "llava-1.5-7b" / "config.json").read_text(encoding="utf-8"))
    config["vision_config"] = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    scheme = f"--config={CONFIGS / 'schemes' / 'w4a4_g128.yaml'}"
    values, _ = plan(str(tmp_path), "llava.Llava", scheme)
    fallen = {n for n, kind in values["modules"].items() if kind == "w4a4, per channel"}
    assert fallen == {f"model.vision_tower.encoder.layers.{i}.mlp.fc2" for i in range(3)}


def test_every_module_on_request(plan) -> None:
    _, told = plan("llava-1.5-7b", "llava.Llava", "--modules", "--width=140")
    assert "model.language_model.layers.31.mlp.down_proj " in told.out


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_the_plans_of_the_documents_are_those_of_today(path: Path, capsys, monkeypatch) -> None:
    """The first line of each is the command that makes it."""
    monkeypatch.chdir(ROOT)
    command, _, printed = path.read_text(encoding="utf-8").partition("\n")
    assert f"-c configs/presets/{path.stem}.yaml" in command
    argv = shlex.split(command.removeprefix("$ python -m qvlm_lightning "))
    assert main(argv) == 0
    now = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert now == printed.splitlines()


def test_every_preset_has_its_plan() -> None:
    text = (ROOT / "docs" / "large_models.md").read_text(encoding="utf-8")
    for path in PLANS:
        printed = path.read_text(encoding="utf-8")
        (device,) = re.findall(r"Device peak.*?GiB: [81]: (\d+\.\d\d)", printed)
        (ram,) = re.findall(r"; (\d+\.\d) GiB of RAM", printed)
        (row,) = re.findall(rf"^\| `{path.stem}` \|.*$", text, re.M)
        assert [device, ram] == [cell.strip() for cell in row.split("|")[3:5]]
    assert [p.stem for p in PLANS] == sorted(p.stem for p in (CONFIGS / "presets").glob("*.yaml"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens=0"], "--tokens 0 is not allowed; more than 0"),
        (["--tokens=many"], "invalid int value: 'many'; --help tells"),
        (["--device-gib=-1"], "--device-gib -1.0 is not allowed"),
        (["--model.family.path=./nowhere"], "'./nowhere' has no config.json"),
        (["--model.scheme.group_size=96"], "group_size 96 divides the inputs of no quantized"),
        (["--model.scheme.group_size=96"], "the layers have 1024, 4096, 11008 inputs"),
        (
            ["--model.scheme.group_size=2048", "--model.scheme.group_fallback=error"],
            "group_size 2048 does not divide 1024 inputs",
        ),
        (["--model.scheme.language.weight_bits=1"], "weight_bits 1 is not allowed; 2 to 8, or 16"),
        (['--model.scheme.ignore=["nothing_of_it"]'], "'nothing_of_it' matches no Linear"),
        (["--nonsense=1"], "--nonsense=1; --help lists what is allowed"),
        ([f"--model.family.path={SHAPES / 'qwen2.5-vl-7b'}"], "holds a 'qwen2_5_vl' model"),
    ],
)
def test_bad_input_is_one_sentence(options: list[str], words: str, plan, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        plan("llava-1.5-7b", "llava.Llava", *options)
    error = capsys.readouterr().err.rstrip("\n")
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert "\n" not in error
    assert words in error


def test_gradients_can_be_streamed(plan) -> None:
    veo = f"--config={CONFIGS / 'methods' / 'qvlm.yaml'}"
    options = [("--model.streaming=true",), ("--model.activation_checkpointing=true",), ()]
    peaks = [plan("llava-1.5-7b", "llava.Llava", veo, *o)[0]["peak_device"] for o in options]
    assert peaks[0] < peaks[1] / 2 < peaks[2] / 2
    fourths = (
        "--model.activation_checkpointing=true",
        "--model.micro_batches=4",
        "--device-gib=24",
    )
    # the search's candidates do not shrink with micro-batches: those of the paper's grid fit
    fourths += (f"--model.method.percentiles={PAPER_GRID}",)
    values, told = plan("llava-1.5-7b", "llava.Llava", veo, *fourths)
    assert [row["micro_batches"] for row in values["alternatives"]] == [4, 8]
    assert values["fits_with"] == {"batch_size": 8, "micro_batches": 4}
    assert "fits with batches of 8, micro_batches 4" in told.out
    _, told = plan("llava-1.5-7b", "llava.Llava", veo, "--device-gib=24")
    assert (
        "does not fit; --model.streaming=true, or --model.activation_checkpointing=true, or a meth"
        in told.out
    )


def test_a_broken_configuration_is_one_sentence(plan, capsys, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit):
        plan(str(tmp_path))
    assert f"no usable model in '{tmp_path}'" in capsys.readouterr().err
