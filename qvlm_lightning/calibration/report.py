"""``report.json``: what a calibration did, for other programs to read."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qvlm_lightning.calibration.massive import massive_report, warning_lines
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.monitoring import histogram
from qvlm_lightning.calibration.token_peaks import counted_tokens
from qvlm_lightning.estimate.sizes import part_sizes


def versions() -> dict[str, str]:
    """Return the versions that can change a result."""
    found = {"python": platform.python_version()}
    for name in (
        "qvlm-lightning",
        "torch",
        "transformers",
        "lightning",
        "torchmetrics",
        "safetensors",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def decided_by(module: QuantModule) -> dict[str, Any]:
    """Return the run's name, its method with all settings, objective and candidates."""
    method = module.method
    return {
        "method": module.run_name,
        "settings": method.settings() if method else None,
        "objective": method.objective if method else None,
        "candidates": module.candidates,
    }


def search_cost(module: QuantModule) -> dict[str, float]:
    """Return what all search passes have run, and their seconds."""
    spent = ("layer_forwards", "site_forwards", "seconds")
    return {what: sum(p[what] for p in module.state.passes) for what in spent}


def manifest(module: QuantModule) -> dict[str, Any]:
    """Return what an artifact says about itself."""
    state = module.state
    return {
        **decided_by(module),
        "scheme": module.scheme.to_dict(),
        "scheme_name": module.scheme.name,
        "activation_mode": module.scheme.activation_mode,
        **module.family.describe(),
        "read_by": module.family.read_by(),
        "model": module.identity()["model"],
        "seed": module.seed,
        "calibration_ids": list(module.calibration_ids),
        "percentiles": state.percentiles,
        "partition": state.partition,
        "sinks": module.structure.sinks and module.structure.sinks.to_dict(),
        # without seconds: the same run gives the same file, byte for byte
        "search": {n: x for n, x in search_cost(module).items() if n != "seconds"},
        "versions": versions(),
    }


def overridden(module: QuantModule) -> dict[str, str]:
    """Return the quantized layers whose widths are not those of their part -> their widths."""
    scheme, found = module.scheme, {}
    for name, part in module.structure.quantized.items():
        if (widths := scheme.widths(part, name)) != scheme.part(part):
            found[name] = widths.name
    return found


def massive(module: QuantModule) -> dict[str, Any]:
    """Return :func:`~qvlm_lightning.calibration.massive.massive_report` of a run."""
    calibrator = module.calibrator
    assert calibrator is not None, "a run that is reported has been built"
    tokenizer = module.family.load_processor().tokenizer
    return massive_report(
        calibrator.structure,
        module.scheme,
        calibrator.statistics.peaks,
        counted_tokens(calibrator.batches),
        module.calibration_ids,
        lambda token: str(tokenizer.decode([token])),
    )


def report(module: QuantModule) -> dict[str, Any]:
    """Return the content of ``report.json``; plain numbers, strings, lists and dicts."""
    state, structure = module.state, module.structure
    return {
        **decided_by(module),
        "model": module.family.describe(),
        "scheme": module.scheme.to_dict(),
        "scheme_name": module.scheme.name,
        "activation_mode": module.scheme.activation_mode,
        "units": {name: [u.name for u in tower.units] for name, tower in structure.towers.items()},
        "dependency": state.dependency,
        "dependency_by_kind": state.dependency_by_kind,
        "threshold": state.threshold,
        "partition": state.partition,
        "partitions": state.partitions,
        "percentiles": state.percentiles,
        "gradients": state.gradients,
        "objectives": state.objective,
        "search": {**search_cost(module), "passes": state.passes},
        "loss": state.loss,
        "loss_fixed": state.loss_fixed,
        "jacobian": state.jacobian,
        "quantized": structure.quantized,
        "overridden": overridden(module),
        "massive": massive(module),
        "ignored": structure.ignored,
        "sinks": _sinks(module),
        "notes": structure.notes,
        "warnings": warnings(module),
        "sizes": sizes(module),
        "sqnr": sqnr(module),
        "clips": clips(module),
        "seed": module.seed,
        "calibration_ids": list(module.calibration_ids),
        "versions": versions(),
    }


def warnings(module: QuantModule) -> list[str]:
    """Return what the run warned of."""
    calibrator = module.calibrator
    assert calibrator is not None, "a run that is reported has been built"
    massive_lines = warning_lines(module.structure, module.scheme, calibrator.statistics.peaks)
    return [*massive_lines, *module.structure.notes]


def sizes(module: QuantModule) -> dict[str, dict[str, int]]:
    """Return per part the bytes of its weights: in the model's type, and once they are packed."""
    assert module.model is not None, "a run that is reported has been built"
    parts = part_sizes(module.model, module.structure)
    return {part: {"full": size.full, "packed": size.quantized} for part, size in parts.items()}


def sqnr(module: QuantModule) -> dict[str, dict[str, float]]:
    """Return the signal to quantization noise of every layer's output, dB, on min-max ranges
    (``minmax``) and as decided (``decided``); empty for a streamed model, which would have to be
    read once more for each.
    """
    if module.streaming:
        return {"minmax": {}, "decided": {}}
    return {"minmax": module.state.sqnr_minmax, "decided": module.layer_sqnr()}


def clips(module: QuantModule) -> dict[str, dict[str, Any]]:
    """Return per site with a stored range a histogram of its full-precision activations
    (``from``, ``to``, ``counts``) and the outermost bounds (``low``, ``high``).
    """
    found = module.clip_histograms()
    return {
        site: {"low": low, "high": high, **histogram(values)}
        for site, (values, low, high) in found.items()
    }


def _sinks(module: QuantModule) -> dict[str, Any] | None:
    """Return the sink tokens by id and in words; ``None`` where nothing is done about them."""
    sinks = module.structure.sinks
    if sinks is None:
        return None
    tokenizer = module.family.load_processor().tokenizer
    words = {
        kind: [tokenizer.decode([token]) if token >= 0 else "any" for token in ids]
        for kind, ids in sinks.to_dict().items()
    }
    return {"sink": module.scheme.sink, **sinks.to_dict(), "words": words}
