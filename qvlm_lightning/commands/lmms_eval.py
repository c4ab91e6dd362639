"""Evaluate a calibrated artifact with lmms-eval, where that is installed (optional)."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Run lmms-eval as a process of its own.

    Args:
        argv: options of the verb.

    Returns:
        The exit code of lmms-eval; 2 where it is not installed.

    Raises:
        InputError: the artifact or the interpreter is not there.
    """
    options, extra = _parser().parse_known_args(list(argv))
    if not (options.artifact / "quantization.json").is_file():
        raise InputError(
            f"{str(options.artifact)!r} is not an artifact: it has no quantization.json"
        )

    from qvlm_lightning.evaluation.bridge import command

    given = command(
        options.python,
        str(options.artifact),
        options.tasks,
        str(options.out),
        options.batch_size,
        extra,
    )
    print(shlex.join(given), flush=True)
    if options.dry_run:
        return 0
    try:
        return subprocess.run(given, check=False).returncode
    except FileNotFoundError as error:
        raise InputError(f"python is {options.python!r}, which is not there") from error


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="qvlm lmms-eval",
        description=__doc__,
        epilog="Options that are not listed go to lmms-eval, such as --limit 8.",
    )
    parser.add_argument("--artifact", type=Path, required=True, help="exported folder")
    parser.add_argument("--tasks", required=True, help="tasks of lmms-eval, such as pope,mmmu_val")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/lmms_eval"), help="folder of its results"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="questions at once")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="interpreter of an environment with lmms-eval and this project",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command and do not run it"
    )
    return parser
