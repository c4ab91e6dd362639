"""Configuration files that a table's plan names."""

from pathlib import Path
from typing import Any

import yaml

from qvlm_lightning.commands._table_plan import PlannedVariant, TablePlan
from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.scheme import Scheme

_MODEL_ROOMS = ("models", "data", "eval")


def calibration_files(plan: TablePlan, variant: PlannedVariant) -> list[Path]:
    """Return the configuration files of a row, in the order they are read.

    Raises:
        InputError: one does not exist.
    """
    return [
        config_file(plan, "", "base"),
        config_file(plan, "methods", variant.method),
        config_file(plan, "schemes", variant.scheme),
        config_file(plan, "models", plan.model),
        config_file(plan, "data", plan.model),
    ]


def evaluation_file(plan: TablePlan) -> Path:
    """Return the configuration file of the evaluation.

    Raises:
        InputError: it does not exist.
    """
    return config_file(plan, "eval", plan.model)


def planned_mode(plan: TablePlan, variant: PlannedVariant) -> str:
    """Return the activation mode of a row: its own, or that of its scheme's file."""
    own = _scheme_of_file(plan, variant).get("activation_mode", Scheme().activation_mode)
    return variant.mode or str(own)


def planned_scheme(plan: TablePlan, variant: PlannedVariant) -> Scheme:
    """Return the scheme of a row: that of its file, in the row's activation mode.

    Raises:
        InputError: the file holds what a scheme must not.
    """
    values = _scheme_of_file(plan, variant)
    return Scheme.from_dict(values | {"activation_mode": planned_mode(plan, variant)})


def _scheme_of_file(plan: TablePlan, variant: PlannedVariant) -> dict[str, Any]:
    file = config_file(plan, "schemes", variant.scheme)
    model = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("model", {})
    scheme = model.get("init_args", model).get("scheme")  # class_path may be left out
    if not isinstance(scheme, dict):
        raise InputError(f"{str(file)!r} has no model.init_args.scheme; write the scheme there")
    return scheme


def config_file(plan: TablePlan, room: str, name: str) -> Path:
    """Return a configuration file of a plan.

    Args:
        plan: of the table.
        room: ``methods``, ``schemes`` or another folder there; empty for the top.
        name: of the file, without its ending.

    Raises:
        InputError: it does not exist.
    """
    path = Path(plan.configs) / room / f"{name}.yaml"
    if not path.is_file():
        # a model is one name in three rooms
        rooms = _MODEL_ROOMS if room in _MODEL_ROOMS else (room,)
        known = set.intersection(*(_names(plan, other) for other in rooms))
        raise InputError(
            f"there is no {str(path)!r}; allowed are {', '.join(sorted(known)) or 'none there'}"
        )
    return path


def _names(plan: TablePlan, room: str) -> set[str]:
    folder = Path(plan.configs) / room
    files = folder.rglob("*.yaml") if room else folder.glob("*.yaml")
    return {file.relative_to(folder).with_suffix("").as_posix() for file in files}
