"""What a table compares: the plan of ``qvlm table``, and the calibrations it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import set_parsing_settings

from qvlm_lightning.arguments import OneSentenceParser


@dataclass
class TablePlan:
    """What a table compares, beside full precision."""

    variants: list[str] = field(default_factory=lambda: ["rtn w4a4", "qvlm w4a4"])
    """Method and scheme of each variant: files in configs/methods and configs/schemes."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Calibration seeds."""
    outlier_scales: list[float] = field(default_factory=lambda: [1.0])
    """Above 1: stress variants with outlier channels."""
    pairs: int = 64
    """Calibration pairs."""
    search_pairs: int = 16
    """The first of them, for the percentile search."""
    questions: int = 2000
    """Evaluation questions per row."""
    model: str = "tiny"
    """Name of a file in configs/models, configs/data and configs/eval."""
    root: str = "runs/table"
    """Folder of everything the table makes."""
    configs: str = "configs"
    """Folder of the configuration files."""
    options: list[str] = field(default_factory=list)
    """Further options of train.py for every calibration."""
    headline: str | None = None
    """Variant whose first calibration runs in the root itself, with report.json and artifact/."""


@dataclass(frozen=True)
class Calibration:
    """One calibration of a plan."""

    method: str
    """File in configs/methods."""
    scheme: str
    """File in configs/schemes."""
    seed: int
    """Calibration seed."""
    scale: float
    """Outlier scale."""
    folder: Path
    """Run folder."""

    @property
    def artifact(self) -> Path:
        """Where it exports to."""
        return self.folder / "artifact"

    @property
    def finished(self) -> bool:
        """Whether it has exported; the folder appears as a whole."""
        return self.artifact.is_dir()

    @property
    def label(self) -> str:
        """How progress names it."""
        stress = f", outlier scale {self.scale:g}" if self.scale > 1 else ""
        return f"{self.scheme} {self.method}, seed {self.seed}{stress}"


def parse_plan(argv: Sequence[str], summary: str = "") -> TablePlan:
    """Read a plan from options and configuration files.

    Args:
        argv: options of the verb.
        summary: what ``--help`` says first.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # they become the help
    parser = OneSentenceParser(prog="qvlm table", description=summary)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_class_arguments(TablePlan)
    values = parser.parse_args(list(argv)).as_dict()
    values.pop("config")
    return TablePlan(**values)
