"""Families by the ``model_type`` of a configuration: the file of that name holds the class."""

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.hub import HubFamily


def family_for(model_type: str) -> type[HubFamily]:
    """Return the family of a ``model_type``.

    Args:
        model_type: as in a model's ``config.json``.

    Raises:
        InputError: there is none.

    Example:
        >>> family_for("llava").__name__
        'Llava'
    """
    name = f"{__package__}.{model_type}"
    if model_type.isidentifier() and find_spec(name) is not None:
        for _, found in inspect.getmembers(import_module(name), inspect.isclass):
            if issubclass(found, HubFamily) and model_type in found.__dict__.get("model_types", ()):
                return found
    raise InputError(f"a {model_type!r} model was given; allowed: {', '.join(map(repr, known()))}")


def known() -> list[str]:
    """Return the model types that have a family."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if f'model_types = ("{f.stem}",' in f.read_text("utf-8")]


def family_name(family: type) -> str:
    """Return the name by which an artifact calls a family: the ``model_type`` of one of ours, the
    dotted path of another, which is told to people and never imported.

    Example:
        >>> family_name(family_for("qwen2_5_vl"))
        'qwen2_5_vl'
    """
    module = family.__module__.rpartition(".")[2]
    if f"{__package__}.{module}" == family.__module__ and module in known():
        return module
    return f"{family.__module__}.{family.__qualname__}"


def class_at(path: str) -> type[HubFamily]:
    """Return the family class at a dotted path.

    Raises:
        InputError: there is no such class, or it is not a family.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the family {path!r} cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, HubFamily)):
        raise InputError(f"{path!r} is not a family of models")
    return found
