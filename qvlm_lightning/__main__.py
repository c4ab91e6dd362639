"""``python -m qvlm_lightning <verb>``, installed as ``qvlm``: all that is not train or eval."""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from qvlm_lightning.commands import verbs
from qvlm_lightning.errors import InputError
from qvlm_lightning.exits import user_faults

USAGE = "usage: qvlm <verb> [options]     (qvlm <verb> --help tells a verb's options)"


@user_faults()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    ``--help`` and ``--version`` import neither torch nor Lightning: they answer at once.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"qvlm-lightning {_version()}")
        return 0
    known = verbs()
    if verb not in known:
        raise InputError(f"unknown verb {verb!r}; allowed are {', '.join(known)}")
    module = importlib.import_module(f"qvlm_lightning.commands.{verb.replace('-', '_')}")
    return int(module.main(rest))


def _help() -> str:
    known = verbs()
    width = max(map(len, known), default=0)
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in known.items()]
    outside = "Calibrate with train.py, score with eval.py."
    return "\n".join([USAGE, "", "verbs:", *lines, "", outside])


def _version() -> str:
    try:
        return importlib.metadata.version("qvlm-lightning")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    raise SystemExit(main())
