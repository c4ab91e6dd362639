"""``report.json``: what a calibration did, for other programs to read."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qvlm_lightning.calibration.module import QuantModule


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


def class_path(kind: type) -> str:
    """Return the dotted path from which a class can be imported."""
    return f"{kind.__module__}.{kind.__qualname__}"


def manifest(module: QuantModule, method: str) -> dict[str, Any]:
    """Return what an artifact says about itself."""
    state = module.state
    return {
        "method": method,
        "scheme": module.scheme.to_dict(),
        "scheme_name": module.scheme.name,
        "activation_mode": module.scheme.activation_mode,
        **module.family.describe(),
        "class_path": class_path(module.family.of_artifact()),
        "model": module.identity()["model"],
        "seed": module.seed,
        "calibration_ids": list(module.calibration_ids),
        "percentiles": state.percentiles,
        "partition": state.partition,
        "versions": versions(),
    }


def report(module: QuantModule, method: str) -> dict[str, Any]:
    """Return the content of ``report.json``; plain numbers, strings, lists and dicts."""
    state, structure = module.state, module.structure
    return {
        "method": method,
        "model": module.family.describe(),
        "scheme": module.scheme.to_dict(),
        "activation_mode": module.scheme.activation_mode,
        "units": {name: [u.name for u in tower.units] for name, tower in structure.towers.items()},
        "dependency": state.dependency,
        "dependency_by_kind": state.dependency_by_kind,
        "threshold": state.threshold,
        "partition": state.partition,
        "partitions": state.partitions,
        "percentiles": state.percentiles,
        "objective": state.objective,
        "search": {
            "layer_forwards": sum(p["layer_forwards"] for p in state.passes),
            "site_forwards": sum(p["site_forwards"] for p in state.passes),
            "seconds": sum(p["seconds"] for p in state.passes),
            "passes": state.passes,
        },
        "loss": state.loss,
        "jacobian": state.jacobian,
        "quantized": structure.quantized,
        "ignored": structure.ignored,
        "notes": structure.notes,
        "seed": module.seed,
        "calibration_ids": list(module.calibration_ids),
        "versions": versions(),
    }
