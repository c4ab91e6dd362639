"""Files of an exported folder: their names, and whether they are what was exported."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError

MANIFEST, QUANTIZERS = "quantization.json", "quantizers.safetensors"
WEIGHTS, CONFIG = "weights.simulated", "config.json"
"""The weights are a safetensors file whatever it is called."""
FORMAT = 3
READABLE = (1, 2, 3)
"""Format 1 had the clip ratios of weights in the layers instead of in their quantizers; formats 1
and 2 had the weights in ``model.safetensors``, which other programs load in silence, and no hashes
of the tensor files."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_file(manifest: dict[str, Any]) -> str:
    """Return what the file of an artifact's weights is called.

    Args:
        manifest: of the artifact.
    """
    return "model.safetensors" if manifest.get("format") in (1, 2) else WEIGHTS


def check_there(folder: Path, *names: str) -> None:
    """Look for files.

    Raises:
        InputError: one of them is missing.
    """
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
