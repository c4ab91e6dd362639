"""What made a page of results: command, commit, hardware and date."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).parent


def provenance(command: str) -> dict[str, str]:
    """Return what made a page, by name.

    Args:
        command: that the user gave.
    """
    return {
        "command": f"`{command}`",
        "commit": commit(_HERE),
        "hardware": hardware(),
        "date": date.today().isoformat(),
    }


def commit(folder: Path) -> str:
    """Return the short commit of the working tree that a folder lies in, with ``+`` where tracked
    files have changed since; the package's version where there is none.
    """
    found = _git(folder, "rev-parse", "--short", "HEAD")
    if not found:
        with suppress(PackageNotFoundError):
            return f"qvlm-lightning {version('qvlm-lightning')}"
        return "not known"
    return found + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    with suppress(OSError):
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()
    return ""


def hardware() -> str:
    """Return processor, cores and graphics card."""
    import torch  # seconds, which the help of a verb need not wait for

    told = platform.processor() or platform.machine()
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        told = told if found is None else found[1].strip()
    parts = [told, f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
