"""Tasks by their names: the files of this folder, or the dotted path of a class elsewhere."""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from qvlm_lightning.errors import InputError

if TYPE_CHECKING:
    from qvlm_lightning.tasks.base import Task


def task_names() -> list[str]:
    """List the tasks of this folder, read from the files without importing them.

    A task's file holds a class whose ``name`` is the file's name.
    """
    return sorted(_classes())


def find_task(name: str) -> "type[Task]":
    """Return a task's class.

    Args:
        name: a task of this folder (``scienceqa``), or the dotted path of a class.

    Raises:
        InputError: there is no such task.
    """
    from qvlm_lightning.tasks.base import Task

    known = _classes()
    key = name.replace("-", "_")
    path = f"{__package__}.{key}.{known[key]}" if key in known else name
    module, _, last = path.rpartition(".")
    allowed = f"allowed are {', '.join(sorted(known)) or 'none yet'}, or the path of a class"
    if not module or name.startswith("."):
        raise InputError(f"task is {name!r}; {allowed}")
    try:
        found = getattr(importlib.import_module(module), last, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # what is missing is asked for inside
            raise
        raise InputError(f"task is {name!r}, but there is no module {error.name}") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f"task is {name!r}, which is not a class of a task; {allowed}")
    return found


def _classes() -> dict[str, str]:
    found = {}
    for file in Path(__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and _declared_name(node) == file.stem:
                found[file.stem] = node.name
    return found


def _declared_name(node: ast.ClassDef) -> object:
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        named = any(isinstance(t, ast.Name) and t.id == "name" for t in targets)
        if named and isinstance(value := getattr(line, "value", None), ast.Constant):
            return value.value
    return None
