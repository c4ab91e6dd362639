"""A run's folder read back: its page, and its lines for the terminal. Nothing in it is executed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.files import write_whole
from qvlm_lightning.results.next_steps import steps_after_fit
from qvlm_lightning.results.printable import printable
from qvlm_lightning.results.run_facts import Fact, folder_bytes, run_facts
from qvlm_lightning.results.run_page import run_page

PAGE = "report.html"
LARGEST_REPORT = 64 * 1024**2
LARGEST_CONFIG = 256 * 1024
"""Bytes."""


def read_report(root: Path) -> dict[str, Any]:
    """Read a run's ``report.json``.

    Args:
        root: run folder.

    Raises:
        InputError: it is missing, too large, or not the report of a calibration.
    """
    path = root / "report.json"
    fault = "give the folder of a run that train.py fit has finished"
    try:
        if path.stat().st_size > LARGEST_REPORT:
            raise InputError(f"{str(path)!r} is larger than {LARGEST_REPORT:,} bytes; {fault}")
        report = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} cannot be read as a report; {fault}") from error
    if not isinstance(report, dict) or "percentiles" not in report:
        raise InputError(f"{str(path)!r} is not the report of a calibration; {fault}")
    return report


def read_config(root: Path) -> tuple[dict[str, Any], str]:
    """Return a run's configuration, as plain values and as it is written; nothing where there is
    none that can be read.

    Args:
        root: run folder.
    """
    path = root / "config.yaml"
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            return {}, ""
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            return {}, text  # aliases of aliases grow without bound
        plain = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}, ""
    return (plain if isinstance(plain, dict) else {}), text


def write_run_page(root: Path) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        root: run folder with ``report.json``.

    Returns:
        Path of the page.

    Raises:
        InputError: see :func:`read_report`.
    """
    report = read_report(root)
    try:
        text = run_page(root, report, *read_config(root))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{str(root / 'report.json')!r} does not hold what a report holds "
            f"({type(error).__name__}: {printable(error, 120)}); give the folder of a run"
        ) from error
    write_whole(root / PAGE, text)
    return root / PAGE


def show_run(root: Path, console: Console | None = None) -> None:
    """Print what a calibration did, where its files lie, and the next commands.

    Args:
        root: run folder with ``report.json``.
        console: where to print; standard output by default.
    """
    facts = run_facts(read_report(root), folder_bytes(root / "artifact"))
    files = [name for name in (PAGE, "report.json", "artifact") if (root / name).exists()]
    facts.append(("files", ", ".join(f"{root}{os.sep}{name}" for name in files)))
    show_lines(facts, steps_after_fit(root, read_config(root)[0]), console)


def show_lines(
    facts: Sequence[Fact], steps: Sequence[tuple[str, str]], console: Console | None = None
) -> None:
    """Print facts with their names in a column, then commands in whole lines.

    Args:
        facts: name and text.
        steps: what a command does, and the command.
        console: where to print; standard output by default.
    """
    screen = console or Console(highlight=False)
    wide = max(len(name) for name, _ in facts)
    screen.print()
    for name, text in facts:
        _line(screen, f"{name:<{wide}}", printable(text, 400), "bold")
    for what, command in steps:
        _line(screen, f"{what}:", "", "dim")
        # a terminal breaks the line where it likes; what is copied is one line
        screen.print(f"  {printable(command, 4000)}", markup=False, soft_wrap=True)


def _line(screen: Console, name: str, text: str, style: str) -> None:
    screen.print(f"{name}  ", style=style, end="", markup=False, soft_wrap=True)
    screen.print(text, markup=False, soft_wrap=True)
