"""Experts that the calibration set hardly reaches take over the range of their layer."""

from qvlm_lightning.nn.structure import Site, Structure, Tower, Unit
from qvlm_lightning.quant.observers import RangeObserver

FEW_TOKENS = 128
"""An expert that fewer calibration tokens reach has no statistics of its own: at p = 0.98, the
smallest percentile of the paper, a tail of so few tokens holds two of them."""


def fill_from_layer(
    structure: Structure | Tower | Unit, observers: dict[str, RangeObserver]
) -> list[str]:
    """Replace the observers of experts that saw fewer than ``FEW_TOKENS`` tokens by one of all
    experts of their layer together, and say so.

    Args:
        structure: names the sites of experts.
        observers: site name -> complete observer; changed in place.

    Returns:
        One note per expert.
    """
    layers: dict[tuple[str, str], list[Site]] = {}
    for site in structure.sites:
        if site.route is not None:
            layers.setdefault((site.route.layer, site.route.role), []).append(site)
    notes: dict[str, str] = {}
    for (layer, _), sites in layers.items():
        whole: RangeObserver | None = None
        parts = [observers[site.name] for site in sites]
        for site, part in zip(sites, parts, strict=True):
            if part.tokens < FEW_TOKENS:
                whole = whole or RangeObserver.pooled(parts)
                observers[site.name] = whole
                assert site.route is not None
                name = f"{layer}.{site.route.index}"
                notes[name] = (
                    f"{name}: saw {part.tokens} calibration tokens, fewer than {FEW_TOKENS}; its "
                    "ranges are those of all experts of the layer"
                )
    return list(notes.values())
