"""The embedded model as a family."""

from pathlib import Path
from typing import Any

from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava


class Tiny(Llava):
    """The small LLaVA that ships with the package (docs/embedded_model.md).

    Args:
        outlier_scale: 1 leaves the model as trained; above 1 a few channels are scaled up without
            changing
            the full-precision outputs (a stress variant).
    """

    def __init__(self, outlier_scale: float = 1.0) -> None:
        from qvlm_lightning.models.tiny import WEIGHTS

        if not outlier_scale >= 1:
            raise InputError(f"outlier_scale {outlier_scale} is below 1; allowed: 1 (off) or more")
        super().__init__(str(WEIGHTS))
        self.outlier_scale = float(outlier_scale)

    def streamed(self) -> tuple[nn.Module, dict[str, tuple[Path, str]]]:
        """Find the shipped weights; outliers are injected into a model as a whole.

        Raises:
            InputError: the outlier scale is above 1.
        """
        if self.outlier_scale != 1:
            raise InputError(
                f"outlier_scale {self.outlier_scale:g} changes weights when the model is loaded, "
                "which streaming cannot; allowed: 1, or streaming: false"
            )
        return super().streamed()

    def load_model(self) -> nn.Module:
        """Load the shipped weights and inject the outliers."""
        from qvlm_lightning.models.tiny.outliers import inject_outliers

        model = super().load_model()
        inject_outliers(model, self.outlier_scale)
        return model

    def of_artifact(self) -> type[Llava]:
        """Return LLaVA: an artifact holds the weights, outliers and all."""
        return Llava

    def describe(self) -> dict[str, Any]:
        """Return class and outlier scale; the path is that of the installed package."""
        return {"family": "Tiny", "outlier_scale": self.outlier_scale, "dtype": self.dtype}
