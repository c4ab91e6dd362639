"""Every deliberate fault of ``tests/mutants.py`` is seen by the test that is named beside it."""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).parents[1]
COPIED = ("qvlm_lightning", "callbacks", "configs", "tests", "pyproject.toml")
SECONDS = 60
"""Of computing, within which a mutant must be killed; what else the machine does is left out."""

FAILED = 1
"""What pytest returns if tests ran and one of them failed."""


def test_every_old_text_is_found_exactly_once():
    """Whoever changes such a line puts its new text, with the same fault, into the list."""
    found = {}
    for file, old, new, breaks, _ in MUTANTS:
        source = (ROOT / file).read_text(encoding="utf-8")
        changed = source.replace(old, new)
        if source.count(old) != 1:
            found[f"{file}: {breaks}"] = f"{old!r} occurs {source.count(old)} times"
        elif file.endswith(".py") and ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
            found[f"{file}: {breaks}"] = "changes nothing"
    assert found == {}


def test_the_list_is_long_and_says_everything_once():
    assert len(MUTANTS) >= 60
    assert max(Counter((file, old, new) for file, old, new, *_ in MUTANTS).values()) == 1
    assert max(Counter(breaks for *_, breaks, _ in MUTANTS).values()) == 1


def test_the_named_tests_exist():
    for *_, breaks, killer in MUTANTS:
        file, *names = killer.split("::")
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in names:
            function = re.sub(r"\[.*", "", name)
            assert f"def {function}(" in source, f"{killer} is to see: {breaks}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever the tests need, without compiled files: a mutant may have the size and second of
    the original.
    """
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, root / name)
    return root


def run(root: Path, tests: list[str], seconds: float) -> tuple[int, str, float]:
    """Run tests of the copy with the package of the copy.

    Returns:
        What pytest returned and wrote, and the seconds it has computed.
    """
    places = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=root,
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout[-3000:], spent


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_named_tests_pass_without_a_mutant(copy: Path):
    killers = sorted({killer for *_, killer in MUTANTS})
    code, said, _ = run(copy, killers, 1700)
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.timeout(6 * SECONDS)
@pytest.mark.parametrize(
    ("file", "old", "new", "breaks", "killer"), MUTANTS, ids=[breaks for *_, breaks, _ in MUTANTS]
)
def test_no_mutant_survives(
    copy: Path, file: str, old: str, new: str, breaks: str, killer: str
) -> None:
    source = (copy / file).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{file}: {old!r} occurs {source.count(old)} times"
    try:
        (copy / file).write_text(source.replace(old, new), encoding="utf-8")
        code, said, seconds = run(copy, [killer], 5 * SECONDS)
    finally:
        (copy / file).write_text(source, encoding="utf-8")
    assert code == FAILED, f"{killer} does not see it: {breaks}\n{said}"
    assert seconds < SECONDS, f"{killer} needs {seconds:.0f} s to see it: {breaks}"
