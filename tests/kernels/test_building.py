"""The extension is built once, whatever happened to a process that built it before."""

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
