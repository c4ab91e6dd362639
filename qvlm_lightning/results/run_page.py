"""``report.html``: a calibration on one page, made of ``report.json`` and ``config.yaml``."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from qvlm_lightning.estimate.sizes import format_bytes
from qvlm_lightning.plots import by_prefix
from qvlm_lightning.results import charts
from qvlm_lightning.results.next_steps import steps_after_fit
from qvlm_lightning.results.objectives import scores_of
from qvlm_lightning.results.pages import page
from qvlm_lightning.results.printable import printable
from qvlm_lightning.results.run_facts import clock, folder_bytes, run_facts

CLIPPED = 12
"""Sites whose distribution is drawn: those of which most is cut off."""
LAYERS = 200
"""Most layers in a figure, rows in a table and lines in a list."""


def run_page(
    root: Path, report: Mapping[str, Any], config: Mapping[str, Any], config_text: str
) -> str:
    """Return the page of a calibration; sections without data are left out.

    Args:
        root: run folder, whose paths the page names.
        report: content of ``report.json``.
        config: content of ``config.yaml``, empty if it is not there.
        config_text: the same as it is written.
    """
    sensitivity = report.get("sensitivity") or {}
    return page(
        "run.html",
        name=report["method"],
        facts=run_facts(report, folder_bytes(root / "artifact")),
        warnings=(report.get("warnings") or [])[:LAYERS],
        steps=steps_after_fit(root, config)[:-1],  # the page is open already
        merged=list(_merged(report)),
        blocks=list(_blocks(report)),
        ratios=report["activation_mode"] == "dynamic_token",
        heat=list(_heat_maps(report["percentiles"])),
        clips=list(_clips(report.get("clips") or {})),
        sqnr=list(_sqnr(report)),
        sensitivity=_sensitivity(sensitivity) if sensitivity else None,
        everything=sensitivity.get("everything"),
        course=_course(report.get("loss_fixed") or []),
        spent=_spent(report.get("spent") or {}),
        sizes=_sizes(report.get("sizes") or {}),
        massive=_massive(report.get("massive") or {}),
        ignored=list((report.get("ignored") or {}).items())[:LAYERS],
        ids=report["calibration_ids"],
        shown_ids=LAYERS,
        seed=report["seed"],
        versions=report["versions"],
        config=config_text,
    )


def _merged(report: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    for tower, edges in (report.get("dependency") or {}).items():
        blocks = report["partition"][tower]
        if edges and len(edges) < LAYERS:
            layers = sum(last - first + 1 for first, last in blocks)
            words = f"{tower}: {layers} layers in {len(blocks)} blocks"
            threshold = (report.get("threshold") or {}).get(tower)
            yield words, charts.merging(edges, threshold, blocks, words)


def _blocks(report: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    for block in report["objectives"][:LAYERS]:
        first, last = block["first"], block["last"]
        layers = str(first) if first == last else f"{first}-{last}"
        yield str(block["tower"]), layers, scores_of(block)


def _heat_maps(percentiles: Mapping[str, float]) -> Iterator[tuple[str, Markup]]:
    for prefix, sites in by_prefix(percentiles).items():
        values: dict[tuple[str, str], float] = {}
        rows: dict[str, None] = {}
        columns: dict[str, None] = {}
        for name, value in sites.items():
            layer, _, site = name.rpartition(".")
            number = layer.rpartition(".")[2]
            row = number if number.isdigit() else ""
            rows[row], columns[site] = None, None
            values[row, site] = float(value)
        words = f"Chosen percentile of every site of {prefix}"
        yield prefix, charts.heat_map(list(rows)[:LAYERS], list(columns)[:12], values, words)


def _clips(clips: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Markup]]:
    shares = {site: _share_clipped(one) for site, one in clips.items()}
    for site in sorted(shares, key=lambda s: -shares[s])[:CLIPPED]:
        words = f"{site}: distribution and kept range"
        yield site, f"{100 * shares[site]:.2g} %", charts.clipping(clips[site], words)


def _share_clipped(one: Mapping[str, Any]) -> float:
    """Return the share of a histogram's values whose interval's middle lies outside the bounds."""
    counts, start, end = one["counts"], one["from"], one["to"]
    wide = (end - start) / max(len(counts), 1)
    middles = [start + wide * (place + 0.5) for place in range(len(counts))]
    out = sum(n for n, x in zip(counts, middles, strict=True) if not one["low"] <= x <= one["high"])
    return out / max(sum(counts), 1)


def _sqnr(report: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    measured = report.get("sqnr") or {}
    decided, before = measured.get("decided") or {}, measured.get("minmax") or {}
    for tower, units in report["units"].items():
        found: list[tuple[str, float | None, float]] = []
        for number, unit in enumerate(units[:LAYERS]):
            inside = [name for name in decided if name.startswith(f"{unit}.") or name == unit]
            if inside:
                old = [before[name] for name in inside if name in before]
                new = fmean(decided[name] for name in inside)
                found.append((str(number), fmean(old) if old else None, new))
        if found:
            names, olds, news = zip(*found, strict=True)
            words = f"{tower}: signal to noise of every layer, dB, before and after"
            yield tower, charts.changes(names, olds, news, words)


def _sensitivity(measured: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    parts = [(part, nats, f"{nats:.3g} nats") for part, nats in measured["parts"].items()]
    layers = [(one["name"], one["kl"], f"{one['kl']:.3g} nats") for one in measured["layers"]]
    return [
        ("Parts", charts.bars(parts, "Divergence with one part quantized")),
        ("Layers", charts.bars(layers[:LAYERS], "Divergence with one layer quantized")),
    ]


def _course(measured: Sequence[Mapping[str, Any]]) -> Markup | None:
    if len(measured) < 2:
        return None
    names = [f"{m['epoch']} {'search' if m['after'] == 'search' else ''}" for m in measured]
    totals = [float(m["total"]) for m in measured]
    return charts.course(names, totals, "Loss over the whole calibration set")


def _spent(spent: Mapping[str, Mapping[str, float]]) -> Markup | None:
    rows = []
    for phase, figures in spent.items():
        peaks = [format_bytes(figures[k]) for k in ("host_bytes", "device_bytes") if k in figures]
        seconds = figures["seconds"]
        rows.append((f"{phase} · {' / '.join(peaks)}", seconds, clock(seconds)))
    return charts.bars(rows, "Seconds and peak memory of every phase") if rows else None


def _sizes(sizes: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, str, str]]:
    return [
        (
            part,
            format_bytes(size["full"]),
            format_bytes(size["packed"]),
            f"{size['packed'] / size['full']:.0%}" if size["full"] else "–",
        )
        for part, size in sizes.items()
    ]


def _massive(massive: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found = sorted((massive.get("sites") or {}).items(), key=lambda site: -site[1]["ratio"])
    return [
        (
            site,
            f"{one['ratio']:,.0f}",
            "image" if one.get("token") is None else repr(printable(one["token"], 40)),
            str(one["position"]),
        )
        for site, one in found[:LAYERS]
    ]
