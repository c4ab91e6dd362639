"""What a run did, in about ten lines: from its report alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from qvlm_lightning.estimate.sizes import format_bytes
from qvlm_lightning.results.objectives import mean_objectives
from qvlm_lightning.results.printable import printable

Fact = tuple[str, str]


def run_facts(report: Mapping[str, Any], artifact_bytes: int | None = None) -> list[Fact]:
    """Return name and text of what to know of a calibration; what is not there is left out.

    Args:
        report: content of ``report.json``.
        artifact_bytes: size of the artifact's folder.
    """
    facts = [
        ("model", model_text(report["model"])),
        ("scheme", f"{scheme_text(report)}, activations {report['activation_mode']}"),
        ("method", _method(report)),
        ("quantized", _quantized(report)),
        ("partition", _partition(report["partition"])),
        ("objective J", _objective(report["objectives"])),
        ("loss", _loss(report.get("loss_fixed") or [])),
        ("signal to noise", _sqnr(report.get("sqnr") or {})),
        ("size", _size(report.get("sizes") or {}, artifact_bytes)),
        ("artifact", _layout(report["scheme"])),
        ("time", _time(report.get("spent") or {})),
        ("warnings", _warnings(report.get("warnings") or [])),
    ]
    return [(name, text) for name, text in facts if text]


def model_text(model: Mapping[str, Any]) -> str:
    """Write which model it is.

    Example:
        >>> model_text({"family": "Llava", "path": "models/seven", "dtype": "float32"})
        'Llava, models/seven, float32'
    """
    known = [str(model[key]) for key in ("family", "path", "dtype") if model.get(key)]
    scales = ("outlier_scale", "sink_scale")
    stress = [f"{key} {model[key]:g}" for key in scales if model.get(key, 1) not in (None, 1)]
    return ", ".join(known + stress)


def scheme_text(report: Mapping[str, Any]) -> str:
    """Write the scheme's name; older reports do not have it."""
    scheme = report["scheme"]
    widths = {
        part: f"w{scheme[part]['weight_bits']}a{scheme[part]['activation_bits']}"
        for part in ("vision", "projector", "language")
        if isinstance(scheme.get(part), Mapping)
    }
    same = len(set(widths.values())) == 1
    told = ", ".join(dict.fromkeys(widths.values()) if same else map(" ".join, widths.items()))
    return str(report.get("scheme_name") or told)


def clock(seconds: float) -> str:
    """Write a duration.

    Example:
        >>> clock(9.34), clock(83), clock(3725)
        ('9.3 s', '1:23', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _method(report: Mapping[str, Any]) -> str:
    settings = report.get("settings") or {}
    told = [str(settings["class"])] if settings.get("class") else []
    told += [f"objective {report['objective']}"] if report.get("objective") else []
    return f"{report['method']} ({', '.join(told)})" if told else str(report["method"])


def _quantized(report: Mapping[str, Any]) -> str:
    parts: dict[str, int] = {}
    for part in report["quantized"].values():
        parts[part] = parts.get(part, 0) + 1
    of = ", ".join(f"{part} {count}" for part, count in parts.items())
    left = len(report.get("ignored") or {})
    return f"{len(report['quantized'])} Linear layers ({of}); {left} modules left as they are"


def _partition(partition: Mapping[str, Sequence[Sequence[int]]]) -> str:
    told = []
    for tower, blocks in partition.items():
        layers = sum(last - first + 1 for first, last in blocks)
        if len(blocks) < layers:
            sizes = "+".join(str(last - first + 1) for first, last in blocks[:12])
            told.append(f"{tower} {layers} layers in {len(blocks)} blocks ({sizes})")
    if partition and not told:
        return "every layer is a block of its own"
    return ", ".join(told)


def _objective(blocks: Sequence[Mapping[str, Any]]) -> str:
    means = mean_objectives(blocks)
    if means is None:
        return ""
    return f"{means[0]:.4g} on min-max ranges, {means[1]:.4g} chosen (mean of {len(blocks)} blocks)"


def _loss(measured: Sequence[Mapping[str, Any]]) -> str:
    if not measured:
        return ""
    return f"{measured[0]['total']:.4g} first, {measured[-1]['total']:.4g} last"


def _sqnr(sqnr: Mapping[str, Mapping[str, float]]) -> str:
    decided, before = sqnr.get("decided") or {}, sqnr.get("minmax") or {}
    if not decided:
        return ""
    told = f"{fmean(decided.values()):.1f} dB, mean of layer outputs; worst {_worst(decided)}"
    return f"{told}; on min-max ranges {fmean(before.values()):.1f} dB" if before else told


def _worst(decibels: Mapping[str, float]) -> str:
    name = min(decibels, key=lambda layer: decibels[layer])
    return f"{decibels[name]:.1f} dB at {name}"


def _size(sizes: Mapping[str, Mapping[str, int]], artifact: int | None) -> str:
    told = []
    if sizes:
        full, packed = (sum(part[kind] for part in sizes.values()) for kind in ("full", "packed"))
        told.append(f"weights {format_bytes(full)}, packed they would be {format_bytes(packed)}")
    if artifact is not None:
        told.append(f"artifact on disk {format_bytes(artifact)}")
    return "; ".join(told)


def _layout(scheme: Mapping[str, Any]) -> str:
    """Write who loads the artifact."""
    if scheme.get("target") == "compressed-tensors":
        return "in the layout of compressed-tensors, which transformers loads too"
    return "in the layout of this package, which other programs do not load"


def _time(spent: Mapping[str, Mapping[str, float]]) -> str:
    if not spent:
        return ""
    seconds = {name: figures["seconds"] for name, figures in spent.items()}
    longest = sorted(seconds, key=lambda name: -seconds[name])[:4]
    phases = ", ".join(f"{name} {clock(seconds[name])}" for name in longest)
    peaks = [
        f"{format_bytes(max(f.get(kind, 0) for f in spent.values()))} {where}"
        for kind, where in (("host_bytes", "of RAM"), ("device_bytes", "on the GPU"))
        if any(f.get(kind) for f in spent.values())
    ]
    return f"{clock(sum(seconds.values()))} ({phases}); at most {' and '.join(peaks)}"


def _warnings(lines: Sequence[str]) -> str:
    return f"{len(lines)}, the first: {printable(lines[0], 120)}" if lines else "none"


def folder_bytes(folder: Path) -> int | None:
    """Return the bytes of a folder's files; None if there is no such folder."""
    if not folder.is_dir():
        return None
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
