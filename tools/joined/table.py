"""Tables of the joined model: ``make joined-table`` runs ``python -m tools.joined.table``."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qvlm_lightning.commands._progress import clock
from qvlm_lightning.commands._table_plan import TablePlan, parse_plan, planned_variant
from qvlm_lightning.commands._table_run import TableRun
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.cli import quiet
from qvlm_lightning.exits import user_faults
from qvlm_lightning.files import write_whole
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.results.render import markdown, show
from tools.joined import estimate, summary
from tools.joined.development import development_folder

PLAN = "configs/table/joined.yaml"


def main(argv: list[str] | None = None) -> int:
    """Calibrate and evaluate the rows of a plan, and print the tables; resumes where it stopped."""
    parser = argparse.ArgumentParser(prog="python -m tools.joined.table", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of easy-VQA")
    parser.add_argument(
        "--photographs", action="append", required=True, help="folder of photographs; repeatable"
    )
    parser.add_argument("--model", type=Path, default=Path("runs/joined"))
    parser.add_argument("--config", default=PLAN, help="plan of the table")
    parser.add_argument("--root", help="folder of the runs; default: that of the plan")
    parser.add_argument("--row", action="append", help="only this row of the plan; repeatable")
    parser.add_argument("--questions", type=int, help="of the test split; default: as the plan")
    parser.add_argument(
        "--development",
        action="store_true",
        help="ask about pictures that neither the adapter nor the test split has, to choose by",
    )
    args = parser.parse_args(argv)
    with user_faults(), quiet():
        plan = plan_of(args)
        run = TableRun(plan)
        print(summary.NOTE, file=sys.stderr)
        print(expected(run, args.model), file=sys.stderr)
        run.run()
        grid = summary.summary(run.rows)
        write_whole(run.results_folder / "summary.md", f"{markdown(grid)}\n")
        show(grid)
    return 0


def expected(run: TableRun, folder: Path) -> str:
    """Say how much is left and about how long it will take.

    Args:
        run: of the table.
        folder: of the model, for the pilot.
    """
    tokens = estimate.tokens_left(run)
    rows = sum(not calibration.finished for calibration in run.calibrations)
    if not tokens:
        return f"all {len(run.calibrations)} rows are calibrated"
    model = Llava(str(folder), dtype="float32").load_model()
    at_once = max(1, min(run.plan.processes, rows))
    seconds = tokens * estimate.seconds_per_token(model, at_once) / at_once
    head = f"{rows} of {len(run.calibrations)} rows are to be made"
    return f"{head}: about {clock(seconds)}, as fast as the machine is now"


def plan_of(args: argparse.Namespace) -> TablePlan:
    """Return the plan with the folders and choices of the command line.

    Raises:
        InputError: the model is missing, or a row that the plan has not.
    """
    known = sources(args.model, args.data)
    given = [f"--config={args.config}"]
    given += [f"--fidelity.photographs={json.dumps(args.photographs)}"]
    if args.root is not None:
        given.append(f"--root={args.root}")
    plan = parse_plan(given)
    if args.development:
        plan = replace(plan, root=f"{plan.root}-development")  # other pairs, other questions
        known = sources(args.model, development_folder(args.data, Path(plan.root, "easy_vqa")))
    plan.sources += known
    if args.questions is not None and args.questions != plan.questions:
        plan = replace(plan, questions=args.questions, results=f"questions{args.questions}")
    return plan if args.row is None else replace(plan, variants=chosen(plan, args.row))


def sources(model: Path, data: Path) -> list[str]:
    """Return the options that say where model and data lie.

    Raises:
        InputError: the model is missing.
    """
    if not (model / "config.json").is_file():
        raise InputError(f"the joined model is not in {str(model)!r}; run `make joined` first")
    return [
        f"--model.init_args.family.init_args.path={model}",
        *(f"--data.init_args.{part}.path={data}" for part in ("evaluation", "calibration")),
    ]


def chosen(plan: TablePlan, titles: Sequence[str]) -> list:
    """Return some rows of a plan.

    Args:
        plan: of the table.
        titles: such as ``rtn w8a8 dynamic_token``.

    Raises:
        InputError: a row that the plan has not.
    """
    rows = {planned_variant(given).title: given for given in plan.variants}
    for title in titles:
        if title not in rows:
            raise InputError(f"row is {title!r}; allowed are {', '.join(map(repr, rows))}")
    return [rows[title] for title in titles]


if __name__ == "__main__":
    sys.exit(main())
