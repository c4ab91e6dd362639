"""What a calibration needs to know about a family of vision-language models: names, never
arithmetic.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.experts import Experts, find_experts, find_routers
from qvlm_lightning.models.saved import check_saving
from qvlm_lightning.models.wiring import Attention, Projection, Residual, Source

__all__ = [
    "ANSWER",
    "BOOKKEEPING",
    "PAD",
    "PROMPT",
    "VISION",
    "Attention",
    "Named",
    "Projection",
    "Residual",
    "Source",
    "VLMFamily",
    "model_inputs",
]

PAD, VISION, PROMPT, ANSWER = range(4)

Named = tuple[str, nn.Module]

BOOKKEEPING = ("labels", "sample_index", "has_image", "image_index", "image_rows", "sink")
"""Entries of a batch that are not for the model; whatever else a processor makes is."""


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what goes into ``model(**...)``: the batch without labels and bookkeeping.

    Example:
        >>> sorted(model_inputs({"input_ids": torch.ones(1, 2), "labels": torch.ones(1, 2)}))
        ['input_ids']
    """
    return {name: value for name, value in batch.items() if name not in BOOKKEEPING}


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

    def streamed(self) -> tuple[nn.Module, dict[str, tuple[Path, str]]]:
        """Return a model without weights, in ``eval()`` mode and frozen, and by the name of every
        weight the safetensors file and the key in it that hold it; one that no file needs to hold
        is in the model.

        Raises:
            InputError: models of this family cannot be read layer by layer, or the files lack a
                weight.
        """
        raise InputError(
            f"{type(self).__name__} cannot be streamed; give a model in a folder, or streaming: "
            "false"
        )

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

    def projectors(self, model: nn.Module) -> dict[str, Named]:
        """Return every projector by the name of its tower, in forward order.

        One by default. Where features leave the tower at several depths, each way out is a tower of
        its own, ``projector.<which>``: such modules follow each other in time, but do not feed each
        other.
        """
        return {"projector": self.projector(model)}

    def full_precision(self, model: nn.Module) -> list[tuple[str, nn.Module, str]]:
        """Return (name, module, reason) of modules whose weights are no Linear layer and stay as
        they are.

        None by default: weights that a Linear swap would skip in silence stop the run.
        """
        return []

    def image_rows(self, model: nn.Module, batch: dict[str, Tensor]) -> list[int]:
        """Return how many rows of the tower's input belong to each sample with an image.

        A row is what the tower's first dimension counts: an image (one each, the default), a tile,
        or a patch where the tower takes packed patches without a batch dimension.
        """
        return [1] * int(batch["has_image"].sum())

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

    def sources(self, layer: nn.Module) -> dict[str, Source]:
        """Return site name -> what makes its input, where a scale can be folded into that.

        Names are relative to ``layer``, a layer of the tower or the decoder, or a projector. A site
        that is missing has no such source, or none that is known: a method that folds scales skips
        it and says so. None by default.
        """
        return {}

    def attention(self, layer: nn.Module) -> Attention | None:
        """Return the heads of the attention in ``layer``; ``None`` (the default) if it has none, or
        one of another form.
        """
        return None

    def residual(self, model: nn.Module) -> Residual:
        """Return what writes into the residual stream of the decoder, and what reads it.

        Raises:
            InputError: it is not known, or cannot be rotated.
        """
        raise InputError(
            f"the residual of {type(self).__name__} cannot be rotated: it is not known"
        )

    def experts(self, layer: nn.Module) -> dict[str, Experts]:
        """Return name -> experts inside ``layer``, if it is a mixture of experts.

        Their Linear layers see the tokens that are routed to them, and have statistics of their
        own.
        """
        return find_experts(layer)

    def routers(self, layer: nn.Module) -> list[str]:
        """Return the names of what decides between the experts of ``layer``; it is never
        quantized.
        """
        return find_routers(layer)

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

    def positions(self, model: nn.Module) -> int | None:
        """Return for how many tokens a model was made; ``None`` if its configuration does not say.

        Args:
            model: of this family.
        """
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        found = getattr(text, "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def check_export(self, model: nn.Module) -> None:
        """Save everything but the weights and throw it away, so that a fault shows before the work.

        Args:
            model: of this family.

        Raises:
            InputError: transformers will not save a part; names it.
        """
        check_saving(model, self.load_processor())

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain values that say which model this is (stored in reports and artifacts)."""

    def empty_model(self, dtype: torch.dtype) -> nn.Module:
        """Return the model of an artifact's folder with whatever weights, in ``eval()`` mode.

        Args:
            dtype: type of its weights.
        """
        raise NotImplementedError(f"{type(self).__name__} does not load artifacts")

    def of_artifact(self) -> type[Any]:
        """Return the class that reads an artifact of this model, from ``class(folder)``."""
        return type(self)

    def read_by(self) -> str:
        """Return the name by which an artifact calls the family that reads it."""
        from qvlm_lightning.models.find import family_name

        return family_name(self.of_artifact())

    def stored_types(self, model: nn.Module) -> dict[str, torch.dtype]:
        """Return by name the types of the parameters that the model's folder holds in a narrower
        type than the model; an artifact keeps these types. None by default.

        Args:
            model: as it was loaded, without quantizers.
        """
        return {}

    def fingerprint(
        self, model: nn.Module, sample: Callable[[str, int], Tensor] | None = None
    ) -> str:
        """Return a short hash over names, shapes and a sample of every weight of ``model``.

        Args:
            model: in full precision.
            sample: gives every n-th element of a flattened weight that is not in the model, called
                with its name and n.
        """
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True, default=str).encode())
        for name, parameter in model.named_parameters():
            flat = parameter.detach().reshape(-1)
            stride = max(1, flat.numel() // 64)
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            some = sample(name, stride) if sample and flat.is_meta else flat[::stride]
            digest.update(some.to(torch.float32).cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
