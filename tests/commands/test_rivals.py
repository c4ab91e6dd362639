"""Rows of other tools: which are planned, what is refused, and a run with stand-ins for them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from qvlm_lightning.commands import _rival_environment as environments
from qvlm_lightning.commands import leaderboard
from qvlm_lightning.commands._leaderboard_estimate import ROUGH, estimated
from qvlm_lightning.commands._leaderboard_plan import parse_leaderboard, table_plans
from qvlm_lightning.commands._rival_plan import RIVALS, TOOLS, left_out, planned_rivals
from qvlm_lightning.commands._rival_run import RivalsRun, run_program
from qvlm_lightning.data.tiny import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Tiny
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from tests.commands.test_leaderboard import options
from tests.commands.test_table import calibrations, evaluated  # noqa: F401

LLMCOMPRESSOR = os.environ.get("QVLM_LLMCOMPRESSOR_PYTHON", "")
FAKE = Path(__file__).with_name("fake_rival.py")
TOKEN = {"method": "rtn", "scheme": "w4a4", "activation_mode": "dynamic_token"}


@pytest.fixture(autouse=True)
def _no_environments(monkeypatch):
    for tool in TOOLS.values():
        monkeypatch.delenv(tool.variable, raising=False)


@pytest.fixture
def fake(tmp_path) -> Path:
    """The stand-in as an executable; ``calls`` beside it has a line per call."""
    path = tmp_path / "fake" / "python"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    path.chmod(0o755)
    return path


def runs(fake: Path) -> list[str]:
    """Arguments of the calls that were no question for versions."""
    lines = (fake.parent / "calls").read_text().splitlines()
    return [line for line in lines if not line.endswith("--versions")]


def plan_of(root: Path, *tables, **changes):
    return parse_leaderboard(options(root, *tables, **changes))


def test_true_asks_for_all_and_a_section_for_some(tmp_path):
    table = {"variants": ["rtn w4a16_language"]}
    assert plan_of(tmp_path, table).others is None
    assert plan_of(tmp_path, table, rivals="false").others is None
    assert plan_of(tmp_path, table, rivals="true").others.rows == list(RIVALS)
    given = {"rows": ["autoround"], "pythons": {"autoround": "x"}}
    assert plan_of(tmp_path, table, rivals=given).others.pythons == {"autoround": "x"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rows": ["gptq"]}, "rivals.rows has 'gptq'; allowed are llmcompressor-rtn, "),
        ({"pythons": {"x": "y"}}, "rivals.pythons has 'x'; allowed are llmcompressor, autoround"),
        ({"rows": []}, r"rivals.rows is \[\]; give each row once, at least one"),
        ({"rows": ["autoround"] * 2}, "give each row once"),
    ],
)
def test_what_is_wrong_with_the_section_is_one_sentence(tmp_path, given, sentence):
    with pytest.raises(InputError, match=sentence):
        plan_of(tmp_path, {"variants": ["rtn w4a16"]}, rivals=given)


@pytest.mark.parametrize(
    ("name", "scheme", "reason"),
    [
        ("llmcompressor-gptq", Scheme.parse("w4a16"), ""),
        ("llmcompressor-gptq", Scheme.parse("w4a4", activation_mode="dynamic_token"), ""),
        ("llmcompressor-gptq", Scheme.parse("w4a4"), "its activations are quantized per token"),
        ("llmcompressor-rtn", Scheme.parse("w16a8", activation_mode="dynamic_token"), "bits"),
        ("llmcompressor-rtn", Scheme.parse("w4a16", ignore=["x"]), "patterns to ignore are not"),
        ("llmcompressor-rtn", Scheme.parse("w4a16", sink="prefix"), "sinks are not passed on"),
        (
            "llmcompressor-rtn",
            Scheme.parse("w4a16", overrides={"x": {"weight_bits": 8}}),
            "overrides",
        ),
        ("autoround", Scheme.parse("w4a16"), "it is asked for the decoder only"),
        ("autoround", Scheme.parse("vision-w16a16_projector-w16a16_language-w4a16"), ""),
        ("autoround", Scheme.parse("vision-w16a16_projector-w16a16_language-w5a16"), "2, 3, 4, 8"),
    ],
)
def test_a_tool_has_the_schemes_that_it_can(name, scheme, reason):
    found = RIVALS[name].refusal(scheme)
    assert (reason in found) if reason else found == ""


def test_rows_are_those_of_every_scheme_seed_and_stress_once(tmp_path):
    tables = [
        {"variants": ["rtn w4a16", "gptq w4a16", "rtn w4a4", TOKEN], "seeds": [0, 1]},
        {"variants": ["awq w4a16"], "seeds": [0, 2]},
        {"variants": ["rtn w4a16_language"], "sink_scales": [9.0]},
    ]
    plan = plan_of(tmp_path, *tables, rivals={"rows": ["llmcompressor-gptq", "autoround"]})
    rows = planned_rivals(table_plans(plan), plan.others)
    asked = [(r.variant.title, r.seed, bool(r.stress)) for r in rows]
    assert asked == [
        ("llmcompressor-gptq w4a16", 0, False),
        ("llmcompressor-gptq w4a16", 1, False),
        ("llmcompressor-gptq w4a4 dynamic_token", 0, False),
        ("llmcompressor-gptq w4a4 dynamic_token", 1, False),
        ("llmcompressor-gptq w4a16", 2, False),
        ("llmcompressor-gptq w4a16_language", 0, True),
        ("autoround w4a16_language", 0, True),
    ]
    assert left_out(table_plans(plan), plan.others) == [
        "autoround w4a16 is left out: it is asked for the decoder only",
        "llmcompressor-gptq w4a4 is left out: its activations are quantized per token",
        "autoround w4a4 is left out: it is asked for weights only",
        "autoround w4a4 dynamic_token is left out: it is asked for weights only",
    ]


def test_the_estimate_counts_rows_and_environments(tmp_path, capsys):
    given = options(tmp_path, {"variants": ["rtn w4a16"]}, rivals="true", pairs=64, questions=100)
    assert leaderboard.main([*given, "--estimate_only=true"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("autoround w4a16 is left out")
    assert "3 rows, 0 of them calibrated" in told
    assert "environment of llmcompressor    1 x ~300 s" in told
    assert "environment of autoround" not in told, "it has no row"
    assert "environments of other tools: about 2 GB, from the network" in told
    assert not (tmp_path / "environments").exists()
    plan = parse_leaderboard(given)
    tables = table_plans(plan)
    rows = planned_rivals(tables, plan.others)
    alone, both = estimated(tables), estimated(tables, rows)
    more = sum(ROUGH[f"llmcompressor-{x}"] for x in ("rtn", "gptq"))
    assert both.seconds - alone.seconds == pytest.approx(more + 2 * 100 * 0.006)
    rows[1].folder.mkdir(parents=True)
    (rows[1].folder / "rival.json").write_text(json.dumps({"process": {"seconds": 70.0}}))
    found = estimated(tables, rows)
    assert (found.rows, found.calibrated) == (3, 1)
    assert "run llmcompressor-gptq" not in found.kinds


def test_without_any_scheme_that_they_can_have_rivals_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"rivals can have none of the schemes: .*w4a4 is left"):
        leaderboard.main(options(tmp_path, {"variants": ["rtn w4a4"]}, rivals="true"))


def test_a_run_with_a_stand_in_and_again(calibrations, evaluated, fake, tmp_path, monkeypatch):  # noqa: F811
    root = tmp_path / "run"
    section = {"rows": ["llmcompressor-gptq"], "pythons": {"llmcompressor": str(fake)}}
    given = options(root, {"variants": ["rtn w4a16"], "seeds": [3]}, rivals=section, questions=12)
    assert leaderboard.main(given) == 0
    (call,) = runs(fake)
    folder = root / "tiny-k1" / "seed3" / "llmcompressor-gptq-w4a16"
    assert call.endswith(f"rivals/run_llmcompressor.py {folder}")
    job = json.loads((folder / "job.json").read_text())
    data = TinyVQA(Tiny(), calibration_pairs=4, search_pairs=2, batch_size=1, seed=3)
    given_pairs = load_file(job["inputs"])
    for place, batch in enumerate(data.calibration_batches()):
        for name, value in model_inputs(batch).items():
            assert torch.equal(given_pairs.pop(f"{place:05d}/{name}"), value)
    assert not given_pairs
    assert len(job["layers"]) == 74
    assert all(x["group_size"] is None and x["weight_bits"] == 4 for x in job["layers"].values())
    made = json.loads((folder / "rival.json").read_text())
    assert made["key"]["seed"] == 3
    assert made["process"]["peak_bytes"] < 1 << 29, "of the stand-in, not of this process"
    lines = {line["method"]: line for line in csv.DictReader((root / "leaderboard.csv").open())}
    mine = lines["llmcompressor-gptq"]
    assert mine["program"] == "llmcompressor 1.2.3, 4 pairs"
    assert (mine["seeds"], mine["ours"], lines["rtn"]["program"]) == ("3", "False", "")
    assert (mine["calibration_seconds"], mine["calibration_cpu_seconds"]) == ("5.5", "4.25")
    assert float(mine["peak_bytes"]) == made["process"]["peak_bytes"]
    assert mine["kl_minus_rtn"] != ""
    assert float(mine["kl"]) > 0
    assert "llmcompressor 1.2.3, 4 pairs" in (root / "leaderboard.md").read_text()
    stored = json.loads((root / "results.json").read_text())["rows"]
    own = [r for r in stored if r["variant"] == "llmcompressor-gptq" and r["task"] == "overall"]
    assert {"kl", "accuracy", "calibration_cpu_seconds", "kl_minus_rtn"} <= {
        r["metric"] for r in own
    }
    evaluated.clear()
    assert leaderboard.main(given) == 0
    assert (len(runs(fake)), evaluated) == (1, [])
    plan = parse_leaderboard(given)
    (row,) = planned_rivals(table_plans(plan), plan.others)
    assert RivalsRun([row], plan.others, root)._made(row)
    monkeypatch.setenv("FAKE_VERSION", "1.2.4")
    assert not RivalsRun([row], plan.others, root)._made(row), "another version is run again"


def test_a_program_that_fails_is_one_sentence(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAULT", "crash")
    with pytest.raises(InputError, match=r"the row failed: ValueError: no such layer .all of"):
        run_program([str(fake), "program"], tmp_path, "the row")
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert 0 < costs["cpu_seconds"] < 60


def test_a_python_without_the_tool_is_refused_before_work(tmp_path, monkeypatch):
    tool = TOOLS["llmcompressor"]
    plan = SimpleNamespace(pythons={})
    monkeypatch.setenv(tool.variable, str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"none' cannot run run_llmcompressor.py; give the Python"):
        environments.pythons([tool], plan, tmp_path)
    monkeypatch.setenv(tool.variable, sys.executable)
    monkeypatch.setattr(environments, "PROGRAMS", tmp_path)
    (tmp_path / tool.program).write_text('print(\'{"llmcompressor": null, "torch": "2"}\')')
    with pytest.raises(InputError, match=r"lacks llmcompressor; give another one by rivals\."):
        environments.pythons([tool], plan, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not LLMCOMPRESSOR, reason="QVLM_LLMCOMPRESSOR_PYTHON names no environment")
def test_llmcompressor_itself_rounds_as_we_do_and_its_gptq_on_the_same_grid(tmp_path):
    pythons = {"llmcompressor": LLMCOMPRESSOR}
    section = {"rows": ["llmcompressor-rtn", "llmcompressor-gptq"], "pythons": pythons}
    table = {"variants": ["rtn w8a8_dynamic_sym", "rtn w4a16_language"]}
    plan = plan_of(tmp_path, table, rivals=section)
    rows = planned_rivals(table_plans(plan), plan.others)
    run = RivalsRun(rows, plan.others, tmp_path)
    for row in rows:
        run._make(row)
        weights = load_file(row.folder / "weights.safetensors")
        model, scheme = Tiny().load_model(), row.scheme
        structure = quantize_model(model, Tiny(), scheme)
        structure.enable(True)
        linears = {n: x for site in structure.sites for n, x in site.linears.items()}
        assert weights.keys() == linears.keys()
        for name, linear in linears.items():
            ours = linear.quantized_weight()
            if row.rival.method == "rtn":
                # a value between two codes may go either way
                assert float(((weights[name] - ours).abs() > 1e-5).double().mean()) < 1e-3
            else:
                most = 2**linear.weight_quantizer.num_bits
                assert max(len(channel.unique()) for channel in weights[name]) <= most
                assert not torch.allclose(weights[name], ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=list(TOOLS))
def test_a_program_says_what_its_environment_has(tool):
    command = [sys.executable, str(environments.PROGRAMS / tool.program), "--versions"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert re.match(r"\d", told["torch"])
    assert told[tool.package] is None or re.match(r"\d", told[tool.package])


def test_an_environment_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    tool = TOOLS["autoround"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1.1e9))
    with pytest.raises(InputError, match="environments of autoround need 3 GB of disk while they"):
        environments.pythons([tool], SimpleNamespace(pythons={}), tmp_path)
    assert not (tmp_path / "environments").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e12))
    steps = []

    def run(command, stdout, **_):
        steps.append(command)
        if "install" in command:
            stdout.write("Collecting torch\nERROR: no connection\n")
        return SimpleNamespace(returncode=int("install" in command))

    monkeypatch.setattr(environments.subprocess, "run", run)
    with pytest.raises(InputError, match="cannot be made: ERROR: no connection"):
        environments.pythons([tool], SimpleNamespace(pythons={}), tmp_path)
    assert [c[-1] for c in steps] == [str(tmp_path / "environments" / "autoround"), "torch==2.13.0"]
    assert environments.to_be_made([tool], SimpleNamespace(pythons={}), tmp_path) == [tool]


def test_an_environment_is_made_once_from_its_requirements(tmp_path, monkeypatch):
    tool, steps = TOOLS["llmcompressor"], []

    def run(command, **_):
        steps.append(command)
        return SimpleNamespace(returncode=0, stdout='{"llmcompressor": "1"}\n')

    monkeypatch.setattr(environments.subprocess, "run", run)
    plan = SimpleNamespace(pythons={})
    found = environments.pythons([tool], plan, tmp_path)
    python = tmp_path / "environments" / "llmcompressor" / "bin" / "python"
    assert found == {"llmcompressor": (python, {"llmcompressor": "1"})}
    assert [c[-1] for c in steps[1:]] == ["torch==2.13.0", "llmcompressor==0.14.0.1", "--versions"]
    assert environments.to_be_made([tool], plan, tmp_path) == []
    environments.pythons([tool], plan, tmp_path)
    assert len(steps) == 5, "the second time only its versions are asked for"
