"""A model that is already in memory, for notebooks."""

from pathlib import Path
from typing import Any

from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.models.checks import check_full_precision, check_processor
from qvlm_lightning.models.experts import unfuse_experts
from qvlm_lightning.models.find import family_for
from qvlm_lightning.models.hub import HubFamily


def loaded(model: Any, processor: Any, known: type[HubFamily] | None = None) -> HubFamily:
    """Return the family of a model and a processor that the caller has loaded.

    Args:
        model: a transformers model of any family (docs/models.md); it is frozen, put into
            ``eval()`` mode and changed in place.
        processor: its processor.
        known: the family's class; default: that of the model's ``model_type``.

    Raises:
        InputError: no family knows such a model, or such a vision tower; the model is quantized
            already or has NaN in a weight, or the processor cannot make prompts.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    known = known or family_for(str(kind))
    made = type(f"Loaded{known.__name__}", (_InMemory, known), {"known": known})
    check_full_precision(model.config.to_dict(), "model")
    family: HubFamily = made(str(getattr(model.config, "_name_or_path", "") or "in memory"))
    family.hold(model, processor)  # type: ignore[attr-defined]
    family.vision_layers(model)  # a tower of another kind is refused before any work
    check_processor(processor, "the model in memory", lambda: model.config)
    check_finite(model.named_parameters(), "the model in memory")
    return family


class _InMemory:
    """What differs where nothing is loaded."""

    known: type[HubFamily]
    _model: nn.Module
    _processor: Any

    def hold(self, model: nn.Module, processor: Any) -> None:
        """Take over what the caller has loaded."""
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

    def of_artifact(self) -> type[HubFamily]:
        """Return the family that reads an artifact of this model."""
        return self.known
