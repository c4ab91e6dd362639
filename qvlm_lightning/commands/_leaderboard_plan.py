"""The plan of ``qvlm leaderboard``: several tables, and what they have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, set_parsing_settings

from qvlm_lightning.arguments import OneSentence, one_sentence
from qvlm_lightning.commands._rival_plan import RivalsPlan
from qvlm_lightning.commands._table_calibrations import planned_calibrations
from qvlm_lightning.commands._table_files import (
    calibration_files,
    evaluation_file,
    planned_mode,
)
from qvlm_lightning.commands._table_plan import (
    FidelityPlan,
    TablePlan,
    checked_plan,
    planned_variants,
    table_parser,
)
from qvlm_lightning.errors import InputError, check_numbers


@dataclass
class LeaderboardPlan:
    """Which tables make a leaderboard."""

    tables: list[str | dict[str, Any]] = field(default_factory=list)
    """Tables: files of qvlm table, or keys of such a file ({variants: ..., seeds: ...}), on top of
    a file where {file: ...} names one."""
    ours: list[str] = field(default_factory=list)
    """Names of rows that are not rivals."""
    model: str = "tiny"
    """Of tables that do not say it: see qvlm table; so are the options that follow."""
    split: Literal["test", "development"] | None = None
    """Split of the questions."""
    root: str = "runs/leaderboard"
    """Folder of everything that is made; leaderboard.md, .csv and .html lie there."""
    configs: str = "configs"
    """Folder of the configuration files."""
    pairs: int = 64
    """Calibration pairs."""
    search_pairs: int = 16
    """The first of them, for the percentile search."""
    questions: int = 2000
    """Evaluation questions per row."""
    options: list[str] = field(default_factory=list)
    """Further options of train.py for every calibration."""
    sources: list[str] = field(default_factory=list)
    """Further options of train.py and eval.py alike: where model and data lie."""
    processes: int = 1
    """Rows made at once, each by a process with its share of the cores."""
    fidelity: FidelityPlan | None = None
    """Also compare each row's text with full precision's on these photographs and this passage."""
    rivals: RivalsPlan | bool = False
    """Rows of other tools (llm-compressor, auto-round) beside the tables' own, at the same schemes,
    on the same pairs: true for all of them, or {rows: [...], pythons: {...}}."""
    max_hours: float = 4.0
    """Longest plan that is begun, by the estimate of what is left."""
    estimate_only: bool = False
    """Print the estimate and end."""
    page: str | None = None
    """File that gets a copy of leaderboard.md."""

    @property
    def others(self) -> RivalsPlan | None:
        """Which other tools take part; None for none."""
        return self.rivals if isinstance(self.rivals, RivalsPlan) else None


_OWN = {f.name for f in fields(TablePlan)} - {"steps"}
_COMMON = sorted(_OWN & {f.name for f in fields(LeaderboardPlan)})


def parse_leaderboard(argv: Sequence[str], summary: str = "") -> LeaderboardPlan:
    """Read a plan from options and configuration files.

    Args:
        argv: options of the verb.
        summary: what ``--help`` says first.

    Raises:
        InputError: no tables, or a number that is not allowed.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # they become the help
    parser = OneSentence(prog="qvlm leaderboard", description=summary)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_class_arguments(LeaderboardPlan)
    values = parser.parse_args(list(argv)).as_dict()
    values.pop("config")
    if values["fidelity"] is not None:
        values["fidelity"] = FidelityPlan(**values["fidelity"])
    plan = LeaderboardPlan(**values | {"rivals": _rivals(values["rivals"])})
    check_numbers(0, strictly=True, max_hours=plan.max_hours)
    if not plan.tables:
        raise InputError("tables is []; give one table or more, such as {variants: [rtn w4a4]}")
    return plan


def _rivals(given: Mapping[str, Any] | bool) -> RivalsPlan | bool:
    """Return the section of other tools; true and false are those of ``--rivals``."""
    if isinstance(given, bool):
        return RivalsPlan() if given else False
    return RivalsPlan(**given).checked()


def table_plans(plan: LeaderboardPlan) -> list[TablePlan]:
    """Return the tables of a plan, each with what all have in common.

    Raises:
        InputError: a table that cannot be read, a key or value that is not allowed, a row that two
            tables have, a configuration file that does not exist, or a name in ``ours`` that no
            row has.
    """
    common = {name: getattr(plan, name) for name in _COMMON}
    if plan.fidelity is not None:
        common["fidelity"] = vars(plan.fidelity)
    tables = []
    for number, given in enumerate(plan.tables, 1):
        try:
            tables.append(_parsed(common | _own(given)))
        except InputError as fault:
            raise InputError(f"table {number}: {fault}") from None
    _refuse_repeated(tables)
    names = list(dict.fromkeys(v.name for table in tables for v in planned_variants(table)))
    for name in plan.ours:
        if name not in names:
            raise InputError(f"ours has {name!r}; allowed are the rows {', '.join(names)}")
    return tables


def _own(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table says itself; steps of files are left to ``qvlm table``."""
    own = {"file": given} if isinstance(given, str) else dict(given)
    unknown = sorted(set(own) - _OWN - {"file"})
    if unknown:
        allowed = ", ".join(sorted(_OWN | {"file"}))
        raise InputError(f"the key {unknown[0]!r} is not known; allowed are {allowed}")
    file = own.pop("file", None)
    return (_read(file) if file is not None else {}) | own


def _read(file: object) -> dict[str, Any]:
    path = Path(str(file))
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}; give a plan of qvlm table")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InputError(f"{str(path)!r} is no YAML: {' '.join(str(fault).split())}") from fault
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} holds no keys; give a plan of qvlm table")
    return {key: value for key, value in values.items() if key != "steps"}


def _parsed(values: dict[str, Any]) -> TablePlan:
    parser = table_parser()
    parser.exit_on_error = False
    try:
        parsed = parser.parse_object(values).as_dict()
    except ArgumentError as fault:
        raise InputError(one_sentence(str(fault))) from None
    parsed.pop("config")
    table = checked_plan(parsed)
    for variant in planned_variants(table):
        calibration_files(table, variant)
    evaluation_file(table)
    planned_calibrations(table)
    return table


def _refuse_repeated(tables: Sequence[TablePlan]) -> None:
    """Refuse rows whose answers would lie in one file."""
    seen: dict[tuple, int] = {}
    for number, table in enumerate(tables, 1):
        modes = {variant: planned_mode(table, variant) for variant in planned_variants(table)}
        for c in planned_calibrations(table):
            row = c.variant.name, c.variant.scheme, modes[c.variant]
            key = *row, table.model, table.split, table.questions, c.stress, c.seed
            if key in seen:
                raise InputError(
                    f"tables {seen[key]} and {number} both have {c.label}; leave it out of one"
                )
            seen[key] = number
