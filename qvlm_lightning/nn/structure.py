"""The quantized model seen as towers of units of sites."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.routing import Route


@dataclass
class Site:
    """Linear layers that share one input, the quantizer of that input, and for those of an expert
    which tokens it sees.
    """

    name: str
    quantizer: ActivationQuantizer
    linears: dict[str, QuantLinear]
    route: Route | None = None

    @property
    def leader(self) -> QuantLinear:
        """The linear whose input is tapped to observe this site."""
        return next(iter(self.linears.values()))


@dataclass
class Unit:
    """One layer of a tower (or the projector): what the partition groups into blocks."""

    name: str
    module: nn.Module
    sites: list[Site] = field(default_factory=list)


@dataclass
class Tower:
    """A chain of units in which tokens correspond: ``vision``, ``projector`` or ``language``."""

    name: str
    units: list[Unit]

    @property
    def sites(self) -> list[Site]:
        """All sites in forward order."""
        return [site for unit in self.units for site in unit.sites]


@dataclass
class Structure:
    """What was quantized, what was left and why."""

    towers: dict[str, Tower]
    quantized: dict[str, str]
    ignored: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        """All sites of all towers in forward order."""
        return [site for tower in self.towers.values() for site in tower.sites]

    @property
    def units(self) -> list[Unit]:
        """All units of all towers in forward order."""
        return [unit for tower in self.towers.values() for unit in tower.units]

    def enable(self, on: bool, towers: set[str] | None = None) -> None:
        """Switch the quantizers (weights and activations) of ``towers`` (default: all)."""
        for name, tower in self.towers.items():
            if towers is None or name in towers:
                for site in tower.sites:
                    site.quantizer.enabled = on
                    for linear in site.linears.values():
                        linear.enabled = on

    def enabled(self) -> dict[str, bool]:
        """Return tower -> whether its quantizers are on."""
        return {n: bool(t.sites) and t.sites[0].quantizer.enabled for n, t in self.towers.items()}

    @contextmanager
    def only(self, towers: set[str]) -> Iterator[None]:
        """Within the block exactly ``towers`` are quantized; afterwards as before."""
        before = self.enabled()
        self.enable(False)
        self.enable(True, towers)
        try:
            yield
        finally:
            for name, on in before.items():
                self.enable(on, {name})
