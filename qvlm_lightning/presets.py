"""Configuration files that come with the package, and what methods they name."""

from importlib.resources import as_file, files
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from qvlm_lightning.errors import InputError


def config_file(room: str, name: str) -> Path:
    """Return a configuration file that comes with the package.

    Args:
        room: ``methods``, ``schemes``, ``data``, or empty for the top.
        name: of the file, without its ending.

    Raises:
        InputError: there is none.
    """
    folder = files("qvlm_lightning") / "configs"
    with as_file(folder) as path:
        place = path / room
        known = sorted(
            p.relative_to(place).with_suffix("").as_posix() for p in place.rglob("*.yaml")
        )
        if name not in known:
            raise InputError(
                f"{room.rstrip('s')} {name!r} is not known; allowed: {', '.join(known)}"
            )
        return place / f"{name}.yaml"


def method_of(name: str) -> Any:
    """Return the method that a file in configs/methods names, with its settings.

    Args:
        name: of the file, without its ending.

    Raises:
        InputError: there is no such file.

    Example:
        >>> method_of("gptq").damp
        0.01
    """
    values = yaml.safe_load(config_file("methods", name).read_text(encoding="utf-8"))
    return built(values["model"]["init_args"]["method"])


def built(values: Any) -> Any:
    """Return the object that a class path and its arguments stand for, its parts included.

    Args:
        values: of a configuration; what has no ``class_path`` is returned as it is.
    """
    if isinstance(values, list):
        return [built(value) for value in values]
    if not isinstance(values, dict) or "class_path" not in values:
        return values
    given = values.get("init_args") or {}
    return resolve_name(values["class_path"])(**{name: built(x) for name, x in given.items()})
