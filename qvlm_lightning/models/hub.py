"""What families share whose models come from a transformers folder: loading, places, token kinds.

A family below is little more than names: where layers are, and which Linear layers share an input.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import Foreign, InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.models.checkpoint import WeightReader
from qvlm_lightning.models.checks import check_full_precision, check_processor
from qvlm_lightning.models.experts import expert_groups, unfuse_experts
from qvlm_lightning.models.family import ANSWER, PAD, PROMPT, VISION, Named, VLMFamily
from qvlm_lightning.models.find_residual import find_residual
from qvlm_lightning.models.find_wiring import find_attention, find_sources, norm_source
from qvlm_lightning.models.offline import stored_if_unreachable
from qvlm_lightning.models.towers import tower_path
from qvlm_lightning.models.weight_map import Place, weight_map, without_weights
from qvlm_lightning.models.wiring import Attention, Residual, Source

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HubFamily(VLMFamily):
    """A family whose models and processors transformers loads from a local folder or a hub name.

    Args:
        path: folder in the Hugging Face layout, or a repository id on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    """``model_type`` of the configurations that are of this family."""
    tower: ClassVar[str] = "model.vision_tower.encoder.layers"
    """Where the tower's layers are, of a family that has one kind of tower."""
    towers: ClassVar[dict[str, str]] = {}
    """``model_type`` of a tower -> where its layers are, of a family that has several kinds."""
    connector: ClassVar[str] = "model.multi_modal_projector"
    """Where the projector is."""
    decoder: ClassVar[str] = "model.language_model.layers"
    """Where the decoder layers are."""
    connector_norm: ClassVar[str | None] = None
    """Norm within the projector that only its first Linear layer reads."""
    image_vectors: ClassVar[tuple[str, ...]] = ()
    """Parameters [D] that stand between the image tokens in the decoder."""
    sites: ClassVar[dict[str, tuple[str, ...]]] = {
        "attn_in": (
            *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "qkv", "q_a")),
            *(f"attention.{x}_proj" for x in "qkv"),
            "self_attn.kv_a_proj_with_mqa",
        ),
        "q_in": ("self_attn.q_b_proj",),
        "kv_in": ("self_attn.kv_b_proj",),
        "o_in": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attention.o_proj"),
        "mlp_in": ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1"),
        "down_in": ("mlp.down_proj", "mlp.fc2"),
        "first_in": ("linear_1",),
        "second_in": ("linear_2",),
    }
    """Site -> Linear layers of any layer or projector that share its input, if they exist; sites in
    forward order."""

    def __init__(self, path: str, dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; allowed: {', '.join(_DTYPES)}")
        self.path = str(path)
        self.dtype = dtype
        self._processor: Any = None

    # --- loading ----------------------------------------------------------------------------------

    def load_model(self) -> nn.Module:
        """Load, freeze and return the model (see :class:`VLMFamily`)."""
        from safetensors import SafetensorError
        from transformers import PretrainedConfig

        self._check_folder("config.json")
        try:
            with Foreign(self._unusable), self._at_hand():
                settings, _ = PretrainedConfig.get_config_dict(self.path)
                self.check_type(settings.get("model_type"), repr(self.path))
                check_full_precision(settings, repr(self.path))
                tower_path(self, (settings.get("vision_config") or {}).get("model_type"))
                model, found = self.read_model(_DTYPES[self.dtype])
        except InputError as fault:
            if isinstance(fault.__cause__, SafetensorError) and Path(self.path).is_dir():
                WeightReader(Path(self.path))  # names the file that is broken
            raise
        self._complete(model, found["missing_keys"])
        check_finite(model.named_parameters(), f"model {self.path!r}")
        unfuse_experts(model)
        return model.eval().requires_grad_(False)

    def read_model(self, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        """Read the model from the folder; beside it, what transformers says about the loading."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            self.path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )

    def _complete(self, model: nn.Module, missing: Iterable[str]) -> None:
        """Refuse a checkpoint without weights that matter, and put 0 for those that do not, which
        transformers draws at random.
        """
        lost = tuple(f"{name}." for name, _, _ in self.unreachable_layers(model))
        needed = sorted(name for name in missing if not name.startswith(lost))
        if needed:
            raise InputError(f"{self.path!r} lacks {len(needed)} weights, such as {needed[0]!r}")
        for name in missing:
            path, _, own = name.rpartition(".")
            owner = model.get_submodule(path)
            zeros = torch.zeros_like(getattr(owner, own), device="cpu")
            held = own in owner._parameters
            setattr(owner, own, nn.Parameter(zeros, requires_grad=False) if held else zeros)

    @property
    def _unusable(self) -> str:
        if Path(self.path).exists():
            return f"no usable model in {self.path!r}"
        return f"there is no folder {self.path!r}, and no such model on the hub"

    def _at_hand(self) -> AbstractContextManager[None]:
        return nullcontext() if Path(self.path).exists() else stored_if_unreachable()

    def streamed(self) -> tuple[nn.Module, dict[str, Place]]:
        """Build the model without weights and find them (see :class:`VLMFamily`)."""
        model = self.weightless()
        places = weight_map(model, self.path)
        self._complete(model, model.state_dict().keys() - places.keys())
        return model, places

    def weightless(self) -> nn.Module:
        """Return the frozen model without weights; a ``config.json`` is all that is read.

        Raises:
            InputError: it is missing or broken, or of another family.
        """
        self._check_folder("config.json")
        with Foreign(self._unusable), self._at_hand():
            dtype = _DTYPES[self.dtype]
            model = without_weights(lambda: self.empty_model(dtype), self.path)
        self.check_type(model.config.model_type, repr(self.path))
        check_full_precision(model.config.to_dict(), repr(self.path))
        self._tower_layers(model)
        return model

    def empty_model(self, dtype: torch.dtype) -> nn.Module:
        """Build the model from the folder's configuration (see :class:`VLMFamily`)."""
        from transformers import AutoConfig, AutoModelForImageTextToText

        config = AutoConfig.from_pretrained(self.path)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        unfuse_experts(model)
        return model.eval()

    @classmethod
    def check_type(cls, found: Any, where: str) -> None:
        """Refuse a model of another family.

        Raises:
            InputError: ``found`` is not one of ``model_types``.
        """
        if found not in cls.model_types:
            allowed = ", ".join(map(repr, cls.model_types))
            raise InputError(f"{where} holds a {found!r} model; allowed: {allowed}")

    def load_processor(self) -> Any:
        """Load the processor once (see :class:`VLMFamily`)."""
        if self._processor is None:
            self._check_folder("config.json")
            with Foreign(f"no usable processor in {self.path!r}"), self._at_hand():
                processor = self.read_processor()
            check_processor(processor, repr(self.path), self.read_config)
            self._processor = processor
        return self._processor

    def read_config(self) -> Any:
        """Read the model's configuration from the folder."""
        from transformers import AutoConfig

        with Foreign(self._unusable), self._at_hand():
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)

    def read_processor(self) -> Any:
        """Read the processor from the folder."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.path, trust_remote_code=False)

    def _check_folder(self, required: str) -> None:
        looks_local = self.path.startswith((".", "/", "~")) or Path(self.path).exists()
        if looks_local and not (Path(self.path) / required).is_file():
            raise InputError(
                f"model folder {self.path!r} has no {required}; give a Hugging Face model folder"
            )

    # --- places -----------------------------------------------------------------------------------

    def _tower_layers(self, model: Any) -> list[Named]:
        kind = getattr(getattr(model.config, "vision_config", None), "model_type", None)
        return named_layers(model, tower_path(self, kind))

    def vision_layers(self, model: Any) -> list[Named]:
        """Return the tower layers up to ``vision_feature_layer``, all where there is none."""
        layers = self._tower_layers(model)
        return layers[: self._reached(model, len(layers))]

    def unreachable_layers(self, model: Any) -> list[tuple[str, nn.Module, str]]:
        """Return the tower layers behind ``vision_feature_layer``."""
        layers = self._tower_layers(model)
        chosen = getattr(model.config, "vision_feature_layer", None)
        reason = f"cannot reach the output: vision_feature_layer is {chosen}"
        return [
            (name, layer, reason) for name, layer in layers[self._reached(model, len(layers)) :]
        ]

    @staticmethod
    def _reached(model: Any, count: int) -> int:
        chosen = getattr(model.config, "vision_feature_layer", -1)
        if not isinstance(chosen, int):
            raise InputError(f"vision_feature_layer {chosen} is a list; allowed: one integer")
        # hidden state 0 is the embedding, hidden state k the output of layer k-1
        return chosen if chosen >= 0 else count + 1 + chosen

    def projector(self, model: Any) -> Named:
        """Return the projector."""
        return self.connector, model.get_submodule(self.connector)

    def decoder_layers(self, model: Any) -> list[Named]:
        """Return the decoder layers."""
        return named_layers(model, self.decoder)

    def input_groups(self, layer: nn.Module) -> dict[str, list[str]]:
        """Return the sites of a layer or of the projector, those that exist."""
        present = dict(layer.named_modules())
        groups = {site: [n for n in names if n in present] for site, names in self.sites.items()}
        groups |= expert_groups(layer)
        return {site: names for site, names in groups.items() if names}

    def sources(self, layer: nn.Module) -> dict[str, Source]:
        """Return the sources of a layer or of the projector (see :class:`VLMFamily`)."""
        groups = self.input_groups(layer)
        if "first_in" not in groups:
            return find_sources(layer, groups, self.routers(layer))
        if self.connector_norm is None:
            return {}
        first, norm = groups["first_in"], layer.get_submodule(self.connector_norm)
        columns = layer.get_submodule(first[0]).get_parameter("weight").shape[1]
        repeats = columns // norm.get_parameter("weight").numel()
        source = norm_source(layer, self.connector_norm, first, repeats)
        return {} if source is None else {"first_in": source}

    def attention(self, layer: nn.Module) -> Attention | None:
        """Return the heads of a layer's attention (see :class:`VLMFamily`)."""
        return find_attention(layer, self.input_groups(layer))

    def residual(self, model: nn.Module) -> Residual:
        """Return the decoder's residual stream (see :class:`VLMFamily`)."""
        return find_residual(model, self, self.image_vectors)

    def vision_positions(self, model: Any) -> int | None:
        """Return ``None``: the number of tokens follows the image."""
        return None

    # --- tokens -----------------------------------------------------------------------------------

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


def named_layers(model: nn.Module, place: str) -> list[Named]:
    """Return (name, module) of the layers in the list at ``place``."""
    return [(f"{place}.{name}", x) for name, x in model.get_submodule(place).named_children()]
