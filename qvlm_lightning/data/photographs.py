"""Photographs with free prompts: texts that no benchmark scores."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError

_ENDINGS = (".jpg", ".jpeg", ".png")


def photographs(folders: Sequence[str | Path], prompts: Sequence[str], count: int) -> list[Sample]:
    """Return the first photographs of some folders, each with one of the prompts in turn.

    Args:
        folders: of JPEG and PNG files, with those of their own folders, sorted by path; one folder
            after another.
        prompts: what is asked of them, such as "Describe the image."
        count: how many photographs.

    Raises:
        InputError: a folder that does not exist, no prompt, or too few photographs.
    """
    if not prompts:
        raise InputError("prompts is empty; give at least one, such as 'Describe the image.'")
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"folder of photographs {str(folder)!r} does not exist; give another")
        files = (path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
        found += sorted(files)
    if not 1 <= count <= len(found):
        raise InputError(
            f"{count} photographs were asked for; {', '.join(map(str, folders)) or 'no folder'} "
            f"holds {len(found)}"
        )
    return [
        Sample(str(path), LazyImage.of(path), prompts[place % len(prompts)])
        for place, path in enumerate(found[:count])
    ]
