"""The embedded model as a family."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava

_SINK_QUESTIONS = 32  # each about a scene of its own


class Tiny(Llava):
    """The small LLaVA that ships with the package (docs/embedded_model.md).

    Both scales make stress variants: weights are changed when the model is loaded, full-precision
    outputs stay the same. They can be combined.

    Args:
        outlier_scale: factor of a few channels behind every norm; 1 leaves them as trained. Whoever
            folds the norms' gains into the layers behind them undoes it, as a rotation does too.
        sink_scale: in one decoder layer a channel of the down projection's input becomes this many
            times as large at the first token as the largest of the other channels is at the median
            token; channels between Linear layers of the other decoder layers are scaled by its cube
            root. 1 leaves them as trained. No fold of a norm takes it back; a fold between the two
            Linear layers can.

    Raises:
        InputError: a scale is below 1 or not finite.
    """

    def __init__(self, outlier_scale: float = 1.0, sink_scale: float = 1.0) -> None:
        from qvlm_lightning.models.tiny import WEIGHTS

        for name, scale in (("outlier_scale", outlier_scale), ("sink_scale", sink_scale)):
            if not scale >= 1:
                raise InputError(f"{name} {scale} is below 1; allowed: 1 (off) or more")
            if not math.isfinite(scale):
                raise InputError(f"{name} {scale} is not finite; allowed: 1 (off) or more")
        super().__init__(str(WEIGHTS))
        self.outlier_scale = float(outlier_scale)
        self.sink_scale = float(sink_scale)

    def streamed(self) -> tuple[nn.Module, dict[str, tuple[Path, str]]]:
        """Find the shipped weights; outliers and sinks are injected into a model as a whole.

        Raises:
            InputError: a scale is above 1.
        """
        for name in ("outlier_scale", "sink_scale"):
            if (scale := getattr(self, name)) != 1:
                raise InputError(
                    f"{name} {scale:g} changes weights when the model is loaded, "
                    "which streaming cannot; allowed: 1, or streaming: false"
                )
        return super().streamed()

    def load_model(self) -> nn.Module:
        """Load the shipped weights and inject outliers and sink.

        Raises:
            InputError: ``sink_scale`` is above 1 and below what the model has as trained.
        """
        from qvlm_lightning.models.tiny.outliers import inject_outliers
        from qvlm_lightning.models.tiny.sinks import inject_sink

        model = super().load_model()
        inject_outliers(model, self.outlier_scale)
        if self.sink_scale != 1:
            inject_sink(model, self, self._sink_inputs(), self.sink_scale)
        return model

    def stored_types(self, model: nn.Module) -> dict[str, torch.dtype]:
        """Return the types of the shipped file; none of a stress variant, which no file holds."""
        as_trained = self.outlier_scale == self.sink_scale == 1
        return super().stored_types(model) if as_trained else {}

    def _sink_inputs(self) -> dict[str, Tensor]:
        """Return training questions, always the same, that the sink's channel is looked for on."""
        from qvlm_lightning.models.tiny.samples import calibration_index, generate

        places = [calibration_index(number) for number in range(_SINK_QUESTIONS)]
        drawn, processor = generate("train", places[-1] + 1), self.load_processor()
        samples = [drawn[place] for place in places]
        images = [sample.image for sample in samples if sample.image is not None]
        texts = []
        for sample in samples:
            image = [] if sample.image is None else [{"type": "image"}]
            content = [*image, {"type": "text", "text": sample.question}]
            message = {"role": "user", "content": content}
            texts.append(processor.apply_chat_template([message], add_generation_prompt=True))
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    def of_artifact(self) -> type[Llava]:
        """Return LLaVA: an artifact holds the weights, outliers and all."""
        return Llava

    def describe(self) -> dict[str, Any]:
        """Return class and scales; the path is that of the installed package.

        ``sink_scale`` is left out where it is off: fingerprints of models without it stay those of
        earlier versions.
        """
        sink = {} if self.sink_scale == 1 else {"sink_scale": self.sink_scale}
        scales = {"outlier_scale": self.outlier_scale, **sink}
        return {"family": "Tiny", **scales, "dtype": self.dtype}
