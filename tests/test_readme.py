"""What the README tells a newcomer to do with a model and data of their own runs as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest

import qvlm_lightning
from qvlm_lightning.__main__ import main
from tests.data.own_folder import copy_model, write_questions

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
OWN = README[README.index("## Your own model") :]


@pytest.fixture
def newcomer(tmp_path, monkeypatch) -> Path:
    """A folder with ``models/my-llava`` and ``my/train.jsonl``, where the commands are given."""
    copy_model(tmp_path / "models" / "my-llava")
    write_questions(tmp_path / "my", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", OWN, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_command_makes_the_artifact_it_names(newcomer):
    program, *arguments = shlex.split(block("bash"))
    assert program == "qvlm"
    assert main(arguments) == 0
    model, _ = qvlm_lightning.load("runs/mine/artifact")
    assert model.config.model_type == "llava"
    scheme = json.loads((newcomer / "runs/mine/report.json").read_text())["scheme"]
    assert scheme["language"] == {"weight_bits": 4, "activation_bits": 8}
    assert scheme["activation_mode"] == "dynamic_token"


def test_the_notebook_runs(newcomer):
    names: dict[str, object] = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    assert (newcomer / "runs" / "notebook" / "artifact" / "quantization.json").is_file()
    assert names["model"].config.model_type == "llava"


def test_ten_lines_are_enough():
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 10
