"""llm-compressor (https://github.com/vllm-project/llm-compressor): round-to-nearest and GPTQ.

``python run_llmcompressor.py FOLDER``, in its own environment (:mod:`qvlm_lightning.rivals`).
"""

import sys
from pathlib import Path
from typing import Any, cast

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def main() -> None:
    """Quantize the layers of a job and write their dequantized weights."""
    from exchange import Exchange, asked_for_versions

    if asked_for_versions(PACKAGES):
        return
    import torch
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    job = Exchange(Path(sys.argv[1]))
    torch.manual_seed(job.job["seed"])
    model = job.model()
    given: dict[str, Any] = {"model": model, "recipe": [modifier(job)]}
    if job.job["method"] == "rtn":  # minimum and maximum of weights, and ranges of each token
        given["pipeline"] = "datafree"
    else:
        pipeline, pairs = calibration(job)
        job.notes.append(f"{pipeline} pipeline")
        given |= {
            "pipeline": pipeline,
            "dataset": DataLoader(cast(Any, pairs), batch_size=None),  # any sequence will do
            "num_calibration_samples": len(pairs),
            "max_seq_length": max(pair["input_ids"].shape[1] for pair in pairs),
        }
        if pipeline == "sequential":
            given["sequential_targets"] = [decoder_layer(model, job)]
    oneshot(**given)
    job.write({name: dequantized(model.get_submodule(name)) for name in job.layers})


def calibration(job: Any) -> tuple[str, Any]:
    """Return the pipeline, and the calibration pairs that it can take.

    The sequential one, its default, quantizes layer by layer behind quantized ones. It follows one
    path through the model: pairs without an image crash behind pairs with one, and of a tower it
    leaves layers without statistics. Where layers outside the decoder are quantized, the basic one
    runs, with inputs of the full-precision model.
    """
    pairs = job.pairs()
    if any("language_model" not in name for name in job.layers):
        return "basic", pairs
    shown = [pair for pair in pairs if "pixel_values" in pair]
    if shown and len(shown) < len(pairs):
        job.notes.append(f"{len(shown)} of {len(pairs)} pairs: those with an image")
        pairs = shown
    return "sequential", pairs


def decoder_layer(model: Any, job: Any) -> str:
    """Return the class of the decoder's layers."""
    first = next(iter(job.layers))
    name = first[: first.index(".layers.")] + ".layers.0"
    return type(model.get_submodule(name)).__name__


def modifier(job: Any) -> Any:
    """Return the modifier of a job: one group of layers per width and group size."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    groups: dict[tuple[int, int, int | None], list[str]] = {}
    for name, layer in job.layers.items():
        key = layer["weight_bits"], layer["activation_bits"], layer["group_size"]
        groups.setdefault(key, []).append(name)
    config = {
        f"group_{place}": {
            "targets": names,
            "weights": weights(*key[::2], symmetric=job.job["symmetric"]),
            "input_activations": None if key[1] == 16 else per_token(key[1]),
        }
        for place, (key, names) in enumerate(groups.items())
    }
    kind = {"rtn": QuantizationModifier, "gptq": GPTQModifier}[job.job["method"]]
    return kind(config_groups=config)


def weights(bits: int, group: int | None, symmetric: bool) -> dict[str, Any]:
    """Return how weights are quantized."""
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}


def per_token(bits: int) -> dict[str, Any]:
    """Return how activations are quantized: as the package's ``dynamic_token``."""
    kind = {"type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {"num_bits": bits, **kind}


def dequantized(module: Any) -> Any:
    """Return the weight as its forward pass uses it, [O, I]."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    given = {"g_idx": module.weight_g_idx} if hasattr(module, "weight_g_idx") else {}
    return fake_quantize(
        x=module.weight.data,
        scale=module.weight_scale.data,
        zero_point=module.weight_zero_point.data,
        args=module.quantization_scheme.weights,
        **given,
    )


if __name__ == "__main__":
    main()
