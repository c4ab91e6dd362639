"""Blocks that an interrupted search has already decided."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.calibration.state import write_json
from qvlm_lightning.methods.base import Method
from qvlm_lightning.nn.block import Block
from qvlm_lightning.nn.distributed import all_sum

_FORMAT = 2
"""Of the files: counts the changes of what a decision holds."""


class SearchProgress:
    """Blocks that an interrupted search has already decided, one small file per pass.

    A search is deterministic, so a block's decision may be taken over whenever the key, a hash of
    all that
    the decision depends on, is the same.

    Args:
        folder: where the files lie; ``None`` keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self, name: str, key: str) -> list[dict[str, Any]]:
        """Return the decisions stored under ``name`` for ``key``; empty if there are none."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return []
        stored = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return stored["blocks"] if stored["key"] == key else []

    def write(self, name: str, key: str, blocks: list[dict[str, Any]]) -> None:
        """Store the decisions made so far."""
        if self.folder is not None:
            write_json(self.folder / f"{name}.json", {"key": key, "blocks": blocks})


def search_key(
    identity: Any,
    blocks: Sequence[Sequence[int]],
    method: Method,
    inputs: Sequence[Tensor],
    ranges: Sequence[Tensor],
) -> str:
    """Return a hash of all that the decisions of a search depend on.

    Args:
        identity: plain values: model, scheme, seed, units.
        blocks: the partition.
        method: chooses per block.
        inputs: hidden states at the tower's first unit, exact and quantized.
        ranges: the candidates.
    """
    plain = [_FORMAT, identity, [list(b) for b in blocks], method.describe()]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for x in (*inputs, *ranges):
        digest.update(x.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def decide(block: Block, method: Method, started: float) -> dict[str, Any]:
    """Return what ``method`` decides for a block and what that cost, as plain values.

    Args:
        block: with its targets.
        method: chooses.
        started: when work on the block began (``time.perf_counter()``).
    """
    solution = method.solve(block)
    cost = torch.tensor([block.cost.layer_forwards, block.cost.site_forwards])
    layers, sites = all_sum(cost).tolist()
    return {
        "choice": solution.choice.tolist(),
        "objective": solution.objective,
        "layer_forwards": layers,
        "site_forwards": sites,
        "seconds": time.perf_counter() - started,
    }
