"""Disk that the artifacts of a table take: weights that no method changed are kept once."""

import filecmp
import os
from collections.abc import Iterable
from pathlib import Path

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import writing
from qvlm_lightning.weights.exported import WEIGHTS


def share_weights(artifact: Path, others: Iterable[Path]) -> bool:
    """Make the weights of an artifact a hard link to equal ones of another.

    Args:
        artifact: folder of the artifact.
        others: folders of artifacts, itself among them or not.

    Returns:
        Whether its weights are now those of another.
    """
    mine = artifact / WEIGHTS
    for folder in others:
        theirs = folder / WEIGHTS
        if folder == artifact or not theirs.is_file() or not mine.is_file():
            continue
        if theirs.samefile(mine):
            return True
        if filecmp.cmp(mine, theirs, shallow=False):
            try:
                with writing(mine) as scratch:
                    os.link(theirs, scratch)
            except (InputError, OSError):  # a disk without hard links keeps both
                return False
            return True
    return False
