"""Compare the proxies of the dependency with what they stand for (the paper's Figure 2)."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json, writing


@dataclass
class Options:
    """What ``qvlm dependency`` takes."""

    outlier_scale: float = 1.0
    """Of the embedded model; above 1 is a stress variant that folding its norms undoes."""
    sink_scale: float = 1.0
    """Of the embedded model; above 1 is the stress variant with a massive first token."""
    scheme: str = "w4a4"
    """Widths of the quantized pairs of layers."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Calibration sets."""
    pairs: int = 64
    """Calibration pairs for statistics and entropies."""
    search_pairs: int = 16
    """Pairs on which the discretisation error difference is measured."""
    json: Path | None = None
    """Where to write the edge values and correlations."""
    figure: Path | None = None
    """Where to draw them (PNG)."""


def main(argv: list[str]) -> int:
    """Measure every proxy on every edge of the embedded model and print Spearman correlations."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="qvlm dependency", description=main.__doc__)
    parser.add_class_arguments(Options, None)
    options = parser.instantiate_classes(parser.parse_args(argv))
    options = Options(**vars(options))
    if not options.seeds:
        raise InputError("seeds is empty; at least one calibration seed is needed")

    from qvlm_lightning.calibration.correlation import correlate, draw, measure
    from qvlm_lightning.data import TinyVQA
    from qvlm_lightning.models import Tiny
    from qvlm_lightning.quant.scheme import Scheme

    family, scheme = Tiny(options.outlier_scale, options.sink_scale), Scheme.parse(options.scheme)
    sizes: dict[str, Any] = {
        "calibration_pairs": options.pairs,
        "search_pairs": options.search_pairs,
    }
    values = [measure(family, TinyVQA(family, seed=s, **sizes), scheme) for s in options.seeds]
    table = correlate(values)
    _print(table)
    if options.json is not None:
        plain = asdict(options) | {"json": str(options.json), "figure": str(options.figure)}
        write_json(options.json, {"options": plain, "edges": values, "spearman_with_ded": table})
    if options.figure is not None:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        with writing(options.figure) as scratch:
            draw(values).savefig(scratch, dpi=120, format=options.figure.suffix[1:] or "png")
    return 0


def _print(table: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="Spearman correlation with the discretisation error difference (DED)")
    shown.add_column("proxy")
    towers = list(next(iter(table.values())))
    for tower in towers:
        shown.add_column(tower, justify="right")
    for proxy, row in table.items():
        shown.add_row(proxy, *(f"{row[tower]:+.2f}" for tower in towers))
    Console().print(shown)
