"""Every YAML in configs/ is parsed by the program it belongs to and runs for a step."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qvlm_lightning.__main__ import main
from qvlm_lightning.cli import train_main
from qvlm_lightning.commands._table_plan import PlannedVariant
from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.models.find import class_at

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# room of configs/ -> program that reads it; a new room needs a line here and a test below
CALIBRATION = {"", "methods", "schemes", "models", "data", "trainer", "presets"}
INNER = ("methods/paper", "methods/ablation")  # further rows of tables
# tasks: tests/tasks/test_presets.py; leaderboard: tests/commands/test_leaderboard.py
EVALUATION = {"eval", "table", "tasks", "leaderboard"}

SMALL = [
    "--trainer.fast_dev_run=true",
    "--trainer.accelerator=cpu",
    "--data.init_args.calibration_pairs=8",
    "--data.init_args.search_pairs=4",
    "--data.init_args.batch_size=4",
]


# presets for data that lies outside of the package, by the stem of their names
OUTSIDE = ("chat", "joined", "task")


def presets(room: str, outside: bool = False) -> list[str]:
    """Names like ``methods/qvlm.yaml``, sorted."""
    inside = {"tiny"} if room == "models" else None  # other models are folders of the user
    files = [
        p
        for p in (CONFIGS / room).glob("*.yaml")
        if (p.stem in OUTSIDE if inside is None else p.stem not in inside) == outside
    ]
    return sorted(str(p.relative_to(CONFIGS)) for p in files)


def told(name: str, folder: Path) -> list[str]:
    """What a preset for data outside has to be told: where it lies, and which benchmark it is."""
    task, joined = "task" in name, "joined" in name
    source = folder if task or joined else folder / "{}.jsonl"
    paths = {"calibration": str(source).format("train"), "evaluation": str(source).format("test")}
    benchmark = [f"--config={CONFIGS / 'tasks' / 'easy_vqa.yaml'}"] if task else []
    count = ["--data.init_args.evaluation_count=12"] if joined else []  # as many as there are
    return [*benchmark, *(f"--data.{part}.path={path}" for part, path in paths.items()), *count]


def fit(*names: str, options: list[str]) -> None:
    train_main(["fit", *(f"--config={CONFIGS / name}" for name in names), *options])


LEARNING = {"adaround", "aespa", "qvlm_plus", "signround"}
"""Methods that take half a minute; their parts have quick tests of their own."""


def combinations() -> list[Any]:
    """Every method, and every other preset at least once; the full product would tell no more."""
    rooms = [presets(room) for room in ("methods", "schemes", "models", "data")]
    longest = max(map(len, rooms))
    cycled = [list(itertools.islice(itertools.cycle(room), longest)) for room in rooms if room]
    found = [("base.yaml", *possible(*choice)) for choice in zip(*cycled, strict=True)]
    return [
        pytest.param(names, marks=pytest.mark.slow) if Path(names[1]).stem in LEARNING else names
        for names in found
    ]


def possible(method: str, scheme: str, *others: str) -> tuple[str, ...]:
    """Another method where this one changes only what the scheme leaves alone."""
    name = Path(method).stem
    idle = name in ("veo", "qvlm") and "_language" in scheme
    idle |= name in ("smoothquant", "flatquant", "qvlm_plus", "rptq") and "a16" in scheme
    return ("methods/rtn.yaml" if idle else method, scheme, *others)


def all_files() -> list[Path]:
    return sorted(CONFIGS.rglob("*.yaml"))


def test_every_room_belongs_to_a_program() -> None:
    rooms = {str(p.parent.relative_to(CONFIGS)).replace(".", "") for p in all_files()}
    assert rooms <= CALIBRATION | EVALUATION | set(INNER)


@pytest.mark.parametrize("path", all_files(), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_preset_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "the first line tells what the file is for"
    assert isinstance(yaml.safe_load(text), dict)
    assert repeated_keys(yaml.compose(text)) == []


def slow_but(first: str, names: list[str]) -> list[Any]:
    """Return parameters of which only that of ``first`` runs with the quick tests."""
    quick = [name for name in names if Path(name).stem == first]
    return [*quick, *(pytest.param(n, marks=pytest.mark.slow) for n in names if n not in quick)]


@pytest.mark.parametrize(
    "file", sorted((CONFIGS / "methods").rglob("*.yaml")), ids=lambda f: f.stem
)
def test_a_row_of_a_table_knows_its_artifact(file: Path) -> None:
    """By the name that the preset gives its method."""
    named = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]["name"]
    method = str(file.relative_to(CONFIGS / "methods").with_suffix(""))
    assert PlannedVariant(method, "w4a4", "mine").calls_itself(named)
    assert not PlannedVariant(method + "_else", "w4a4", "mine").calls_itself(named)


@pytest.mark.parametrize("names", combinations(), ids=lambda names: "+".join(names[1:]))
def test_a_calibration_runs_for_a_step(names: tuple[str, ...], tmp_path) -> None:
    needed = {
        "aespa": ["--model.method.steps=2"],
        "rptq": ["--model.scheme.activation_mode=static_channel"],
    }.get(Path(names[1]).stem, [])
    fit(*names, options=[*SMALL, *needed, f"--trainer.default_root_dir={tmp_path}"])


@pytest.mark.parametrize(
    "name", slow_but("shuffled", [name for room in INNER for name in presets(room)])
)
def test_a_further_row_runs_for_a_step(name: str, tmp_path) -> None:
    parts = ("base.yaml", name, "schemes/w4a4.yaml", "models/tiny.yaml", "data/tiny.yaml")
    fit(*parts, options=[*SMALL, f"--trainer.default_root_dir={tmp_path}"])


def differences(one: Any, other: Any, place: str = "") -> set[str]:
    """Places at which two configurations differ, as keys and numbers joined by dots."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in one.keys() | other.keys()]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(str(i), *both) for i, both in enumerate(zip(one, other, strict=True))]
    else:
        return set() if one == other else {place.lstrip(".")}
    return set().union(*(differences(*both, f"{place}.{key}") for key, *both in pairs))


METHOD = "model.init_args.method.init_args"
BALANCED = {f"{METHOD}.token_weights"}
CHANGED = {
    "gptq_mbq": BALANCED,
    "aespa_mbq": BALANCED,
    "signround_mbq": BALANCED,
    "flatquant_mbq": BALANCED,
    "plus_partition": {"trainer.callbacks+"},
    "plus_modality": {f"{METHOD}.steps.{step}.init_args.token_weights" for step in (1, 2)},
    "plus_joint_search": {f"{METHOD}.steps.1.init_args.ranges.class_path"},
    "plus_joint_modality": {
        f"{METHOD}.steps.1.init_args.ranges.class_path",
        *(f"{METHOD}.steps.{step}.init_args.token_weights" for step in (1, 2)),
    },
    "plus_veo": {"model.class_path"}
    | {f"model.init_args.{own}" for own in ("epochs", "every_n_epochs", "lr", "weights")},
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_row_of_an_ablation_changes_one_thing(name: str) -> None:
    """Against the method it is named after; what else differs is its name."""
    stem = name.removesuffix("_mbq").replace(name, "qvlm_plus")
    files = (CONFIGS / "methods" / f"{stem}.yaml", CONFIGS / "methods/ablation" / f"{name}.yaml")
    found = differences(*(yaml.safe_load(file.read_text(encoding="utf-8")) for file in files))
    assert found == CHANGED[name] | {"model.init_args.name"}


@pytest.mark.parametrize("name", presets("data", outside=True))
def test_a_calibration_on_other_data_runs_for_a_step(name: str, shapes, tmp_path) -> None:
    parts = ("base.yaml", "methods/rtn.yaml", "schemes/w8a8.yaml", "models/tiny.yaml", name)
    fit(*parts, options=[*told(name, shapes), *SMALL, f"--trainer.default_root_dir={tmp_path}"])


def test_the_demo_runs_for_a_step(tmp_path) -> None:
    fit("demo.yaml", options=[*SMALL, f"--trainer.default_root_dir={tmp_path}"])


def test_the_demo_is_its_parts(capsys) -> None:
    """configs/demo.yaml is a shortcut: the same run, with two searches, can be composed."""
    parts = ("base", "methods/qvlm", "schemes/w4a4", "models/tiny", "data/tiny")
    demo = printed(capsys, "demo.yaml")
    twice = ["--model.every_n_epochs=10"]
    composed = printed(capsys, *(f"{part}.yaml" for part in parts), options=twice)
    for part in ("model", "data"):
        assert demo[part]["class_path"] == composed[part]["class_path"]
        given = {k: v for k, v in demo[part]["init_args"].items() if v is not None}
        assert {key: composed[part]["init_args"][key] for key in given} == given


@pytest.mark.parametrize("name", presets("models", outside=True))
def test_a_model_of_the_user_is_a_family(name: str, capsys) -> None:
    parts = ("methods/rtn", "schemes/w8a8", "data/tiny")
    config = printed(capsys, "base.yaml", name, *(f"{part}.yaml" for part in parts))
    family = config["model"]["init_args"]["family"]
    made = class_at(family["class_path"])(**family["init_args"])
    assert made.path == family["init_args"]["path"]


@pytest.mark.parametrize("name", presets("trainer"))
def test_a_trainer_is_accepted(name: str, capsys) -> None:
    parts = ("methods/rtn", "schemes/w8a8", "models/tiny", "data/tiny")
    config = printed(capsys, "base.yaml", name, *(f"{part}.yaml" for part in parts))
    wanted = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))["trainer"]
    assert {key: config["trainer"][key] for key in wanted} == wanted


@pytest.mark.parametrize("name", presets("presets"))
def test_a_preset_of_a_large_model_is_accepted(name: str, capsys) -> None:
    """Its plan is in docs/plans/ (tests/commands/test_plan.py)."""
    method = "methods/cdm" if "24gb" in name else "methods/qvlm"
    config = printed(
        capsys, "base.yaml", f"{method}.yaml", "schemes/w4a4.yaml", "data/tiny.yaml", name
    )
    wanted = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    assert {key: config["trainer"][key] for key in wanted["trainer"]} == wanted["trainer"]
    assert config["data"]["init_args"]["batch_size"] == 8
    given = config["model"]["init_args"]
    family = wanted["model"]["init_args"]["family"]
    assert given["family"]["init_args"] == family["init_args"]
    assert (
        given["family"]["class_path"].rpartition(".")[2] == family["class_path"].rpartition(".")[2]
    )
    assert given["streaming"] is ("24gb" in name)


@pytest.mark.parametrize("name", presets("eval"))
def test_an_evaluation_runs_for_a_step(name: str, tmp_path) -> None:
    options = ["--trainer.accelerator=cpu", "--data.init_args.evaluation_count=12"]
    eval_main([f"--config={CONFIGS / name}", f"--trainer.default_root_dir={tmp_path}", *options])
    assert [*tmp_path.glob("results*.json")]  # those of the development split say so


@pytest.mark.parametrize("name", presets("eval", outside=True))
def test_an_evaluation_of_other_data_runs(name: str, shapes, tmp_path) -> None:
    parts = [f"--config={CONFIGS / part}" for part in (name, "models/tiny.yaml")]
    options = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    eval_main([*parts, *told(name, shapes), *options])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["n"] for row in rows} == {12}


@pytest.mark.parametrize("name", slow_but("demo", presets("table")))
def test_a_table_is_made_of_one_small_variant(name: str, tmp_path) -> None:
    options = [
        "--variants=[rtn w8a8]",
        "--headline=null",
        "--steps=[]",
        "--seeds=[0]",
        "--outlier_scales=[1.0]",
        "--sink_scales=[1.0]",
        "--pairs=4",
        "--search_pairs=4",
        "--questions=12",
        "--model=tiny",
        "--fidelity=null",
        f"--configs={CONFIGS}",
        f"--root={tmp_path}",
    ]
    assert main(["table", f"--config={CONFIGS / name}", *options]) == 0
    assert [*tmp_path.glob("results*.json")]  # those of the development split say so


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_demo_runs_on_a_gpu(tmp_path) -> None:
    options = [*SMALL, "--trainer.accelerator=gpu", f"--trainer.default_root_dir={tmp_path}"]
    fit("demo.yaml", options=options)


def repeated_keys(node: yaml.Node) -> list[str]:
    """Keys that a mapping gives twice: the second silently wins."""
    if isinstance(node, yaml.SequenceNode):
        return [key for item in node.value for key in repeated_keys(item)]
    if not isinstance(node, yaml.MappingNode):
        return []
    names = [key.value for key, _ in node.value]
    inside = [name for _, value in node.value for name in repeated_keys(value)]
    return [name for name in set(names) if names.count(name) > 1] + inside


def printed(capsys, *names: str, options: Sequence[str] = ()) -> dict:
    """The configuration as the program understood it."""
    with pytest.raises(SystemExit) as end:
        fit(*names, options=[*options, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)
