"""Configuration files of a table's calibrations: found, hashed, and tried before any work."""

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qvlm_lightning.cli import train_main
from qvlm_lightning.commands._table_calibrations import Calibration
from qvlm_lightning.commands._table_files import calibration_files, evaluation_file
from qvlm_lightning.commands._table_plan import (
    PlannedVariant,
    TablePlan,
    stress_options,
)
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.files import write_json

IDENTITY = "plan.json"
"""What calibrations of a folder depend on."""


class TableConfigs:
    """Files and options that make the calibrations of a plan.

    Args:
        plan: names the files.
    """

    def __init__(self, plan: TablePlan) -> None:
        self.plan = plan
        split = f"--data.init_args.evaluation_split={plan.split}"
        self.split = [] if plan.split is None else [split]

    def options(self, calibration: Calibration) -> list[str]:
        """Return the options of ``train.py fit`` for one calibration.

        Raises:
            InputError: a file does not exist.
        """
        plan, variant = self.plan, calibration.variant
        return [
            *(f"--config={path}" for path in self.files(variant)),
            f"--trainer.default_root_dir={calibration.folder}",
            f"--data.init_args.seed={calibration.seed}",
            f"--data.init_args.calibration_pairs={plan.pairs}",
            f"--data.init_args.search_pairs={plan.search_pairs}",
            f"--data.init_args.evaluation_count={plan.questions}",
            *self.split,
            *stress_options(calibration.stress),
            *plan.sources,
            *plan.options,
            *variant.options,
        ]

    def evaluation(self) -> Path:
        """Return the configuration file of the evaluation."""
        return evaluation_file(self.plan)

    def files(self, variant: PlannedVariant) -> list[Path]:
        """Return the configuration files of a row, in the order they are read."""
        return calibration_files(self.plan, variant)

    def identity(self, variants: Sequence[PlannedVariant]) -> dict[str, Any]:
        """Return what the calibrations of a plan depend on, in plain values; comments in files do
        not count.
        """
        made = {v.folder: {"options": list(v.options), "files": self._digest(v)} for v in variants}
        plan = self.plan
        return {
            "model": plan.model,
            "pairs": plan.pairs,
            "search_pairs": plan.search_pairs,
            "options": plan.options,
            "variants": made,
        }

    def _digest(self, variant: PlannedVariant) -> str:
        said = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in self.files(variant)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def check(self, calibration: Calibration) -> None:
        """Parse the options of a calibration as ``train.py`` will, without running it.

        Raises:
            InputError: ``train.py`` would refuse them.
        """
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(complaint):
                train_main(["fit", *self.options(calibration), "--print_config"])
        except SystemExit as end:
            if end.code:
                sentence = complaint.getvalue().strip().removeprefix("error: ")
                raise InputError(f"variant {calibration.variant.title!r}: {sentence}") from None


def stored_identity(root: Path) -> dict[str, Any]:
    """Return the identity of the plan that made what is in a folder; empty where nothing is."""
    path = root / IDENTITY
    return dict(parse_json(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_identity(root: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity of the plans that share a folder."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / IDENTITY, identity)


def joined_identity(
    root: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the identity of two plans that share a folder.

    Args:
        root: the folder.
        theirs: identity of what is there; empty where nothing is.
        mine: identity of the plan (see :meth:`TableConfigs.identity`).

    Raises:
        InputError: see :func:`refuse_other_plan`.
    """
    refuse_other_plan(root, theirs, mine)
    return {**mine, "variants": {**theirs.get("variants", {}), **mine["variants"]}}


def refuse_other_plan(root: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse to mix the calibrations of two plans.

    Args:
        root: folder of the runs.
        theirs: identity of the plan that made what is there; empty where nothing is.
        mine: identity of the plan (see :meth:`TableConfigs.identity`).

    Raises:
        InputError: they differ in what they have in common.
    """
    for key, value in mine.items():
        if theirs and key != "variants" and theirs.get(key) != value:
            raise InputError(
                f"{str(root)!r} holds runs with {key} {theirs.get(key)!r}, the plan has {value!r}; "
                "choose another root or remove the folder"
            )
    made = theirs.get("variants", {})
    for folder, planned in mine["variants"].items():
        there = made.get(folder, planned)
        if there["options"] != planned["options"]:
            raise InputError(
                f"{str(root)!r} holds {folder!r} made with options {there['options']}, the plan "
                f"has {planned['options']}; give the row another name or choose another root"
            )
        if there["files"] != planned["files"]:
            raise InputError(
                f"{str(root)!r} holds {folder!r} made when its configuration files said something "
                "else; choose another root or remove the folder"
            )
