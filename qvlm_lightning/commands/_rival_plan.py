"""Rows of a leaderboard that other tools make: which they are, and which schemes they can hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qvlm_lightning.commands._table_calibrations import planned_stresses, stress_folder
from qvlm_lightning.commands._table_files import planned_mode, planned_scheme
from qvlm_lightning.commands._table_plan import PlannedVariant, TablePlan, planned_variants
from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.scheme import OFF, PARTS, PartScheme, Scheme
from qvlm_lightning.results.stress import Stress

RESULT = "rival.json"
"""What a rival's run cost and depends on, in its folder; written last."""


@dataclass(frozen=True)
class Tool:
    """Another tool, in an environment of its own."""

    name: str
    """Its environment in plans."""
    program: str
    """File in ``qvlm_lightning/rivals``; what it needs is in the ``.txt`` of the tool's name."""
    package: str
    """Distribution whose version rows carry."""
    variable: str
    """Environment variable that may name the Python of an environment that has it."""
    gigabytes: float
    """Of a new environment on disk, with a torch without CUDA."""
    seconds: float
    """Of making one, on a connection of some MB a second."""


@dataclass(frozen=True)
class Rival:
    """A method of another tool."""

    name: str
    """Of its row."""
    tool: Tool
    """Whose it is."""
    method: str
    """What the program calls it."""
    widths: tuple[int, ...]
    """Bits of weights that it can have."""
    activations: bool = True
    """Whether activations may be quantized, per token."""
    towers: bool = True
    """Whether layers outside the decoder may be quantized."""

    def refusal(self, scheme: Scheme) -> str:
        """Return why it cannot make a scheme; empty where it can.

        Args:
            scheme: of our rows.

        Example:
            >>> RIVALS["autoround"].refusal(Scheme.parse("w4a4", activation_mode="dynamic_token"))
            'it is asked for weights only'
        """
        parts = {part: scheme.part(part) for part in PARTS}
        off = PartScheme(OFF, OFF)
        quantized = {part: widths for part, widths in parts.items() if widths != off}
        acts = any(widths.activation_bits < OFF for widths in quantized.values())
        for given, what in (
            (scheme.overrides, "overrides"),
            (scheme.ignore, "patterns to ignore"),
            (scheme.sink != "none", "sinks"),
        ):
            if given:
                return f"{what} are not passed on"
        if any(widths.weight_bits not in self.widths for widths in quantized.values()):
            return f"its weights have {', '.join(map(str, self.widths))} bits"
        if acts and not self.activations:
            return "it is asked for weights only"
        if acts and scheme.activation_mode != "dynamic_token":
            return "its activations are quantized per token"
        if not self.towers and set(quantized) != {"language"}:
            return "it is asked for the decoder only"
        return ""


LLMCOMPRESSOR = Tool(
    "llmcompressor",
    "run_llmcompressor.py",
    "llmcompressor",
    "QVLM_LLMCOMPRESSOR_PYTHON",
    gigabytes=2.0,
    seconds=300,
)
AUTOROUND = Tool(
    "autoround",
    "run_autoround.py",
    "auto-round",
    "QVLM_AUTOROUND_PYTHON",
    gigabytes=2.0,
    seconds=300,
)
TOOLS = {tool.name: tool for tool in (LLMCOMPRESSOR, AUTOROUND)}
_ANY = (2, 3, 4, 5, 6, 7, 8)
RIVALS = {
    rival.name: rival
    for rival in (
        Rival("llmcompressor-rtn", LLMCOMPRESSOR, "rtn", _ANY),
        Rival("llmcompressor-gptq", LLMCOMPRESSOR, "gptq", _ANY),
        Rival("autoround", AUTOROUND, "signround", (2, 3, 4, 8), activations=False, towers=False),
    )
}
"""Name of the row -> what makes it."""


@dataclass
class RivalsPlan:
    """Which other tools take part."""

    rows: list[str] = field(default_factory=lambda: list(RIVALS))
    """Names of rows."""
    pythons: dict[str, str] = field(default_factory=dict)
    """Tool -> Python of an environment that has it; others are made in the leaderboard's root, or
    named by the variables QVLM_LLMCOMPRESSOR_PYTHON and QVLM_AUTOROUND_PYTHON."""

    def checked(self) -> "RivalsPlan":
        """Return the plan itself.

        Raises:
            InputError: no rows, a row or tool that is not known, or a row twice.
        """
        for what, given, known in (
            ("rows", self.rows, RIVALS),
            ("pythons", list(self.pythons), TOOLS),
        ):
            for name in given:
                if name not in known:
                    allowed = ", ".join(known)
                    raise InputError(f"rivals.{what} has {name!r}; allowed are {allowed}")
        if not self.rows or len(set(self.rows)) < len(self.rows):
            raise InputError(f"rivals.rows is {self.rows}; give each row once, at least one")
        return self


@dataclass(frozen=True, eq=False)
class RivalRow:
    """One run of another tool."""

    rival: Rival
    """What runs."""
    table: TablePlan
    """Whose rows it stands beside."""
    variant: PlannedVariant
    """Name, scheme and mode."""
    scheme: Scheme
    """Of those rows."""
    seed: int
    """Calibration seed."""
    stress: Stress
    """Scales of the model's stress variant."""

    @property
    def folder(self) -> Path:
        """Where weights and costs go."""
        return stress_folder(self.table, self.stress) / f"seed{self.seed}" / self.variant.folder

    @property
    def label(self) -> str:
        """How progress names it."""
        stress = f", {self.stress.title}" if self.stress else ""
        return f"{self.variant.title}, seed {self.seed}{stress}"

    @property
    def finished(self) -> bool:
        """Whether it has run, as far as can be told without looking at the model."""
        return (self.folder / RESULT).is_file()


def planned_rivals(tables: Sequence[TablePlan], plan: RivalsPlan | None) -> list[RivalRow]:
    """Return the rows of other tools: one for every scheme and mode of a table that a tool can
    have, and each of the table's seeds and stress variants.

    Args:
        tables: of the leaderboard.
        plan: which tools; ``None`` for none.
    """
    rows: dict[Path, RivalRow] = {}
    for table, name, variant, scheme in _asked(tables, plan):
        if not RIVALS[name].refusal(scheme):
            for stress in planned_stresses(table):
                for seed in table.seeds:
                    row = RivalRow(RIVALS[name], table, variant, scheme, seed, stress)
                    rows.setdefault(row.folder, row)
    return list(rows.values())


def left_out(tables: Sequence[TablePlan], plan: RivalsPlan | None) -> list[str]:
    """Return a sentence for each scheme that a tool cannot have."""
    told = {}
    for _, name, variant, scheme in _asked(tables, plan):
        if reason := RIVALS[name].refusal(scheme):
            told[variant.title] = f"{variant.title} is left out: {reason}"
    return list(told.values())


def _asked(
    tables: Sequence[TablePlan], plan: RivalsPlan | None
) -> Iterator[tuple[TablePlan, str, PlannedVariant, Scheme]]:
    for table in tables:
        schemes = {(own.scheme, own.mode): own for own in planned_variants(table)}
        for (name, mode), own in schemes.items():
            scheme = planned_scheme(table, own)
            assert scheme.activation_mode == planned_mode(table, own)
            for row in [] if plan is None else plan.rows:
                yield table, row, PlannedVariant(row, name, row, mode=mode), scheme
