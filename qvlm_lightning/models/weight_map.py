"""Models without weights, and where a checkpoint keeps each weight that such a model lacks."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.checkpoint import WeightReader
from qvlm_lightning.models.experts import unfused_name

Place = tuple[Path, str]

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}


def without_weights(build: Callable[[], Any], path: str) -> Any:
    """Return the frozen model that ``build`` makes, its parameters on the meta device.

    Buffers are real: transformers computes those that no checkpoint holds (frequencies, positions).

    Args:
        build: makes a model from its configuration.
        path: of its folder or repository, for what a model has beside its configuration.
    """
    from transformers import GenerationConfig

    with torch.device("meta"):
        model = build()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()
    with suppress(OSError):  # not every model has one
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval().requires_grad_(False)


def weight_map(model: Any, path: str) -> dict[str, Place]:
    """Return by name in ``model`` the file and the key under which a checkpoint holds it.

    Names change between a checkpoint and a model; which way, transformers says itself. Tied
    parameters have the same place; what the checkpoint lacks has none.

    Args:
        model: of transformers, with or without weights.
        path: its folder, or a repository id on the hub.

    Raises:
        InputError: the checkpoint is not in safetensors, or holds a weight that is computed from
            several on loading.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    state = model.state_dict(keep_vars=True)
    places: dict[str, Place] = {}
    computed: dict[str, str] = {}
    for key, file in WeightReader(_folder(path)).place.items():
        if file.suffix != ".safetensors":
            raise InputError(
                f"{str(file)!r} cannot be read tensor by tensor; streaming needs safetensors: load "
                "the model and save it with save_pretrained, or use the verb convert"
            )
        for steps in ((renamings, []), ([], []), (renamings, converters)):
            name, converter = rename_source_key(key, *steps, model.base_model_prefix, state)
            name = name if name in state else unfused_name(name)
            if name in state:
                if converter is None:
                    places.setdefault(name, (file, key))
                else:
                    computed[name] = key
                break
    stored = {id(state[name]): place for name, place in places.items()}
    for name in state:
        if id(state[name]) in stored:  # a tied parameter is stored under one of its names
            places.setdefault(name, stored[id(state[name])])
        elif name in computed:
            raise InputError(
                f"weight {name} is made from {computed[name]} and others when the model is loaded; "
                "streaming reads only weights that are stored as they are used"
            )
    return places


def stored_names(model: Any) -> dict[str, str]:
    """Return name in the model -> name under which transformers stores it in a file.

    transformers renames weights when it loads them; other programs know the stored names.

    Args:
        model: of transformers, quantized or not.

    Raises:
        InputError: a weight is stored in another form, not only under another name.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        PrefixChange,
        WeightConverter,
        WeightRenaming,
        apply_converters,
        apply_renamings,
    )

    steps: Any = get_model_conversion_mapping(model, add_legacy=False)
    back = [s.reverse_transform() for s in steps if not isinstance(s, PrefixChange)][::-1]
    renamings = [step for step in back if isinstance(step, WeightRenaming)]
    converters = [step for step in back if isinstance(step, WeightConverter)]
    names = {}
    for name in model.state_dict():
        if apply_converters(name, converters)[1] is not None:
            raise InputError(
                f"weight {name} is stored in another form than it is used in, which is not "
                "exported; the artifact is what can be loaded"
            )
        names[name] = apply_renamings(name, renamings)
    assert len(set(names.values())) == len(names), "two weights would have one name"
    return names


def stored_types(model: Any, path: str) -> dict[str, torch.dtype]:
    """Return by name in ``model`` the types that its checkpoint holds, where they are half types
    and the model's are wider.

    Args:
        model: of transformers, with weights.
        path: its folder, or a repository id on the hub.

    Returns:
        Nothing of a checkpoint that :func:`weight_map` refuses: the model has been loaded all the
        same.
    """
    from safetensors import safe_open

    keys: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    try:
        places = weight_map(model, path)
    except InputError:
        return {}
    for name, (file, key) in places.items():
        keys[file].append((name, key))
    state, found = model.state_dict(), {}
    for file, names in keys.items():
        with safe_open(file, framework="pt") as tensors:
            for name, key in names:
                kind = _HALF.get(tensors.get_slice(key).get_dtype())
                if kind is not None and kind.itemsize < state[name].dtype.itemsize:
                    found[name] = kind
    return found


def _folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise InputError(f"no usable model in {path!r}: {error}") from error
