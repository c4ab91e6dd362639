"""``qvlm quantize``: one command for a model folder and data of one's own."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import qvlm_lightning
from qvlm_lightning.__main__ import main
from qvlm_lightning.commands import _quantize_choice as choice
from qvlm_lightning.commands._quantize_choice import choose, data_of, family_of, scheme_options
from qvlm_lightning.estimate.fits import MemoryPool
from qvlm_lightning.presets import config_file
from tests.data.own_folder import copy_model, write_questions

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A model folder and 12 questions, as a user has them."""
    folder = tmp_path_factory.mktemp("own")
    copy_model(folder / "model")
    write_questions(folder, 12, "images")
    return folder


def arguments(own: Path, run: Path, *more: str) -> list[str]:
    files = [f"--model={own / 'model'}", f"--data={own / 'train.jsonl'}", f"--output={run}"]
    return ["quantize", *files, *more]


def printed(capsys, own: Path, run: Path, *more: str) -> list[str]:
    """Return the command of train.py that would run."""
    assert main(arguments(own, run, "--print-command", *more)) == 0
    return shlex.split(capsys.readouterr().out.strip().splitlines()[-1])


def test_one_command_makes_an_artifact(own, tmp_path, capsys):
    assert main(arguments(own, tmp_path / "run", "--scheme", "w4a16", "--method", "rtn")) == 0
    model, _ = qvlm_lightning.load(tmp_path / "run" / "artifact")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["method"] == "rtn"
    assert report["scheme"]["language"] == {"weight_bits": 4, "activation_bits": 16}
    assert len(report["calibration_ids"]) == 12
    said = capsys.readouterr().out
    assert "12 calibration pairs in batches of 8" in said
    assert str(tmp_path / "run" / "artifact") in said
    with pytest.raises(SystemExit) as end:
        main(arguments(own, tmp_path / "run"))
    assert end.value.code == 2
    assert "already holds a run" in capsys.readouterr().err
    for part in ("artifact", "checkpoints"):  # as if it had been stopped before its end
        shutil.rmtree(tmp_path / "run" / part)
    assert main(arguments(own, tmp_path / "run", "--scheme", "w4a16", "--method", "rtn")) == 0
    assert "going on with the run in" in capsys.readouterr().out
    assert (tmp_path / "run" / "artifact" / "quantization.json").is_file()


@pytest.mark.parametrize("method", ["gptq", "mbq", "awq", "smoothquant", "mse", "qvlm"])
def test_every_method_is_planned_before_it_runs(own, tmp_path, capsys, method):
    """Methods have parts that are objects themselves."""
    scheme = "w3a16" if method in ("gptq", "mbq", "awq") else "w4a8"
    command = printed(capsys, own, tmp_path / "run", f"--method={method}", f"--scheme={scheme}")
    assert f"methods/{method}.yaml" in " ".join(command)


def test_everything_else_of_fit_is_reachable(own, tmp_path, capsys):
    more = [
        "--method=sequential",
        "--model.method.objective=plain",
        "--seed=3",
        "--mode=static_tensor",
    ]
    command = printed(capsys, own, tmp_path / "run", *more)
    assert command[1:3] == ["train.py", "fit"]
    assert command[-1] == "--model.method.objective=plain", "what is given by hand wins"
    assert "--data.seed=3" in command
    assert "--model.scheme.activation_mode=static_tensor" in command
    assert f"--config={CONFIGS / 'methods' / 'sequential.yaml'}" in [
        f"--config={Path(o.partition('=')[2]).resolve()}" for o in command if "--config" in o
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "nowhere"], "--model 'nowhere' is no model folder"),
        (["--data", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
        (["--scheme", "w1a4"], "weight_bits 1 is not allowed"),
        (["--scheme", "four"], "scheme 'four' cannot be read"),
        (["--method", "magic"], "method 'magic' is not known; allowed: ablation/aespa_mbq"),
        (["--mode", "per_tensor"], "activation_mode 'per_tensor' is not known"),
        (["--dtype", "int4"], "dtype 'int4' is not known"),
        (["--seed", "x"], "invalid int value"),
        (["leftover"], "'leftover' is given without an option"),
        (["--model.nothing=1"], "nothing"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_work(own, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as end:
        main(arguments(own, tmp_path / "run", *more))
    assert end.value.code == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def pools(monkeypatch, size: int) -> None:
    pool = [MemoryPool("this machine's RAM", ("device", "ram"), size, 1)]
    monkeypatch.setattr(choice, "memory_pools", lambda *_: pool)


def test_what_does_not_fit_in_memory_is_streamed(own, monkeypatch):
    family = family_of(str(own / "model"), None)
    data, _ = data_of(str(own / "train.jsonl"), family, 0)
    options = [
        f"--config={CONFIGS / name}" for name in ("base.yaml", "methods/rtn.yaml", "data/chat.yaml")
    ]
    options += [f"--data.calibration.path={own / 'train.jsonl'}", *scheme_options("w4a8", None)]
    assert choose(family, data, options).streaming is False
    pools(monkeypatch, 22 * 2**20)  # the weights alone are 16 MB, quantized once more
    chosen = choose(family, data, options)
    assert chosen.streaming in (True, "disk")
    assert "which has 0.0" in chosen.sentences[-1]
    pools(monkeypatch, 2**20)
    with pytest.raises(
        qvlm_lightning.InputError, match=r"does not fit this machine: .* what takes less"
    ):
        choose(family, data, options)


def test_a_model_that_is_streamed_gets_the_same_method(own, tmp_path, capsys, monkeypatch):
    here = printed(capsys, own, tmp_path / "run")
    assert any(option.endswith("methods/qvlm_plus_fast.yaml") for option in here)
    fits = lambda _, workload: (replace(workload, streaming=True), "the RAM")  # noqa: E731
    monkeypatch.setattr(choice, "_fitting", fits)
    streamed = printed(capsys, own, tmp_path / "run")
    assert any(option.endswith("methods/qvlm_plus_fast.yaml") for option in streamed)
    assert "--model.streaming=true" in streamed
    assert "--model.streaming=false" not in streamed


def test_a_scheme_is_a_file_or_a_name():
    assert scheme_options("w4a8", None) == [f"--config={config_file('schemes', 'w4a8')}"]
    options = scheme_options("w5a7", None)
    assert "--model.scheme.language.weight_bits=5" in options
    assert "--model.scheme.activation_mode=dynamic_token" in options
    assert yaml.safe_load(config_file("schemes", "w4a8").read_text())
