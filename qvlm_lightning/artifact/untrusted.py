"""Checks of an artifact's files, which anybody may have written: nothing in them names a file, and
nothing in them runs for long.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.names import checked_name
from qvlm_lightning.quant.scheme import Scheme

_COUNTS = (
    "num_hidden_layers",
    "num_layers",
    "depth",
    "n_layer",
    "num_experts",
    "num_local_experts",
)
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "image_size")
_MOST_LAYERS, _LARGEST_SIZE = 1000, 10**8


def checked_manifest(manifest: Mapping[str, Any], scheme: Scheme) -> dict[str, Any]:
    """Return a manifest whose names may become names of files.

    The scheme's name and the activation mode are those of the scheme, whatever the file calls them.

    Args:
        manifest: as it was read.
        scheme: of the manifest, checked.

    Raises:
        InputError: a method that is no name, a seed that is no integer, or ids of calibration
            samples that are no texts.

    Example:
        >>> checked_manifest({"scheme_name": "../w4a4"}, Scheme())["scheme_name"]
        'w4a4'
    """
    method, seed = manifest.get("method"), manifest.get("seed")
    if "method" in manifest:
        if not isinstance(method, str):
            raise InputError(f"its method {repr(method)[:80]} is not allowed; a name is needed")
        checked_name(method, "its method")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InputError(f"its seed is {repr(seed)[:80]}; allowed is an integer")
    ids = manifest.get("calibration_ids", [])
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise InputError("its calibration_ids are no list of texts")
    own = {"scheme_name": scheme.name, "activation_mode": scheme.activation_mode}
    return {name: own.get(name, value) for name, value in manifest.items()}


def check_sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of sizes that no file of weights holds, before a model is built of it.

    Args:
        config: ``config.json``.
        weights: as they are stored.

    Raises:
        InputError: a number of layers above 1,000, a size above 100 million, or a table larger than
            all weights.
    """
    total = sum(value.numel() for value in weights.values())
    for part in (config, *(x for x in config.values() if isinstance(x, Mapping))):
        for name in _COUNTS:
            _at_most(part, name, _MOST_LAYERS)
        for name in _SIZES:
            _at_most(part, name, _LARGEST_SIZE)
    text = config.get("text_config")
    for part in (text if isinstance(text, Mapping) else config,):
        rows, columns = part.get("vocab_size"), part.get("hidden_size")
        if isinstance(rows, int) and isinstance(columns, int) and rows * columns > total:
            raise InputError(
                f"its config.json has a vocab_size of {rows} times a hidden_size of {columns}, "
                f"more than its {total} weights"
            )


def _at_most(part: Mapping[str, Any], name: str, most: int) -> None:
    value = part.get(name)
    if isinstance(value, int | float) and not value <= most:
        raise InputError(f"its config.json has {name} {value}; allowed are at most {most}")
