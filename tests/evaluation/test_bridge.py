"""The bridge to lmms-eval, against stand-ins that have the registers of its versions.

lmms-eval itself brings torchvision and cannot be installed beside this project's tests.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvlm_lightning.__main__ import main
from qvlm_lightning.cli import train_main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation import bridge
from qvlm_lightning.evaluation.answering import Answering, Prompt
from qvlm_lightning.models import Tiny

CONFIGS = Path(__file__).parents[2] / "configs"

API = """
class lmms:
    is_simple = True
    def __init__(self):
        self.task_dict = {}
"""
OLDEST = "AVAILABLE_MODELS = {}\ndef path(name):\n    return AVAILABLE_MODELS[name]\n"
MIDDLE = (
    "AVAILABLE_SIMPLE_MODELS = {}\nAVAILABLE_CHAT_TEMPLATE_MODELS = {}\n"
    "def path(name):\n    return AVAILABLE_SIMPLE_MODELS[name]\n"
)
NEWEST = """
from lmms_eval.models.registry_v2 import Register
AVAILABLE_SIMPLE_MODELS = {}
MODEL_REGISTRY_V2 = Register()
def path(name):
    return MODEL_REGISTRY_V2.known[name].simple_class_path
"""
REGISTER = """
from dataclasses import dataclass
@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
class Register:
    def __init__(self):
        self.known = {}
    def register_manifest(self, manifest):
        self.known[manifest.model_id] = manifest
"""
PROGRAM = """
import argparse, importlib, json, pathlib
from types import SimpleNamespace
from lmms_eval import models
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.models import Tiny

def cli_evaluate():
    parser = argparse.ArgumentParser()
    for name in ("model", "model_args", "tasks", "batch_size", "output_path", "limit"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--log_samples", action="store_true")
    args = parser.parse_args()
    module, name = models.path(args.model).rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    given = dict(pair.split("=") for pair in args.model_args.split(","))
    model = kind(**given, batch_size=int(args.batch_size), device="cpu")
    docs = TinyVQA(Tiny(), evaluation_count=int(args.limit)).evaluation
    model.task_dict = {args.tasks: {"test": docs}}
    options = {"max_new_tokens": 4, "until": [chr(10) * 2], "temperature": 0}
    visual = lambda doc: [] if doc.image is None else [doc.image]
    requests = [
        SimpleNamespace(args=("<image>" + doc.question, options, visual, i, args.tasks, "test"))
        for i, doc in enumerate(docs)
    ]
    out = pathlib.Path(args.output_path)
    out.mkdir(parents=True)
    (out / "texts.json").write_text(json.dumps(model.generate_until(requests)))
"""


@pytest.fixture
def stand_in(tmp_path):
    """Write a package lmms_eval with one version's register."""

    def write(models: str) -> Path:
        folder = tmp_path / "site" / "lmms_eval"
        for name, source in {
            "__init__.py": "",
            "__main__.py": PROGRAM,
            "api/__init__.py": "",
            "api/model.py": API,
            "models/__init__.py": models,
            "models/registry_v2.py": REGISTER,
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source)
        return folder.parent

    return write


@pytest.fixture
def importable(stand_in, monkeypatch):
    """Import the stand-in, and forget it afterwards."""

    def load(models: str):
        monkeypatch.syspath_prepend(str(stand_in(models)))
        bridge._model_class.cache_clear()
        return importlib.import_module("lmms_eval.models")

    yield load
    bridge._model_class.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
        del sys.modules[name]


@pytest.mark.parametrize("register", [OLDEST, MIDDLE, NEWEST], ids=["0.2", "0.4", "0.6"])
def test_every_kind_of_register_finds_the_model(importable, register):
    models = importable(register)
    bridge.register()
    module, _, name = models.path("qvlm").rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    from lmms_eval.api.model import lmms

    assert issubclass(kind, lmms)
    assert kind.is_simple


def request(**options):
    from types import SimpleNamespace

    images = options.pop("images", [])
    return SimpleNamespace(args=("Why?", options, lambda doc: images, 0, "task", "test"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.2}, "task samples its answers; the bridge answers greedily"),
        ({"do_sample": True}, "task samples its answers"),
        ({"images": [1, 2]}, "task shows 2 images at once; the bridge takes one"),
    ],
)
def test_requests_that_the_bridge_refuses(importable, options, words):
    importable(OLDEST)
    kind = bridge.QuantizedModel
    model = kind.__new__(kind)
    model.task_dict = {"task": {"test": [None]}}
    with pytest.raises(InputError, match=words):
        model.generate_until([request(**options)])
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(InputError, match="the bridge"):
            method([])


def test_no_other_name_is_given():
    with pytest.raises(AttributeError, match="Nothing"):
        _ = bridge.Nothing


@pytest.fixture
def artifact(tmp_path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "quantization.json").write_text("{}")
    return folder


def test_a_dry_run_prints_the_command(artifact, capsys):
    argv = ["--artifact", str(artifact), "--tasks=pope", "--dry-run", "--python=py", "--limit=8"]
    assert main(["lmms-eval", *argv]) == 0
    assert capsys.readouterr().out == (
        f"py -m qvlm_lightning.evaluation.bridge --model qvlm --model_args artifact={artifact} "
        "--tasks pope --batch_size 1 --output_path runs/lmms_eval --log_samples --limit=8\n"
    )


def test_registering_needs_lmms_eval():
    with pytest.raises(InputError, match="lmms-eval is not installed for"):
        bridge.register()


@pytest.mark.slow
def test_without_lmms_eval_it_says_so(artifact, capfd):
    assert main(["lmms-eval", f"--artifact={artifact}", "--tasks=pope"]) == 2
    error = capfd.readouterr().err
    assert f"error: lmms-eval is not installed for {sys.executable!r}; give --python" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--artifact=nowhere", "--tasks=pope"], "'nowhere' is not an artifact"),
        (["--artifact={a}", "--tasks=pope", "--python=no-python"], "python is 'no-python'"),
        (["--artifact={a}"], "the following arguments are required: --tasks"),
    ],
)
def test_mistakes_are_one_sentence(artifact, argv, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["lmms-eval", *(text.format(a=artifact) for text in argv)])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_a_path_that_cannot_be_an_option():
    with pytest.raises(InputError, match="has a comma or an equals sign"):
        bridge.command("python", "runs/a=b/artifact", "pope", "out")


@pytest.mark.slow
def test_an_artifact_answers_through_lmms_eval(stand_in, tmp_path):
    rooms = ("base", "methods/rtn", "schemes/w8a8", "models/tiny", "data/tiny")
    sizes = ("calibration_pairs=4", "search_pairs=4", "batch_size=4", "evaluation_count=12")
    train_main(
        [
            "fit",
            *(f"--config={CONFIGS / room}.yaml" for room in rooms),
            *(f"--data.init_args.{size}" for size in sizes),
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path / 'run'}",
        ]
    )
    exported, out = tmp_path / "run" / "artifact", tmp_path / "out"
    given = bridge.command(sys.executable, str(exported), "tiny", str(out), 5, ["--limit", "12"])
    paths = [str(stand_in(NEWEST)), str(CONFIGS.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run(given, check=True, env=environment)
    from qvlm_lightning.artifact import load_artifact

    loaded = load_artifact(exported)
    samples = TinyVQA(Tiny(), evaluation_count=12).evaluation
    asked = [Prompt(s.question, s.image, max_new_tokens=4) for s in samples]
    expected = Answering(loaded.model, loaded.processor)(asked)
    assert json.loads((out / "texts.json").read_text()) == expected
    assert any(expected)
