"""Files of an exported folder: their names, and whether they are what was exported."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError, first_line
from qvlm_lightning.files import aside

MANIFEST, QUANTIZERS = "quantization.json", "quantizers.safetensors"
WEIGHTS, CONFIG = "weights.packed", "config.json"
"""The weights are a safetensors file whatever it is called."""
FORMAT, COMPRESSED = 4, 5
"""``COMPRESSED`` is ``FORMAT`` in the layout of compressed-tensors: weights are in the files that
transformers and vLLM look for, and quantizers in one that they do not."""
READABLE = (1, 2, 3, FORMAT, COMPRESSED)
"""Format 1 had the clip ratios of weights in the layers instead of in their quantizers; formats 1
and 2 had the weights in ``model.safetensors``, which other programs load in silence, and no hashes
of the tensor files; format 3 had full-precision weights, in ``weights.simulated``."""
_WEIGHTS_OF = {1: "model.safetensors", 2: "model.safetensors", 3: "weights.simulated"}
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FLOATING = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_weights_file(name: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether a file of an artifact is one of its weights.

    Args:
        name: of the file.
        manifest: of the artifact.
    """
    version = manifest.get("format", FORMAT)
    if version == COMPRESSED:
        return _SHARD.fullmatch(name) is not None
    return name == _WEIGHTS_OF.get(version, WEIGHTS)


def weights_files(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the files of an artifact's weights are called.

    Args:
        manifest: of the artifact.
    """
    version, files = manifest.get("format", FORMAT), manifest.get("files")
    if version != COMPRESSED:
        return [_WEIGHTS_OF.get(version, WEIGHTS)]
    named = files if isinstance(files, dict) else {}
    return sorted(n for n in named if is_weights_file(n, manifest)) or ["model.safetensors"]


def quantizers_file(manifest: Mapping[str, Any]) -> str:
    """Return what the file of an artifact's quantizers is called.

    vLLM reads every file of a folder whose name ends in ``.safetensors``.

    Args:
        manifest: of the artifact.
    """
    return "quantizers.stored" if manifest.get("format") == COMPRESSED else QUANTIZERS


def check_there(folder: Path, *names: str) -> None:
    """Look for files.

    Raises:
        InputError: one of them is missing, or the folder was left in the middle of an export.
    """
    if not folder.exists() and aside(folder).is_dir():
        raise InputError(
            f"{str(folder)!r} was being replaced when its run was killed; give that run's command "
            f"again, or rename {str(aside(folder))!r}, which is the artifact before it"
        )
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{str(folder)!r} is not an artifact: it has no {name}")


def check_hashes(folder: Path, manifest: dict[str, Any], names: Sequence[str]) -> None:
    """Compare tensor files with the manifest; older formats have nothing to compare with.

    Args:
        folder: the artifact.
        manifest: its manifest.
        names: of the files.

    Raises:
        InputError: a file is not the one that was exported.
    """
    if manifest["format"] in (1, 2):
        return
    files = manifest.get("files")
    for name in names:
        said = files.get(name) if isinstance(files, dict) else None
        if said != sha256_of(folder / name):
            raise InputError(
                f"artifact {str(folder)!r} is broken: {name} is not the file that was exported "
                f"(its SHA-256 is not {said})"
            )


@dataclass(frozen=True)
class TensorTypes:
    """Types in which a model holds its weights, whatever its files hold.

    Attributes:
        default: of the model.
        others: by name, those of parameters that have another one.
    """

    default: torch.dtype
    others: dict[str, torch.dtype]


def named_types(types: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Return the types of a model's weights as plain values of a manifest.

    Args:
        types: by name.

    Example:
        >>> named_types({"a": torch.float16, "b": torch.float16, "c": torch.float32})
        {'default': 'float16', 'others': {'c': 'float32'}}
    """
    floating = {name: kind for name, kind in types.items() if kind.is_floating_point}
    default = Counter(floating.values()).most_common(1)[0][0] if floating else torch.float32
    others = {n: str(kind).partition(".")[2] for n, kind in floating.items() if kind != default}
    return {"default": str(default).partition(".")[2], "others": others}


def types_of(manifest: Mapping[str, Any], weights: Mapping[str, Tensor]) -> TensorTypes:
    """Return the types in which the model of an artifact holds its weights.

    Args:
        manifest: of the artifact; an older one does not tell, and the types are those stored.
        weights: as they are stored.

    Raises:
        InputError: the manifest names a type that is no floating type of torch.
    """
    said = manifest.get("computed_in")
    if said is None:
        largest = max(weights.values(), key=Tensor.numel, default=torch.zeros(()))
        return TensorTypes(largest.dtype, {name: value.dtype for name, value in weights.items()})
    try:
        others = {str(name): _FLOATING[kind] for name, kind in dict(said["others"]).items()}
        return TensorTypes(_FLOATING[said["default"]], others)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the artifact's computed_in is {str(said)[:100]!r}; allowed are the types "
            f"{', '.join(_FLOATING)}, as default and by name in others"
        ) from error


def located(path: str | Path) -> Path:
    """Return the folder of an artifact; one on the hub is downloaded, or taken from its cache.

    Args:
        path: a folder, or a repository such as ``owner/name``.

    Raises:
        InputError: there is neither.
    """
    folder = Path(path).expanduser()
    if folder.exists() or not _REPOSITORY.fullmatch(str(path)):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"there is no folder {str(path)!r}, and it cannot be had from the hub: "
            f"{first_line(error)}"
        ) from error
