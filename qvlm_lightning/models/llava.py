"""LLaVA-1.5 in its Hugging Face form: CLIP tower, two-layer projector, Llama-like decoder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import ANSWER, PAD, PROMPT, VISION, Named, VLMFamily

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Llava(VLMFamily):
    """LLaVA-1.5 from a local folder or a hub name.

    Args:
        path: folder in the Hugging Face layout, or a repository id on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    def __init__(self, path: str, dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; allowed: {', '.join(_DTYPES)}")
        self.path = str(path)
        self.dtype = dtype
        self._processor: Any = None

    def load_model(self) -> nn.Module:
        """Load, freeze and return the model (see :class:`VLMFamily`)."""
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText

        self._check_folder("config.json")
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                self.path, dtype=_DTYPES[self.dtype]
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(f"no usable model in {self.path!r}: {_first_line(error)}") from error
        if model.config.model_type != "llava":
            raise InputError(
                f"{self.path!r} holds a {model.config.model_type!r} model; allowed: 'llava'"
            )
        return model.eval().requires_grad_(False)

    def load_processor(self) -> Any:
        """Load the processor once (see :class:`VLMFamily`)."""
        from transformers import AutoProcessor

        if self._processor is None:
            self._check_folder("config.json")
            try:
                self._processor = AutoProcessor.from_pretrained(self.path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
                raise InputError(
                    f"no usable processor in {self.path!r}: {_first_line(error)}"
                ) from error
        return self._processor

    def _check_folder(self, required: str) -> None:
        looks_local = self.path.startswith((".", "/", "~")) or Path(self.path).exists()
        if looks_local and not (Path(self.path) / required).is_file():
            raise InputError(
                f"model folder {self.path!r} has no {required}; give a Hugging Face model folder"
            )

    def vision_layers(self, model: Any) -> list[Named]:
        """Return the tower layers up to ``vision_feature_layer``."""
        layers = self._tower_layers(model)
        return layers[: self._reached(model, len(layers))]

    def unreachable_layers(self, model: Any) -> list[tuple[str, nn.Module, str]]:
        """Return the tower layers behind ``vision_feature_layer``."""
        layers = self._tower_layers(model)
        chosen = model.config.vision_feature_layer
        reason = f"cannot reach the output: vision_feature_layer is {chosen}"
        return [
            (name, layer, reason) for name, layer in layers[self._reached(model, len(layers)) :]
        ]

    def _tower_layers(self, model: Any) -> list[Named]:
        tower = model.model.vision_tower
        inner = getattr(tower, "vision_model", tower)
        prefix = "model.vision_tower." + ("vision_model." if inner is not tower else "")
        return [(f"{prefix}encoder.layers.{i}", x) for i, x in enumerate(inner.encoder.layers)]

    @staticmethod
    def _reached(model: Any, count: int) -> int:
        chosen = model.config.vision_feature_layer
        if not isinstance(chosen, int):
            raise InputError(f"vision_feature_layer {chosen} is a list; allowed: one integer")
        # hidden state 0 is the embedding, hidden state k the output of layer k-1
        return chosen if chosen >= 0 else count + 1 + chosen

    def projector(self, model: Any) -> Named:
        """Return the two-layer projector."""
        return "model.multi_modal_projector", model.model.multi_modal_projector

    def decoder_layers(self, model: Any) -> list[Named]:
        """Return the decoder layers."""
        layers = model.model.language_model.layers
        return [(f"model.language_model.layers.{i}", x) for i, x in enumerate(layers)]

    def input_groups(self, layer: nn.Module) -> dict[str, list[str]]:
        """Return the sites of a CLIP layer, a Llama layer or the projector, those that exist."""
        known = {
            "attn_in": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "o_in": ["self_attn.o_proj", "self_attn.out_proj"],
            "mlp_in": ["mlp.gate_proj", "mlp.up_proj", "mlp.fc1"],
            "down_in": ["mlp.down_proj", "mlp.fc2"],
            "first_in": ["linear_1"],
            "second_in": ["linear_2"],
        }
        present = dict(layer.named_modules())
        groups = {site: [n for n in names if n in present] for site, names in known.items()}
        return {site: names for site, names in groups.items() if names}

    def vision_positions(self, model: Any) -> int | None:
        """Return the patches of one image plus the class token."""
        vision = model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2 + 1

    def token_kind(self, batch: dict[str, Tensor]) -> Tensor:
        """Return [B, T] kinds from the mask, the image token id and the labels."""
        ids = batch["input_ids"]
        kind = torch.full_like(ids, PROMPT)
        kind[ids == self._image_token_id()] = VISION
        if "labels" in batch:
            kind[batch["labels"] != -100] = ANSWER
        kind[batch["attention_mask"] == 0] = PAD
        return kind

    def _image_token_id(self) -> int:
        processor = self.load_processor()
        return int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))

    def describe(self) -> dict[str, Any]:
        """Return class, path and dtype."""
        return {"family": type(self).__name__, "path": self.path, "dtype": self.dtype}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
