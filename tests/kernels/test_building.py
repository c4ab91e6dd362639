"""The extension is built once, whatever happened to a process that built it before."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qvlm_lightning.kernels import extension as under_test

SOURCE = 'extern "C" int answer() { return ANSWER; }'
BUILD = """
import ctypes, sys
from pathlib import Path
from qvlm_lightning.kernels.extension import library
built = library(sys.argv[1], [Path(sys.argv[2])], ["-DANSWER=" + sys.argv[3]])
print(ctypes.CDLL(str(built)).answer())
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Build in a process with a cache of its own, and return what the library answers and what was
    said.
    """
    if under_test.extension() is None:
        pytest.skip(f"no extension here: {under_test.why_no_extension()}")
    source = tmp_path / "answer.cpp"
    source.write_text(SOURCE)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(Path(__file__).parents[2])

    def run(answer: int) -> tuple[int, str]:
        told = [sys.executable, "-c", BUILD, "answer", str(source), str(answer)]
        done = subprocess.run(told, check=True, capture_output=True, text=True, timeout=60)
        return int(done.stdout), done.stderr

    return run


def test_a_build_that_was_killed_holds_nobody_up(built, tmp_path):
    """It leaves torch's lock and half a build."""
    left = tmp_path / "cache" / "answer"
    left.mkdir(parents=True)
    (left / "lock").touch()
    answer, said = built(41)
    assert answer == 41
    assert "building the C++ extension" in said
    assert built(42) == (41, "")  # nothing is built again
    assert [file.name for file in left.iterdir() if file.is_dir()] == []


AVX2 = ("-mavx2", "-mfma", "-mbmi2")


@pytest.mark.parametrize("flags", [(), AVX2, (*AVX2, "-DWITHOUT_AVX512")], ids=len)
def test_every_kind_of_processor_and_compiler_is_built_for(flags):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no c++ here")
    if platform.machine() != "x86_64" and flags:
        pytest.skip("AVX2 is of x86-64")
    sources = sorted(Path(under_test.__file__).parent.glob("*.cpp"))
    assert sources
    for source in sources:
        told = [compiler, "-fsyntax-only", "-std=c++17", "-fopenmp", *flags, str(source)]
        done = subprocess.run(told, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
