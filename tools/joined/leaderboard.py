"""Leaderboard of the joined model, the verb with its folders: ``make joined-leaderboard``."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from qvlm_lightning.commands._leaderboard_plan import LeaderboardPlan, parse_leaderboard
from qvlm_lightning.commands.leaderboard import make
from qvlm_lightning.exits import user_faults
from tools.joined.table import sources

PLAN = "configs/leaderboard/joined.yaml"


def main(argv: list[str] | None = None) -> int:
    """Rank the rows of a plan on the joined model; other options are those of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.joined.leaderboard", description=main.__doc__
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of easy-VQA")
    parser.add_argument(
        "--photographs", action="append", required=True, help="folder of photographs; repeatable"
    )
    parser.add_argument("--model", type=Path, default=Path("runs/joined"))
    parser.add_argument("--config", default=PLAN, help="plan of the leaderboard")
    args, rest = parser.parse_known_args(argv)
    given = sys.argv[1:] if argv is None else argv
    with user_faults():
        command = f"python -m tools.joined.leaderboard {shlex.join(given)}"
        make(plan_of(args, rest), command)
    return 0


def plan_of(args: argparse.Namespace, rest: list[str]) -> LeaderboardPlan:
    """Return the plan with the folders of the command line.

    Args:
        args: of this program.
        rest: options of ``qvlm leaderboard``.

    Raises:
        InputError: the model is missing, or an option is refused.
    """
    known = sources(args.model, args.data)
    given = [f"--config={args.config}", f"--fidelity.photographs={json.dumps(args.photographs)}"]
    plan = parse_leaderboard([*given, *rest])
    plan.sources += known
    return plan


if __name__ == "__main__":
    sys.exit(main())
