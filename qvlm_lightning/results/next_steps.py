"""The commands that follow a run, to be copied and pasted."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CONFIGS = {
    "TinyVQA": "configs/eval/tiny.yaml",
    "ChatData": "configs/eval/chat.yaml",
    "TaskData": "configs/eval/task.yaml",
}
_OF_CALIBRATION = (
    "calibration",
    "calibration_pairs",
    "search_pairs",
    "batch_size",
    "seed",
    "max_turns",
)
_NEUTRAL = {"outlier_scale": 1.0, "sink_scale": 1.0}
"""Options that change nothing at these values."""


def program(name: str = "python") -> str:
    """Return what a shell in this folder calls a program of our environment: its name where the
    shell finds it by that, else its path.

    Args:
        name: of a program beside the interpreter; where there is none, the name is returned.
    """
    own = Path(sys.executable).with_name(name)
    if name == "python" and not own.exists():
        own = Path(sys.executable)
    found = shutil.which(name)
    if not own.exists() or (found is not None and Path(found).absolute() == own.absolute()):
        return name
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def steps_after_fit(root: Path, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what can be done with a calibrated run, and the command that does it.

    Args:
        root: run folder.
        config: its ``config.yaml``; empty if it has none.
    """
    watch = [program("tensorboard"), "--logdir", str(root / "lightning_logs")]
    return [
        ("score the artifact", evaluation_command(root, config)),
        ("watch the curves", shlex.join(watch)),
        ("open the report", open_command(root / "report.html")),
    ]


def steps_after_evaluation(root: Path) -> list[tuple[str, str]]:
    """Return what can be done with an evaluated run, and the command that does it.

    Args:
        root: run folder of ``eval.py``.
    """
    compare = [
        program(),
        "-m",
        "qvlm_lightning",
        "compare",
        str(root),
        "--out",
        str(root / "compare"),
    ]
    return [
        ("compare the models", shlex.join(compare)),
        ("open the comparison", open_command(root / "compare" / "compare.html")),
    ]


def open_command(page: Path) -> str:
    """Return the command that shows a page in the browser.

    Args:
        page: the file; browsers want its whole address.
    """
    return shlex.join([program(), "-m", "webbrowser", page.absolute().as_uri()])


def evaluation_command(root: Path, config: Mapping[str, Any]) -> str:
    """Return the command that scores a run's artifact on the data that its configuration names.

    Args:
        root: run folder.
        config: its ``config.yaml``.
    """
    words = [program(), "eval.py"]
    data = _section(config, "data")
    kind = str(data.get("class_path", "")).rpartition(".")[2]
    if kind in _CONFIGS:
        words += ["--config", _CONFIGS[kind]]
    elif data:
        words += [f"--data={data['class_path']}"]
    family = _section(_section(_section(config, "model"), "init_args"), "family")
    if family and not (kind == "TinyVQA" and _is_plain(family)):
        words += _options("model.init_args.family", family)
    own = {k: v for k, v in _section(data, "init_args").items() if k not in _OF_CALIBRATION}
    if kind != "TinyVQA":
        if kind == "ChatData" and not own.get("evaluation"):
            own["evaluation"] = {"path": "YOUR_QUESTIONS.jsonl"}
        words += [word for key in own for word in _options(f"data.init_args.{key}", own[key])]
    words += ["--model.artifact", str(root / "artifact")]
    return shlex.join([*words, "--trainer.default_root_dir", str(root / "eval")])


def _is_plain(family: Mapping[str, Any]) -> bool:
    """Whether a family is that of ``configs/eval/tiny.yaml``."""
    given = {k: v for k, v in _section(family, "init_args").items() if v is not None}
    neutral = _NEUTRAL | {"dtype": "float32"}
    ours = str(family.get("class_path")).rpartition(".")[2] == "Tiny"
    return ours and all(given[key] == neutral.get(key) for key in given)


def _options(name: str, value: Any) -> Iterator[str]:
    """Yield the options that give a value of a configuration, leaf by leaf."""
    if value is None or value in ([], {}) or _NEUTRAL.get(name.rpartition(".")[2]) == value:
        return
    if not isinstance(value, Mapping):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        yield f"--{name}={text}"
        return
    given = dict(value)
    if "class_path" in given:
        yield f"--{name}={given.pop('class_path')}"
        for key, inner in _section(given, "init_args").items():
            yield from _options(f"{name}.init_args.{key}", inner)
        return
    for key, inner in given.items():
        yield from _options(f"{name}.{key}", inner)


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = mapping.get(key)
    return found if isinstance(found, Mapping) else {}
