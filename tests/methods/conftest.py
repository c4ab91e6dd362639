"""The method of docs/adding_a_method.md, as the document prints it."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.calibration.conftest import (  # noqa: F401
    calibrated,
    folder,
    opened,
    toy_batches,
    toy_family,
)

ROOT = Path(__file__).parents[2]
NAME = "qvlm_lightning.methods.naive_gptq"


def printed(language: str) -> str:
    """Return the block of the document in a language."""
    text = (ROOT / "docs/adding_a_method.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return block


def load(path: Path) -> ModuleType:
    """Import the printed file under the name it would have in the project."""
    path.write_text(printed("python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gptq(tmp_path, monkeypatch):
    """The class of the document."""
    monkeypatch.setitem(sys.modules, NAME, None)  # taken away behind the test
    return load(tmp_path / "naive_gptq.py").NaiveGPTQ
