"""Which calibration sample the rows of a tower belong to.

A tower may see a sample as one row [T, D], as several tiles, or as packed patches that have no
batch dimension. Statistics, dependency and gradients are counted per sample, whatever the tower.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.family import model_inputs as without_bookkeeping
from qvlm_lightning.nn.sinks import SinkTokens

Batch = dict[str, Tensor]


def model_inputs(batch: Batch, device: torch.device) -> Batch:
    """Return what goes into ``model(**...)`` of a batch, on ``device``."""
    return {name: value.to(device) for name, value in without_bookkeeping(batch).items()}


def with_image_rows(family: VLMFamily, model: nn.Module, batch: Batch) -> Batch:
    """Return a batch that says how many rows of the tower each image takes, where not one each.

    Args:
        family: knows how its processor cuts images up.
        model: of the family.
        batch: from the data module.
    """
    if not bool(batch["has_image"].any()):
        return batch
    rows = family.image_rows(model, batch)
    return batch if set(rows) == {1} else batch | {"image_rows": torch.tensor(rows)}


def with_sinks(sinks: SinkTokens | None, batch: Batch) -> Batch:
    """Return a batch that says which of its tokens are sinks, ``sink`` [B, T] bool, where some are.

    Args:
        sinks: of the model.
        batch: from the data module.
    """
    if sinks is None or not sinks.found:
        return batch
    return batch | {"sink": sinks.places(batch["input_ids"], batch["attention_mask"]) >= 0}


def counted(batch: Batch) -> Tensor:
    """Return which tokens of the decoder count: neither padding nor sinks, [B, T] bool."""
    mask = batch["attention_mask"].bool()
    return mask & ~batch["sink"] if "sink" in batch else mask


def batch_number(share: Batch, size: int) -> int:
    """Return which calibration batch a process's share of one belongs to.

    Args:
        share: with ``sample_index``, places in the calibration set.
        size: pairs of a batch.
    """
    return int(share["sample_index"].min()) // size


def fingerprints(batches: Sequence[Batch]) -> dict[str, str]:
    """Return what differs as soon as a token or a label of the batches does, and what differs as
    soon as a pixel does: ``calibration_tokens`` and ``calibration_images``.
    """
    entries = {
        "calibration_tokens": ("input_ids", "labels"),
        "calibration_images": ("pixel_values",),
    }
    found = {}
    for what, names in entries.items():
        digest = hashlib.sha256()
        for batch in batches:
            for name in names:
                if name in batch:
                    raw = batch[name].contiguous().cpu().view(torch.uint8)  # numpy lacks bfloat16
                    digest.update(raw.numpy().tobytes())
        found[what] = digest.hexdigest()[:16]
    return found


def rows_and_mask(tower: str, batch: Batch) -> tuple[list[int], Tensor | None]:
    """Return which calibration samples a tower sees of a batch, and which tokens count ([B, T] bool
    or all).

    The vision tower and the projector see the samples that have an image, and all their tokens.
    """
    index = batch["sample_index"]
    if tower == "language":
        return index.tolist(), counted(batch)
    return index[batch["has_image"]].tolist(), None


def by_sample(tower: str, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return what a tower's layer reads, sample by sample, and which tokens count.

    Args:
        tower: its name.
        x: live input: [B, T, D], [tiles, T, D] or [patches, D]; behind a merger of patches, fewer
            rows of the same proportions.
        batch: its ``image_rows`` [samples] say how many rows belong to each image.

    Returns:
        [samples, T, D] and [samples, T] bool, or ``None`` if all tokens count; images of fewer
        tokens are filled up with zeros.
    """
    if tower == "language":
        return x, counted(batch)
    if "image_rows" not in batch:
        # one image alone may still come as packed patches
        return (x[None] if x.dim() == 2 else x), None
    tokens = x.reshape(-1, x.shape[-1])
    rows = batch["image_rows"]
    lengths = rows * len(tokens) // rows.sum()
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens of {tower} do not divide into {rows.tolist()} rows")
    parts = tokens.split(lengths.tolist())
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(list(parts), batch_first=True), mask
