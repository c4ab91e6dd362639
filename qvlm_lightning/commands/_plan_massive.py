"""Massive sites of an earlier run beside a plan, and overrides for the planned scheme."""

import json
from pathlib import Path
from shlex import quote
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qvlm_lightning.calibration.massive import proposed_overrides
from qvlm_lightning.errors import InputError, first_line, parse_json
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import Scheme


class MassiveSites:
    """Sites at which single tokens of an earlier run were far larger than the others.

    Args:
        path: the ``report.json`` of that run.
        family: the planned model.
        scheme: the planned one.
        structure: of the planned model.

    Raises:
        InputError: the file cannot be read, is no report, is older than this list, or is of
            another model.
    """

    def __init__(self, path: Path, family: HubFamily, scheme: Scheme, structure: Structure) -> None:
        self.path, self.scheme = path, scheme
        report = _read(path)
        if "massive" not in report:
            raise InputError(
                f"report {str(path)!r} does not say which sites are massive; give that of a run of "
                "this version"
            )
        ran, planned = _model(report["model"]), _model(family.describe())
        units = {name: [u.name for u in t.units] for name, t in structure.towers.items()}
        if ran != planned or report["units"] != units:
            told = [", ".join(map(str, each.values())) for each in (ran, planned)]
            what = f"{told[0]} with other layers" if ran == planned else told[0]
            raise InputError(
                f"report {str(path)!r} is of another model, {what}; allowed is that of a run of "
                f"{told[1]}"
            )
        self.sites: dict[str, dict[str, Any]] = report["massive"]["sites"]
        self.bits = {s.name: s.quantizer.num_bits for s in structure.sites}
        self.proposed = proposed_overrides(structure, scheme, list(self.sites))

    def values(self) -> dict[str, Any]:
        """Return sites, each with its planned activation bits (none where it is not quantized), and
        the proposed overrides.
        """
        rows = [
            {"site": name, **site, "planned_bits": self.bits.get(name)}
            for name, site in self.sites.items()
        ]
        return {"massive": rows, "proposed_overrides": self.proposed}

    def show(self, console: Console) -> None:
        """Print a table, and overrides as an option to copy."""
        if not self.sites:
            console.print(f"No massive sites in {self.path}.", soft_wrap=True)
            return
        table = Table(
            title=f"Massive sites of {self.path}", box=box.SIMPLE_HEAD, title_justify="left"
        )
        table.add_column("site", overflow="fold")
        for name in ("largest", "median", "ratio", "position", "token", "planned bits"):
            table.add_column(name, justify="right")
        for row in self.values()["massive"]:
            sizes = [f"{row[name]:,.4g}" for name in ("worst", "median", "ratio")]
            token = "" if row["token"] is None else escape(repr(row["token"]))
            bits = row["planned_bits"] or ""
            table.add_row(row["site"], *sizes, str(row["position"]), token, str(bits))
        console.print(table)
        for line in self._sentences():
            console.print(line, soft_wrap=True, markup=False)

    def _sentences(self) -> list[str]:
        if not self.proposed:
            return ["Every one of these sites that is quantized has more bits than its part."]
        # an option replaces the whole object
        together = json.dumps(self.scheme.overrides | self.proposed)
        return [
            "Overrides that give these sites more bits:",
            f"--model.scheme.overrides={quote(together)}",
        ]


def _read(path: Path) -> dict[str, Any]:
    try:
        report = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"report {str(path)!r} cannot be read: {first_line(error)}; give the report.json of a "
            "run folder"
        ) from error
    if not isinstance(report, dict) or not {"model", "units"} <= set(report):
        raise InputError(
            f"report {str(path)!r} is not that of a calibration; give the report.json of a run "
            "folder"
        )
    return report


def _model(described: dict[str, Any]) -> dict[str, Any]:
    """Return which model a description means, whatever its floating type."""
    told = {name: value for name, value in described.items() if name != "dtype"}
    if "path" in told:
        told["path"] = str(Path(told["path"]).resolve())
    return told
