"""What is installed is what is in the tree, and importing it costs and touches nothing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(code: str, cwd: Path, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it printed."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_list_of_packages_is_the_folders() -> None:
    walk = os.walk(ROOT / "qvlm_lightning", followlinks=True)
    folders = {Path(d).relative_to(ROOT) for d, _, files in walk if "__init__.py" in files}
    folders.add(Path("qvlm_lightning", "configs"))  # holds no code
    assert {".".join(f.parts) for f in folders} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_callbacks_is_a_link_into_the_checkout() -> None:
    link = ROOT / "qvlm_lightning" / "callbacks"
    assert link.is_symlink()
    assert link.readlink() == Path("../callbacks")
    assert link.with_name("configs").readlink() == Path("../configs")


def test_callbacks_have_one_name() -> None:
    import qvlm_lightning.callbacks

    assert qvlm_lightning.callbacks.QuantizerMonitor.__module__.startswith("qvlm_lightning.")
    assert "callbacks" not in sys.modules


def test_every_dependency_is_pinned_for_developers() -> None:
    text = (ROOT / "constraints-dev.txt").read_text(encoding="utf-8")
    pinned = {line.partition("==")[0].lower() for line in text.splitlines() if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.match(r"[\w-]+", requirement).group().lower() for requirement in wanted}
    assert {name.replace("_", "-") for name in names} <= {p.replace("_", "-") for p in pinned}


def test_the_package_itself_imports_nothing_heavy(tmp_path) -> None:
    code = (
        "import sys, qvlm_lightning; print({'torch', 'lightning', 'transformers'} & {*sys.modules})"
    )
    assert python(code, tmp_path) == "set()"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_verbs_answer_without_torch(tmp_path, argument: str) -> None:
    code = (
        "import sys; from qvlm_lightning.__main__ import main;"
        f"assert main(['{argument}']) == 0; assert not {{'torch', 'lightning'}} & {{*sys.modules}}"
    )
    assert python(code, tmp_path)


def test_importing_the_program_touches_no_cuda_and_no_model(tmp_path) -> None:
    code = """
import sys, torch

def touched(*_):
    raise AssertionError("CUDA was initialised at import")

torch.cuda._lazy_init = touched
torch._C._cuda_init = touched
import qvlm_lightning.cli
heavy = {"datasets", "transformers.models.llava.modeling_llava", "tensorboard.program"}
print(sorted(heavy & {*sys.modules}))
"""
    assert python(code, tmp_path) == "[]"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a build needs, so that building leaves nothing in the tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("qvlm_lightning", "callbacks", "configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), "."]
    run = subprocess.run(pip, cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"qvlm_lightning"}
    installed = {name for name in names if name.endswith(".py")}
    walk = os.walk(ROOT / "qvlm_lightning", followlinks=True)
    sources = {Path(d) / f for d, _, files in walk for f in files if f.endswith(".py")}
    assert installed == {str(s.relative_to(ROOT)) for s in sources}
    assert "qvlm_lightning/callbacks/quantizer_monitor.py" in installed
    assert "qvlm_lightning/configs/methods/rtn.yaml" in names
    for kind in ("kernels/*.cpp", "kernels/*.h", "rivals/*.txt"):
        beside = {str(s.relative_to(ROOT)) for s in (ROOT / "qvlm_lightning").glob(kind)}
        assert beside <= set(names), kind
    assert "qvlm_lightning/configs/models/shapes/llava-1.5-7b/config.json" in names
    weights = {f"qvlm_lightning/models/tiny/weights/{f}" for f in ("config.json", "tokenizer.json")}
    assert weights <= set(names)


@pytest.mark.slow
def test_every_module_of_the_wheel_imports_in_an_empty_folder(wheel, tmp_path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    code = f"""
import importlib, importlib.util, pkgutil, qvlm_lightning
# written in the language of an optional package
left_out = () if importlib.util.find_spec("triton") else ("qvlm_lightning.kernels.triton_dense",)
assert qvlm_lightning.__file__.startswith({str(site)!r}), qvlm_lightning.__file__
for module in pkgutil.walk_packages(qvlm_lightning.__path__, "qvlm_lightning."):
    if module.name not in left_out:
        importlib.import_module(module.name)
        print(module.name)
from qvlm_lightning.results.pages import environment
assert {{"run.html.j2", "compare.html.j2"}} <= set(environment().list_templates())
"""
    imported = python(code, empty, PYTHONPATH=str(site)).split()
    assert {"qvlm_lightning.callbacks.quantizer_monitor", "qvlm_lightning.cli"} <= set(imported)


@pytest.mark.slow
def test_a_bare_checkout_finds_its_callbacks(checkout, tmp_path) -> None:
    code = (
        "from importlib.util import find_spec; print(find_spec('qvlm_lightning.callbacks').origin)"
    )
    assert python(code, tmp_path, PYTHONPATH=str(checkout)).startswith(str(checkout))
