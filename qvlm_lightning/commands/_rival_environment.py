"""Environments of other tools: found, or made on demand from pinned requirements."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._rival_plan import RivalRow, RivalsPlan, Tool
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import storage_faults, write_whole

PROGRAMS = Path(__file__).parents[1] / "rivals"
"""Folder of the programs and of what they need."""
ENVIRONMENTS = "environments"
"""Folder in a leaderboard's root."""
_READY = "requirements.txt"
"""What a finished environment was made from, in its folder."""
_SPARE = 1.5
"""Free disk that is asked for, times what an environment takes."""

Versions = dict[str, str]
Found = dict[str, tuple[Path, Versions]]
"""Tool -> its Python, and the versions of its packages."""


def tools_of(rows: Sequence[RivalRow]) -> list[Tool]:
    """Return the tools of rows, each once."""
    return list({row.rival.tool.name: row.rival.tool for row in rows}.values())


def given_python(tool: Tool, plan: RivalsPlan) -> str | None:
    """Return the Python that the plan or the environment variable names for a tool, if any."""
    return plan.pythons.get(tool.name) or os.environ.get(tool.variable) or None


def to_be_made(tools: Sequence[Tool], plan: RivalsPlan, root: Path) -> list[Tool]:
    """Return the tools that have no environment yet.

    Args:
        tools: that take part.
        plan: may name environments.
        root: of the leaderboard.
    """
    return [x for x in tools if given_python(x, plan) is None and not _is_ready(x, root)]


def pythons(
    tools: Sequence[Tool], plan: RivalsPlan, root: Path
) -> dict[str, tuple[Path, Versions]]:
    """Return tool -> its Python and the versions of its packages; environments that are missing are
    made.

    Args:
        tools: that take part.
        plan: may name environments.
        root: of the leaderboard.

    Raises:
        InputError: a Python that is given does not exist or lacks the tool, or an environment
            cannot be made.
    """
    found = {tool: given_python(tool, plan) for tool in tools}
    known = {tool.name: _checked(tool, _found(own)) for tool, own in found.items() if own}
    missing = to_be_made(tools, plan, root)
    _check_room(missing, root)
    for tool in missing:
        make_environment(tool, root)
    for tool in (tool for tool, own in found.items() if own is None):
        known[tool.name] = _checked(tool, _python_in(_folder(tool, root)))
    return known


def make_environment(tool: Tool, root: Path) -> None:
    """Make a virtual environment and install what a tool's program needs.

    Args:
        tool: whose.
        root: of the leaderboard.

    Raises:
        InputError: pip fails; what it said is in ``install.log`` there.
    """
    folder, needs = _folder(tool, root), _requirements(tool)
    print(f"makes the environment of {tool.name} in {folder}", file=sys.stderr)
    log = folder / "install.log"
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    pip = [str(_python_in(folder)), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    # torch first: resolved together, the registry may hand out its CUDA build
    lines = needs.splitlines()
    steps += [[*pip, *(x for x in lines if x.startswith("torch=="))], [*pip, *lines]]
    for step in steps:
        with log.open("a", encoding="utf-8") as out:
            done = subprocess.run(step, stdout=out, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            told = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise InputError(
                f"the environment of {tool.name} cannot be made: {told[-1] if told else 'no word'} "
                f"(all of it in {str(log)!r}); name another one's Python by rivals.pythons or "
                f"{tool.variable}, or leave its rows out"
            )
    write_whole(folder / _READY, needs)


def _check_room(missing: Sequence[Tool], root: Path) -> None:
    needed = _SPARE * sum(tool.gigabytes for tool in missing)
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < needed:
        names = " and ".join(tool.name for tool in missing)
        raise InputError(
            f"environments of {names} need {needed:.0f} GB of disk while they are made, "
            f"{str(place)!r} has {free:.1f}; give another root, or Pythons by rivals.pythons"
        )


def _checked(tool: Tool, python: Path) -> tuple[Path, Versions]:
    """Return a Python and the versions of its packages."""
    command = [str(python), str(PROGRAMS / tool.program), "--versions"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        versions = dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as fault:
        raise InputError(
            f"{str(python)!r} cannot run {tool.program}; give the Python of an environment with "
            f"{tool.package} by rivals.pythons or {tool.variable}"
        ) from fault
    lacking = [package for package, version in versions.items() if version is None]
    if lacking or tool.package not in versions:
        raise InputError(
            f"the environment of {str(python)!r} lacks {', '.join(lacking) or tool.package}; give "
            f"another one by rivals.pythons or {tool.variable}"
        )
    return python, versions


def _found(python: str) -> Path:
    """Return the path of a Python in full; links stay, by which an environment knows itself."""
    return Path(shutil.which(python) or python).absolute()


def _folder(tool: Tool, root: Path) -> Path:
    return root.absolute() / ENVIRONMENTS / tool.name


def _python_in(folder: Path) -> Path:
    return folder / "bin" / "python"


def _requirements(tool: Tool) -> str:
    return (PROGRAMS / f"{tool.name}.txt").read_text(encoding="utf-8")


def _is_ready(tool: Tool, root: Path) -> bool:
    ready = _folder(tool, root) / _READY
    return ready.is_file() and ready.read_text(encoding="utf-8") == _requirements(tool)
