"""What a calibration needs to know about a family of vision-language models: names, never
arithmetic.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

PAD, VISION, PROMPT, ANSWER = range(4)

Named = tuple[str, nn.Module]


class VLMFamily(ABC):
    """Names of the parts of one kind of vision-language model.

    A family is light until :meth:`load_model` or :meth:`load_processor` is called, so that a
    command line
    can build one without touching the disk.
    """

    @abstractmethod
    def load_model(self) -> nn.Module:
        """Return a fresh model in ``eval()`` mode with frozen weights.

        Raises:
            InputError: the folder is missing or broken.
        """

    @abstractmethod
    def load_processor(self) -> Any:
        """Return the processor; the same object at every call."""

    @abstractmethod
    def vision_layers(self, model: nn.Module) -> list[Named]:
        """Return the tower's layers that reach the output, in forward order."""

    @abstractmethod
    def unreachable_layers(self, model: nn.Module) -> list[tuple[str, nn.Module, str]]:
        """Return (name, module, reason) of tower modules that run but cannot change the output."""

    @abstractmethod
    def projector(self, model: nn.Module) -> Named:
        """Return the module between tower and language model."""

    @abstractmethod
    def decoder_layers(self, model: nn.Module) -> list[Named]:
        """Return the language model's layers in forward order."""

    @abstractmethod
    def input_groups(self, layer: nn.Module) -> dict[str, list[str]]:
        """Return site name -> names of the Linear layers, relative to ``layer``, that share that
        input.

        The first site of a layer is its representative for the dependency between layers
        (docs/paper.md).
        """

    @abstractmethod
    def vision_positions(self, model: nn.Module) -> int | None:
        """Return the tower's fixed number of token positions, or ``None`` for dynamic
        resolutions.
        """

    @abstractmethod
    def token_kind(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the kind of every token, ``PAD``, ``VISION``, ``PROMPT`` or ``ANSWER``: [B, T]
        int64.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain values that say which model this is (stored in reports and artifacts)."""

    def fingerprint(self, model: nn.Module) -> str:
        """Return a short hash over names, shapes and a sample of every weight of ``model``."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True, default=str).encode())
        for name, parameter in model.named_parameters():
            flat = parameter.detach().reshape(-1)
            stride = max(1, flat.numel() // 64)
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(flat[::stride].to(torch.float32).cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
