"""What a calibration set without answers means for the optimisation."""

from collections.abc import Sequence

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from qvlm_lightning.losses import IGNORED
from qvlm_lightning.nn.structure import Structure


def note_missing_answers(structure: Structure, batches: Sequence[dict[str, Tensor]]) -> None:
    """Write into the report, and log, how many samples L_reg (eq. 10) has nothing to say about.

    Args:
        structure: whose notes go into the report.
        batches: all calibration batches, with labels.
    """
    # the first token is never predicted
    known = [bool(row) for b in batches for row in (b["labels"][:, 1:] != IGNORED).any(1).tolist()]
    missing = known.count(False)
    if not missing:
        return
    rest = "counts the others" if any(known) else "is 0 throughout"
    note = f"{missing} of {len(known)} calibration samples have no answer: L_reg (eq. 10) {rest}"
    if note not in structure.notes:
        structure.notes.append(note)
        rank_zero_info(note)
