"""A LLaVA that is already in memory, for notebooks."""

from pathlib import Path
from typing import Any

from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.experts import unfuse_experts
from qvlm_lightning.models.llava import Llava


class LoadedLlava(Llava):
    """Wraps a model and a processor that the caller has loaded.

    Args:
        model: a ``LlavaForConditionalGeneration``; it is frozen, put into ``eval()`` mode and
            changed in place.
        processor: its processor.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind != "llava":
            raise InputError(f"a {kind!r} model was given; allowed: 'llava'")
        super().__init__(str(getattr(model.config, "_name_or_path", "") or "in memory"))
        self._model, self._processor = model, processor

    def streamed(self) -> tuple[nn.Module, dict[str, tuple[Path, str]]]:
        """Refuse: the model is in memory already.

        Raises:
            InputError: always.
        """
        raise InputError("a model that is in memory cannot be streamed; give its folder")

    def load_model(self) -> nn.Module:
        """Return the model itself, frozen; fused experts are un-fused in place."""
        unfuse_experts(self._model)
        return self._model.eval().requires_grad_(False)
