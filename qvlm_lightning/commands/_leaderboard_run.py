"""The run of a leaderboard: its tables one after another, then one page of all of them."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from qvlm_lightning.commands._leaderboard_estimate import estimated
from qvlm_lightning.commands._leaderboard_plan import LeaderboardPlan
from qvlm_lightning.commands._progress import clock
from qvlm_lightning.commands._provenance import provenance
from qvlm_lightning.commands._rival_plan import RivalRow, RivalsPlan
from qvlm_lightning.commands._rival_run import RivalsRun
from qvlm_lightning.commands._table_configs import joined_identity, stored_identity
from qvlm_lightning.commands._table_files import config_file, planned_scheme
from qvlm_lightning.commands._table_plan import PlannedVariant, TablePlan, planned_variants
from qvlm_lightning.commands._table_run import TableRun
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.cli import quiet
from qvlm_lightning.files import check_folder, write_whole
from qvlm_lightning.presets import built
from qvlm_lightning.results.leaderboard import Ranking, contests, ranking
from qvlm_lightning.results.leaderboard_page import html_page, markdown_page
from qvlm_lightning.results.leaderboard_tables import csv_text, ranking_grid, summary_grid
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import show
from qvlm_lightning.results.report import write_results
from qvlm_lightning.results.variant import file_name


def run(
    plan: LeaderboardPlan, tables: Sequence[TablePlan], rivals: Sequence[RivalRow], command: str
) -> None:
    """Make the tables of a leaderboard and write its page.

    Args:
        plan: of the leaderboard.
        tables: its tables.
        rivals: rows of other tools beside them.
        command: what the page names as what made it.

    Raises:
        InputError: see :func:`qvlm_lightning.commands.leaderboard.main`.
    """
    with quiet():
        refuse_impossible(tables)
        if plan.page is not None:
            check_folder(Path(plan.page).parent)
        runs = [TableRun(table) for table in tables]
        refuse_mixed(runs)
        foreign = RivalsRun(rivals, plan.others or RivalsPlan(), Path(plan.root))
        for number, table in enumerate(runs, 1):
            left = clock(estimated(tables, rivals).seconds)
            print(f"table {number} of {len(runs)}, about {left} left of all", file=sys.stderr)
            table.run(alone=False)
            foreign.run(table)
        rows = [row for table in runs for row in table.rows] + foreign.rows
        answered = [pair for table in runs for pair in answers(table)] + foreign.answers
        ours = {name for table in runs for name in rows_of(table, plan.ours)}
        ranked = [ranking(contest, ours) for contest in contests(answered, rows)]
        write_results(_file(plan, "results.json"), rows)
        write(plan, ranked, command)


def refuse_impossible(tables: Sequence[TablePlan]) -> None:
    """Refuse rows whose method can do nothing for their scheme, hours before they would say so.

    Raises:
        InputError: such a row; one whose options change method or scheme is left to its
            calibration.
    """
    for number, table in enumerate(tables, 1):
        for variant in planned_variants(table):
            own = *table.options, *variant.options[bool(variant.mode) :]
            if any(".method" in option or ".scheme" in option for option in own):
                continue
            try:
                _method(table, variant).check(planned_scheme(table, variant))
            except InputError as fault:
                raise InputError(f"table {number}, row {variant.title!r}: {fault}") from None


def _method(table: TablePlan, variant: PlannedVariant) -> Any:
    path = config_file(table, "methods", variant.method)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return built(values["model"]["init_args"]["method"])


def refuse_mixed(runs: Sequence[TableRun]) -> None:
    """Refuse tables that cannot share a folder, before any of them writes into it.

    Raises:
        InputError: see :func:`~qvlm_lightning.commands._table_configs.refuse_other_plan`.
    """
    known: dict[Path, dict] = {}
    for table in runs:
        root = table.root
        theirs = known[root] if root in known else stored_identity(root)
        known[root] = joined_identity(root, theirs, table.configs.identity(table.variants))


def answers(table: TableRun) -> list[tuple[Predictions, Predictions]]:
    """Return the answers of every row and seed of a table, each with those of full precision."""
    return [
        (mine, table.known[file_name(mine.variant.reference, split=mine.split)])
        for mine in table.answers.values()
    ]


def rows_of(table: TableRun, names: Collection[str]) -> set[str]:
    """Return what results call some rows of a table: with the groups of their scheme.

    Args:
        table: after its run.
        names: of the plan.
    """
    titles = {variant.title for variant in table.variants if variant.name in names}
    return {mine.variant.row for (title, *_), mine in table.answers.items() if title in titles}


def write(plan: LeaderboardPlan, ranked: Sequence[Ranking], command: str) -> None:
    """Write the page in every form and print its tables.

    Args:
        plan: says where.
        ranked: what is written.
        command: what the page names as what made it.
    """
    made = provenance(command)
    if plan.processes > 1:
        share = "each with its share of the cores; their seconds are those beside others"
        made["rows at once"] = f"{plan.processes}, {share}"
    text = markdown_page(ranked, made)
    write_whole(_file(plan, "leaderboard.md"), text)
    write_whole(_file(plan, "leaderboard.csv"), csv_text(ranked))
    write_whole(_file(plan, "leaderboard.html"), html_page(ranked, made))
    if plan.page is not None:
        write_whole(Path(plan.page), text)
    for grid in (*map(ranking_grid, ranked), summary_grid(ranked)):
        show(grid)
    names = ", ".join(_file(plan, f"leaderboard.{kind}").name for kind in ("md", "csv", "html"))
    print(f"{names} are in {plan.root}")


def _file(plan: LeaderboardPlan, name: str) -> Path:
    """Return where a result goes; those of the development split lie beside those of test."""
    path = Path(plan.root) / name
    return path if plan.split in (None, "test") else path.with_stem(f"{path.stem}-{plan.split}")
