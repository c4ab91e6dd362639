"""The quantized model seen as towers of units of sites."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.changes import Changes
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.online_transform import OnlineTransform
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.routing import Route
from qvlm_lightning.nn.sinks import SinkTokens


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

    @property
    def transform(self) -> OnlineTransform | None:
        """What its input goes through in front of the quantizer."""
        return self.leader.input_transform

    def put_transform(self, left: Tensor, right: Tensor) -> OnlineTransform:
        """Put a transform in front of the Linear layers; their weights are left as they are.

        Everything that looks at the input of the layers, or of their quantizer, sees the
        transformed one. The first layer registers it, so that a state dict holds it once.

        Args:
            left: [a, a].
            right: [b, b]; a * b is the number of the layers' inputs.

        Raises:
            ValueError: they do not, or the site has a transform.
        """
        leader = self.leader
        if leader.input_transform is not None:
            raise ValueError(f"{self.name} has a transform already")
        if len(left) * len(right) != leader.in_features:
            raise ValueError(
                f"a transform of {len(left)} x {len(right)} for the {leader.in_features} inputs "
                f"of {self.name}"
            )
        transform = OnlineTransform(left, right, len(self.linears))
        leader.input_transform = transform.to(self.quantizer.low.device)
        for linear in self.linears.values():
            linear.register_forward_pre_hook(transform.before)
        return transform

    def forget_inputs(self) -> None:
        """Let the transformed and the quantized input go that are kept for the next layer."""
        self.quantizer.forget()
        if self.leader.input_transform is not None:
            self.leader.input_transform.forget()


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
    """What was quantized, what was left and why, what methods changed beside quantizers, which
    tokens of the decoder are sinks, and which parameters the model's folder holds in a narrower
    type than the model.
    """

    towers: dict[str, Tower]
    quantized: dict[str, str]
    ignored: dict[str, str]
    notes: list[str] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    sinks: SinkTokens | None = None
    stored: dict[str, torch.dtype] = field(default_factory=dict)

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
                self.changes.switch(name, on)
                for unit in tower.units:
                    _switch(unit, on)

    def keep_only_quantized(self) -> None:
        """Let full-precision weights go (:meth:`QuantLinear.keep_only_quantized`)."""
        for site in self.sites:
            for linear in site.linears.values():
                linear.keep_only_quantized()

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

    @contextmanager
    def only_units(self, names: Collection[str]) -> Iterator[None]:
        """Within the block exactly the units of these names are quantized; afterwards as before.

        What methods changed outside of units belongs to a tower of which no unit is missing.
        """
        whole = {
            tower.name
            for tower in self.towers.values()
            if tower.sites and all(u.name in names for u in tower.units if u.sites)
        }
        before = [bool(unit.sites) and unit.sites[0].quantizer.enabled for unit in self.units]
        for unit in self.units:
            _switch(unit, unit.name in names)
        try:
            with self.changes.only(names, whole):
                yield
        finally:
            for unit, on in zip(self.units, before, strict=True):
                _switch(unit, on)


def _switch(unit: Unit, on: bool) -> None:
    """Switch the quantizers of a unit."""
    for site in unit.sites:
        site.quantizer.enabled = on
        for linear in site.linears.values():
            linear.enabled = on
