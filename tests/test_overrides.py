"""Widths of single layers from the command line to the artifact, and what a run proposes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import qvlm_lightning
from qvlm_lightning.__main__ import main
from qvlm_lightning.cli import train_main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.quant.scheme import Scheme

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = [
    "--trainer.accelerator=cpu",
    "--data.init_args.calibration_pairs=4",
    "--data.init_args.search_pairs=2",
    "--data.init_args.batch_size=2",
    "--data.init_args.evaluation_count=4",
]
FILES = [
    f"--config={CONFIGS / room}.yaml"
    for room in ("base", "methods/rtn", "schemes/w4a4", "models/tiny", "data/tiny")
]
PATTERN = "layers[.](1|2)[.]mlp[.]down_proj"


def fit(root: Path, *options: str) -> dict:
    train_main(["fit", *FILES, *SMALL, f"--trainer.default_root_dir={root}", *options])
    return json.loads((root / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, dict]:
    """A run without overrides: folder and report."""
    root = tmp_path_factory.mktemp("runs") / "plain"
    return root, fit(root)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, dict]:
    """A run whose overrides come from a file."""
    folder = tmp_path_factory.mktemp("mixed")
    scheme = {"overrides": {PATTERN: {"activation_bits": 8, "weight_bits": 6}}}
    (folder / "own.yaml").write_text(yaml.safe_dump({"model": {"scheme": scheme}}))
    return folder / "run", fit(folder / "run", f"--config={folder / 'own.yaml'}")


def test_overrides_of_a_file_and_of_an_option_are_the_same(mixed, tmp_path):
    given = json.dumps({PATTERN: {"activation_bits": 8, "weight_bits": 6}})
    root, report = mixed
    other = fit(tmp_path / "run", f"--model.scheme.overrides={given}")
    assert other["scheme"] == report["scheme"]
    assert report["scheme"]["overrides"] == {PATTERN: {"activation_bits": 8, "weight_bits": 6}}
    folders = [
        folder / "artifact" / "quantizers.safetensors" for folder in (root, tmp_path / "run")
    ]
    assert folders[0].read_bytes() == folders[1].read_bytes()


def test_the_report_lists_the_layers_of_another_width(mixed, plain):
    wanted = {name: "w6a8" for name in mixed[1]["quantized"] if re.search(PATTERN, name)}
    assert len(wanted) == 2
    assert mixed[1]["overridden"] == wanted
    assert plain[1]["overridden"] == {}
    assert "overrides" not in plain[1]["scheme"]


def test_an_artifact_keeps_its_widths_and_its_rows_a_name_of_their_own(mixed, plain):
    model, _ = qvlm_lightning.load(mixed[0] / "artifact", simulate=True)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            other = re.search(PATTERN, name) is not None
            assert layer.weight_quantizer.num_bits == (6 if other else 4)
            assert layer.site.num_bits == (8 if other else 4)
    names = [
        json.loads((root / "artifact" / "quantization.json").read_text())["scheme_name"]
        for root, _ in (plain, mixed)
    ]
    assert names[0] == "w4a4"
    assert re.fullmatch(r"w4a4\+a8w6_[0-9a-f]{4}", names[1])


def test_a_notebook_takes_the_same_scheme(mixed, tmp_path):
    family = Llava(str(WEIGHTS))
    samples = TinyVQA(family, calibration_pairs=4, search_pairs=2).calibration_samples()
    scheme = Scheme.parse("w4a4", overrides={PATTERN: {"activation_bits": 8, "weight_bits": 6}})
    options = {"scheme": scheme, "method": "rtn", "search_pairs": 2, "batch_size": 2}
    model = family.load_model()
    qvlm_lightning.quantize(
        model, family.load_processor(), samples, output=tmp_path / "run", **options
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["overridden"] == mixed[1]["overridden"]
    assert report["scheme"] == mixed[1]["scheme"]


def test_a_checkpoint_from_before_there_were_overrides_resumes(plain, tmp_path):
    """Its scheme has no such field; one of another scheme is refused."""
    root = shutil.copytree(plain[0], tmp_path / "run")
    path = root / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=False)
    assert "overrides" not in stored["calibration"]["identity"]["scheme"]
    before = (root / "artifact" / "quantizers.safetensors").read_bytes()
    fit(root, "--ckpt_path=last")
    assert (root / "artifact" / "quantizers.safetensors").read_bytes() == before
    with pytest.raises(SystemExit):
        fit(root, "--ckpt_path=last", f"--model.scheme.overrides={{{PATTERN}: {{weight_bits: 6}}}}")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("{down_proj: {bits: 8}}", "overrides pattern 'down_proj' has the key 'bits'; allowed are"),
        ("{q_proj: {activation_bits: 8}}", "reads the same input and has 4; allowed is one width"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, capfd, overrides, sentence):
    with pytest.raises(SystemExit) as end:
        fit(tmp_path / "run", f"--model.scheme.overrides={overrides}")
    last = capfd.readouterr().err.rstrip("\n").rpartition("\n")[2]
    assert end.value.code == 2
    assert last.startswith("error: ")
    assert sentence in last
    assert not (tmp_path / "run").exists()


# --- massive sites --------------------------------------------------------------------------------


def test_the_report_names_massive_sites_and_proposals_that_a_run_accepts(plain, tmp_path):
    """The embedded model has some; run with what was proposed, they have 8 bits."""
    massive = plain[1]["massive"]
    assert massive["sites"], "the test is about such sites"
    for site in massive["sites"].values():
        assert site["ratio"] == site["worst"] / site["median"] > massive["threshold"]
        assert site["activation_bits"] == 4
        assert site["sample"] in plain[1]["calibration_ids"]
        assert isinstance(site["token"], str)
    given = json.dumps(massive["proposed_overrides"])
    again = fit(tmp_path / "run", f"--model.scheme.overrides={given}")["massive"]
    assert set(again["sites"]) == set(massive["sites"])
    assert {site["activation_bits"] for site in again["sites"].values()} == {8}
    assert again["proposed_overrides"] == {}


def plan(capsys, *options: str) -> str:
    assert main(["plan", *FILES, *options]) == 0
    return capsys.readouterr().out


def test_a_plan_shows_the_massive_sites_of_an_earlier_run(plain, capsys, tmp_path):
    root, report = plain
    out = tmp_path / "plan.json"
    told = plan(capsys, f"--report={root / 'report.json'}", f"--json={out}")
    values = json.loads(out.read_text())
    assert {row["site"] for row in values["massive"]} == set(report["massive"]["sites"])
    assert values["proposed_overrides"] == report["massive"]["proposed_overrides"]
    for name, site in report["massive"]["sites"].items():
        assert name in told
        assert f"{site['ratio']:,.4g}" in told
    (option,) = re.findall(r"^--model\.scheme\.overrides='(.*)'$", told, re.M)
    assert json.loads(option) == values["proposed_overrides"]


def test_a_plan_proposes_for_its_own_scheme_beside_its_own_overrides(plain, capsys, tmp_path):
    own = {"linear_2": {"weight_bits": 8}}
    out = tmp_path / "plan.json"
    told = plan(
        capsys,
        f"--config={CONFIGS / 'schemes' / 'w8a8.yaml'}",
        f"--report={plain[0] / 'report.json'}",
        f"--json={out}",
        f"--model.scheme.overrides={json.dumps(own)}",
    )
    proposed = json.loads(out.read_text())["proposed_overrides"]
    assert proposed.keys() == plain[1]["massive"]["proposed_overrides"].keys()
    assert {bits["activation_bits"] for bits in proposed.values()} == {16}
    (option,) = re.findall(r"^--model\.scheme\.overrides='(.*)'$", told, re.M)
    assert json.loads(option) == own | proposed


def changed(report: dict, folder: Path, **values) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps({k: v for k, v in (report | values).items() if v is not None}))
    return path


def test_a_plan_without_massive_sites_says_so(plain, capsys, tmp_path):
    report = changed(plain[1], tmp_path, massive={"sites": {}, "proposed_overrides": {}})
    assert "No massive sites in" in plan(capsys, f"--report={report}")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"model": {"family": "Tiny", "outlier_scale": 4.0}},
            r"is of another model, Tiny, 4\.0; al",
        ),
        ({"model": {"family": "Llava", "path": "else"}}, r"another model, Llava, \S*else; allowed"),
        (
            {"units": {"language": ["0"]}},
            r"another model, Tiny, 1\.0 with other layers; allowed is",
        ),
        ({"massive": None}, "does not say which sites are massive; give that of a run of this"),
        ({"units": None}, "is not that of a calibration; give the report.json of a run folder"),
    ],
)
def test_a_report_of_another_model_is_refused(plain, capsys, tmp_path, values, sentence):
    report = changed(plain[1], tmp_path, **values)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *FILES, f"--report={report}"])
    error = capsys.readouterr().err.rstrip("\n")
    assert re.search(f"error: report .*{sentence}", error)
    assert error.count("\n") == 0


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_file_that_is_no_report_is_refused(capsys, tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *FILES, f"--report={path}"])
    assert "give the report.json of a run folder" in capsys.readouterr().err
