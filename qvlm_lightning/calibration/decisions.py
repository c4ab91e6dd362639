"""Decisions of a run's blocks, one safetensors file each, so that an interrupted search goes on."""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.nn.distributed import all_sum

_FORMAT = 3
"""Of the files: counts the changes of what a decision holds."""


@dataclass
class Decided:
    """A decision and what it cost: layer_forwards, site_forwards, seconds."""

    decision: Decision
    cost: dict[str, float]


class Decisions:
    """Files of the decisions of every block, by pass, tower and number of the block.

    A search is deterministic, so a decision may be taken over whenever the key, a hash of all that
    it depends on, is the same. A file appears as a whole or not at all.

    Args:
        folder: where the files lie; ``None`` keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @staticmethod
    def file(name: str, index: int) -> str:
        """Return the file name of a block's decision.

        Args:
            name: of pass and tower.
            index: which block of the tower.
        """
        return f"{name}-{index:03d}.safetensors"

    def read(self, name: str, key: str, index: int) -> Decided | None:
        """Return the decision stored for ``key``; ``None`` if there is none that can be used."""
        path = None if self.folder is None else self.folder / self.file(name, index)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as stored:
                said = stored.metadata() or {}
                if said.get("key") != key:
                    return None
                tensors = {n: stored.get_tensor(n) for n in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None  # it is decided again
        if not all(bool(x.isfinite().all()) for x in tensors.values() if x.is_floating_point()):
            return None
        return Decided(Decision(tensors, json.loads(said["scores"])), json.loads(said["cost"]))

    def tensor(self, file: str, name: str) -> Tensor:
        """Return one tensor of a stored decision.

        Raises:
            InputError: the file is missing or broken.
        """
        assert self.folder is not None
        path = self.folder / file
        try:
            with safe_open(path, framework="pt") as stored:
                value: Tensor = stored.get_tensor(name)
                return value
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{str(path)!r}, which holds {name} as the run decided it, cannot be read; a run "
                "needs its whole folder to be resumed"
            ) from error

    def write(self, name: str, key: str, index: int, decided: Decided) -> None:
        """Store the decision of a block."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.file(name, index)
        scratch = path.with_name(f".{path.name}.part")
        decision = decided.decision
        said = {
            "key": key,
            "scores": json.dumps(decision.scores),
            "cost": json.dumps(decided.cost),
        }
        # of their own: a file holds no tensor twice
        tensors = {n: x.detach().cpu().clone().contiguous() for n, x in decision.tensors.items()}
        save_file(tensors, scratch, metadata=said)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)


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
        method: decides per block.
        inputs: hidden states at the tower's first unit, exact and quantized.
        ranges: the candidates.
    """
    plain = [_FORMAT, identity, [list(b) for b in blocks], method.settings()]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for x in (*inputs, *ranges):
        digest.update(x.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def decide(block: Block, method: Method, started: float) -> Decided:
    """Return what ``method`` decides for a block and what that cost.

    Args:
        block: with its targets.
        method: decides.
        started: when work on the block began (``time.perf_counter()``).

    Raises:
        InputError: an objective or a decided tensor is NaN or infinite: the layers' outputs, or
            those behind their quantizers, are.
    """
    try:
        decision = method.solve(block)
    except FloatingPointError as error:
        raise InputError(f"{_named(block)}: {error}") from error
    for way, score in decision.scores.items():
        if not math.isfinite(score):
            raise InputError(f"{_named(block)}: the objective of {way!r} is {score}")
    check_finite(decision.tensors.items(), _named(block))
    cost = torch.tensor([block.cost.layer_forwards, block.cost.site_forwards])
    layers, sites = all_sum(cost).tolist()
    seconds = time.perf_counter() - started
    return Decided(decision, {"layer_forwards": layers, "site_forwards": sites, "seconds": seconds})


def _named(block: Block) -> str:
    return f"the search of {block.units[0].name} to {block.units[-1].name}"
