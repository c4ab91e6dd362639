"""Calibrate and evaluate a plan of variants, and print the table; resumes where it stopped."""

from collections.abc import Sequence

from qvlm_lightning.commands._table_plan import parse_plan


def main(argv: Sequence[str]) -> int:
    """Make the table of a plan.

    Args:
        argv: options, usually ``--config configs/table/demo.yaml``.

    Returns:
        Exit code 0.

    Raises:
        InputError: the plan names files that do not exist or options that ``train.py`` refuses, or
            the folder holds another plan's runs.
    """
    plan = parse_plan(argv, __doc__ or "")
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.commands._table_run import run

    run(plan)
    return 0
