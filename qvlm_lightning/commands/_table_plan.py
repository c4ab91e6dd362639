"""The plan of ``qvlm table``: its rows, and the calibrations it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jsonargparse import set_parsing_settings

from qvlm_lightning.arguments import OneSentence
from qvlm_lightning.errors import InputError, check_numbers
from qvlm_lightning.quant.scheme import ActivationMode, Scheme
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import check_label, scheme_stem

_KEYS = ("name", "method", "scheme", "activation_mode", "options")


@dataclass
class FidelityPlan:
    """What each row's text is compared with full precision's on (docs/evaluation.md)."""

    photographs: list[str]
    """Folders of JPEG and PNG files."""
    prompts: list[str]
    """Free prompts, which photographs take in turn."""
    passage: str
    """File of a running text."""
    count: int = 200
    """Photographs, the first ones by path."""
    max_new_tokens: int = 32
    """Longest greedy answer."""
    batch_size: int = 8
    """Prompts at once; results do not depend on it, but for rounding."""


@dataclass
class TablePlan:
    """What a table compares, beside full precision."""

    variants: list[str | dict[str, Any]] = field(default_factory=lambda: ["rtn w4a4", "qvlm w4a4"])
    """Rows: method and scheme, files in configs/methods and configs/schemes ('paper/cdm w4a4'), or
    for a row with settings of its own {name: ..., method: ..., scheme: ..., activation_mode: ...,
    options: [...]}."""
    steps: list[list[str]] = field(default_factory=list)
    """Pairs of rows, such as [cdm w4a4, sequential w4a4]: what the first buys over the second."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Calibration seeds."""
    outlier_scales: list[float] = field(default_factory=lambda: [1.0])
    """Above 1: stress variants with outlier channels behind norms, which folding them undoes."""
    sink_scales: list[float] = field(default_factory=lambda: [1.0])
    """Above 1: stress variants with a massive first token; with every outlier scale."""
    pairs: int = 64
    """Calibration pairs."""
    search_pairs: int = 16
    """The first of them, for the percentile search."""
    questions: int = 2000
    """Evaluation questions per row."""
    split: Literal["test", "development"] | None = None
    """Split of the questions: development to choose, test to report; null: as configs/eval says."""
    model: str = "tiny"
    """Name of a file in configs/models, configs/data and configs/eval."""
    root: str = "runs/table"
    """Folder of everything the table makes."""
    configs: str = "configs"
    """Folder of the configuration files."""
    options: list[str] = field(default_factory=list)
    """Further options of train.py for every calibration."""
    sources: list[str] = field(default_factory=list)
    """Further options of train.py and eval.py alike: where model and data lie."""
    processes: int = 1
    """Rows made at once, each by a process with its share of the cores."""
    fidelity: FidelityPlan | None = None
    """Also compare each row's text with full precision's on these photographs and this passage."""
    results: str | None = None
    """Folder in the root for answers and results, where those of another number of questions lie in
    the root itself."""
    headline: str | None = None
    """Row, such as 'qvlm w4a4', whose first calibration runs in the root itself, with report.json
    and artifact/."""


@dataclass(frozen=True)
class PlannedVariant:
    """One row of a table."""

    method: str
    """File in configs/methods, without ending; ``paper/cdm`` lies in a folder there."""
    scheme: str
    """File in configs/schemes, without ending."""
    name: str
    """Name of the row."""
    options: tuple[str, ...] = ()
    """Options of train.py for this row only."""
    mode: str = ""
    """Activation mode, where the row says another than its scheme's file."""

    @property
    def title(self) -> str:
        """How a plan's ``headline`` names the row."""
        return " ".join(filter(None, (self.name, _plain(self.scheme), self.mode)))

    @property
    def folder(self) -> str:
        """Name of its run folders."""
        return self.title.replace(" ", "-")

    def calls_itself(self, method: str) -> bool:
        """Return whether an artifact whose method calls itself so can be of this row: names of
        presets end as their files do, with hyphens for underscores where they like.

        Example:
            >>> PlannedVariant("ablation/plus_veo", "w4a4", "mine").calls_itself("plus-veo")
            True
        """
        return method.replace("-", "_").endswith(self.method.rpartition("/")[2])

    def may_be(self, scheme_name: str, activation_mode: str, planned: Scheme | None) -> bool:
        """Return whether an artifact can be of this row: files are named as their authors like.

        Args:
            scheme_name: what the artifact calls its scheme.
            activation_mode: its mode.
            planned: scheme of the row's file; ``None`` where options of the plan change it.

        Example:
            >>> row, planned = PlannedVariant("cdm", "mine", "cdm"), Scheme.parse("w8a8")
            >>> [row.may_be(name, "static_tensor", planned) for name in ("w8a8+prefix", "w4a8")]
            [True, False]
        """
        if self.mode and self.mode != activation_mode:
            return False
        if len(self.options) > bool(self.mode):
            return True  # own options may change the scheme
        return planned is None or scheme_name.partition("+")[0] == planned.name.partition("+")[0]

    def label(self, scheme_name: str) -> str:
        """Return the name of the row in results, which distinguishes schemes of one name.

        Args:
            scheme_name: what the artifact calls the scheme.

        Example:
            >>> row = PlannedVariant("cdm", "w4a4_g128", "cdm")
            >>> row.label("w4a4"), row.label("w4a4_g128")
            ('cdm-g128', 'cdm')
            >>> row.label("w4a4+a8_7ced")  # the file has overrides beside the groups
            'cdm-g128'
        """
        widths = scheme_stem(scheme_name.partition("+")[0])
        rest = _plain(self.scheme).removeprefix(widths).lstrip("_-")
        return f"{self.name}-{rest}" if rest else self.name


def planned_variant(given: str | Mapping[str, Any]) -> PlannedVariant:
    """Read a row of a plan.

    Args:
        given: see :attr:`TablePlan.variants`.

    Raises:
        InputError: no method and scheme, an unknown key, or a name that no folder can have.

    Example:
        >>> planned_variant("paper/cdm w4a4").folder
        'paper-cdm-w4a4'
    """
    if isinstance(given, str):
        words = given.split()
        if len(words) != 2:
            raise InputError(f"variant {given!r} is not a method and a scheme, such as 'qvlm w4a4'")
        given = {"method": words[0], "scheme": words[1]}
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise InputError(f"a variant has the key {unknown[0]!r}; allowed are {', '.join(_KEYS)}")
    texts = {key: given.get(key) for key in ("method", "scheme")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"variant {dict(given)} has no {key}; give a file in configs/{key}s")
        for part in text.split("/"):
            check_label(part)
    name = given.get("name", _plain(str(texts["method"])))
    options = given.get("options", [])
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise InputError(f"options of variant {name!r} are {options!r}; allowed is a list of texts")
    check_label(str(name))
    mode = given.get("activation_mode", "")
    if mode and mode not in get_args(ActivationMode):
        allowed = ", ".join(get_args(ActivationMode))
        raise InputError(f"activation_mode of variant {name!r} is {mode!r}; allowed are {allowed}")
    if mode:
        options = [f"--model.init_args.scheme.activation_mode={mode}", *options]
    method, scheme = str(texts["method"]), str(texts["scheme"])
    return PlannedVariant(method, scheme, str(name), tuple(options), mode)


def planned_variants(plan: TablePlan) -> list[PlannedVariant]:
    """Read all rows of a plan.

    Raises:
        InputError: see :func:`planned_variant`; or two rows of one name and scheme, or a headline
            or step that names none of them.
    """
    variants = [planned_variant(given) for given in plan.variants]
    folders = [variant.folder for variant in variants]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise InputError(f"two variants are {twice!r}; give one of them another name")
    allowed = ", ".join(variant.title for variant in variants)
    if plan.headline is not None and not any(is_headline(plan, v) for v in variants):
        raise InputError(f"headline is {plan.headline!r}; allowed are the variants {allowed}")
    titles = {variant.title for variant in variants}
    for step in plan.steps:
        if len(step) != 2 or not {_plain(title) for title in step} <= titles:
            raise InputError(f"step is {step}; allowed are two of the variants {allowed}")
    return variants


def stress_options(stress: Stress) -> list[str]:
    """Return the options of both programs for a stress variant; none where the model is as trained.

    Example:
        >>> stress_options(Stress(sink_scale=1000.0))
        ['--model.init_args.family.init_args.sink_scale=1000.0']
    """
    given = {name: scale for name, scale in stress._asdict().items() if scale != 1}
    return [f"--model.init_args.family.init_args.{name}={scale}" for name, scale in given.items()]


def planned_steps(plan: TablePlan) -> list[tuple[str, str]]:
    """Return the titles of the rows of each step."""
    return [(_plain(row), _plain(against)) for row, against in plan.steps]


def is_headline(plan: TablePlan, variant: PlannedVariant) -> bool:
    """Return whether a row is the plan's headline."""
    return plan.headline is not None and variant.title == _plain(plan.headline)


def _plain(path: str) -> str:
    return path.replace("/", "-")


def parse_plan(argv: Sequence[str], summary: str = "") -> TablePlan:
    """Read a plan from options and configuration files.

    Args:
        argv: options of the verb.
        summary: what ``--help`` says first.
    """
    values = table_parser(summary).parse_args(list(argv)).as_dict()
    values.pop("config")
    return checked_plan(values)


def table_parser(summary: str = "") -> OneSentence:
    """Return the parser of a table's plan.

    Args:
        summary: what ``--help`` says first.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # they become the help
    parser = OneSentence(prog="qvlm table", description=summary)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_class_arguments(TablePlan)
    return parser


def checked_plan(values: dict[str, Any]) -> TablePlan:
    """Return the plan of parsed values.

    Args:
        values: by the names of :class:`TablePlan`.

    Raises:
        InputError: a number that is not allowed.
    """
    if values["fidelity"] is not None:
        values["fidelity"] = FidelityPlan(**values["fidelity"])
    plan = TablePlan(**values)
    for name in ("pairs", "search_pairs", "questions", "processes"):
        check_numbers(1, **{name: getattr(plan, name)})
    for scale in plan.outlier_scales:
        check_numbers(1, outlier_scale=scale)
    for scale in plan.sink_scales:
        check_numbers(1, sink_scale=scale)
    if plan.search_pairs > plan.pairs:
        raise InputError(
            f"search_pairs is {plan.search_pairs}; allowed are 1 to pairs, which is {plan.pairs}"
        )
    if plan.fidelity is not None:
        for name in ("count", "max_new_tokens", "batch_size"):
            check_numbers(1, **{name: getattr(plan.fidelity, name)})
    return plan
