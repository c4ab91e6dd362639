"""Rank methods per scheme: several tables as one page, with an estimate first; resumes."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._leaderboard_estimate import Estimate, estimated
from qvlm_lightning.commands._leaderboard_plan import (
    LeaderboardPlan,
    parse_leaderboard,
    table_plans,
)
from qvlm_lightning.commands._progress import clock
from qvlm_lightning.commands._rival_environment import to_be_made, tools_of
from qvlm_lightning.commands._rival_plan import RivalRow, Tool, left_out, planned_rivals
from qvlm_lightning.commands._table_plan import TablePlan
from qvlm_lightning.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Make the leaderboard of a plan.

    Args:
        argv: options, usually ``--config configs/leaderboard/quick.yaml``.

    Returns:
        Exit code 0.

    Raises:
        InputError: the plan names what does not exist, repeats a row, takes longer than
            ``max_hours``, or ``train.py`` refuses its options.
    """
    plan = parse_leaderboard(argv, __doc__ or "")
    make(plan, f"python -m qvlm_lightning leaderboard {shlex.join(argv)}")
    return 0


def make(plan: LeaderboardPlan, command: str) -> None:
    """Print the estimate of a plan, and unless it asks for no more, carry it out.

    Args:
        plan: of the leaderboard.
        command: what the page names as what made it.

    Raises:
        InputError: see :func:`main`.
    """
    tables = table_plans(plan)
    rivals = rivals_of(plan, tables)
    estimate = estimated(tables, rivals, missing_environments(plan, rivals))
    for line in [*left_out(tables, plan.others), *estimate.lines()]:
        print(line, flush=True)
    if plan.estimate_only:
        return
    refuse_long(estimate, plan.max_hours)
    # seconds of imports: not before the plan is known to be right
    from qvlm_lightning.commands._leaderboard_run import run

    run(plan, tables, rivals, command)


def rivals_of(plan: LeaderboardPlan, tables: Sequence[TablePlan]) -> list[RivalRow]:
    """Return the rows of other tools.

    Raises:
        InputError: they are asked for, and none of them can have any scheme.
    """
    rows = planned_rivals(tables, plan.others)
    if plan.others is not None and not rows:
        raise InputError(
            f"rivals can have none of the schemes: {'; '.join(left_out(tables, plan.others))}; "
            "give another scheme, or leave rivals out"
        )
    return rows


def missing_environments(plan: LeaderboardPlan, rivals: Sequence[RivalRow]) -> list[Tool]:
    """Return the tools whose environments are to be made."""
    if plan.others is None:
        return []
    return to_be_made(tools_of(rivals), plan.others, Path(plan.root))


def refuse_long(estimate: Estimate, max_hours: float) -> None:
    """Refuse what takes longer than it may.

    Raises:
        InputError: it does, by its estimate.
    """
    if estimate.seconds > 3600 * max_hours:
        raise InputError(
            f"the estimate is {clock(estimate.seconds)}, max_hours is {max_hours:g}; give fewer "
            "rows, seeds or questions, or a larger max_hours"
        )
