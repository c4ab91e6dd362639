"""The tensors of a block's layers by their full names, as decisions leave them."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn

from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.nn.changes import as_stored
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.structure import Site, Unit
from qvlm_lightning.quant.weights import weight_ranges


class BlockTensors:
    """Names and tensors of a :class:`~qvlm_lightning.methods.block.Block`.

    Attributes:
        units: consecutive units of one tower.
        given: what earlier steps have decided; it lies under every decision.
        stored: types in which changed weights will be stored (``Structure.stored``).
        rounded: name -> what :meth:`decided` rounded last, its version, and what came out.
    """

    units: list[Unit]
    given: Decision
    stored: Mapping[str, torch.dtype]
    rounded: dict[str, tuple[Tensor, int, Tensor]]

    @property
    def sites(self) -> list[Site]:
        """All sites in forward order."""
        return [site for unit in self.units for site in unit.sites]

    def decided(self, decision: Decision | None) -> Mapping[str, Tensor]:
        """Return what is in place under a decision: its tensors over those that are given, each
        rounded to the type in which it will be stored.
        """
        tensors = self.given.tensors if decision is None else self.given.tensors | decision.tensors
        return {n: self._as_stored(n, x) if n in self.stored else x for n, x in tensors.items()}

    def _as_stored(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor as :func:`as_stored` rounds it: the very same one as long as the value
        is, so that what layers keep of it stays good.
        """
        if value.requires_grad or value.is_inference():
            return as_stored({name: value}, self.stored)[name]
        known = self.rounded.get(name)
        if known is None or known[0] is not value or known[1] != value._version:
            known = value, value._version, as_stored({name: value}, self.stored)[name]
            self.rounded[name] = known
        return known[2]

    def tensor(self, name: str, decision: Decision | None = None) -> Tensor:
        """Return a tensor of a layer by its full name, as ``decision`` leaves it.

        The range of a weight that nobody has decided is the one measured from the weight.

        Raises:
            KeyError: no layer of the block has such a tensor.
        """
        decided = self.decided(decision)
        if name in decided:
            return decided[name]
        path, _, own = name.rpartition(".")
        value = getattr(self.module(path), own, None)
        if value is None and path.endswith(".weight_quantizer"):
            linear = path.removesuffix(".weight_quantizer")
            quantizer, weight = self.linear(linear).weight_quantizer, f"{linear}.weight"
            low, high = weight_ranges(
                self.tensor(weight, decision), quantizer.group_size, quantizer.symmetric
            )
            value = {"low": low, "high": high}.get(own)
        if value is None:
            raise KeyError(f"the block has no tensor {name}")
        return value

    def module(self, name: str) -> nn.Module:
        """Return a module of the block by its full name."""
        for unit in self.units:
            if name == unit.name or name.startswith(f"{unit.name}."):
                return unit.module.get_submodule(name.removeprefix(unit.name).lstrip("."))
        raise KeyError(f"the block has no module {name}")

    def linear(self, name: str) -> QuantLinear:
        """Return a quantized Linear layer of the block by its full name."""
        return next(site.linears[name] for site in self.sites if name in site.linears)

    def unit_of(self, site: Site) -> int:
        """Return the place of the unit that a site belongs to."""
        return next(i for i, unit in enumerate(self.units) if site in unit.sites)

    def place(self, site: Site) -> str:
        """Return the full name of the module at whose output the layers of a site are judged: of a
        single layer itself, of several the module that holds them.

        That is the layer's self-attention for queries, keys and values, its MLP for gate and up,
        and of an expert the whole mixture.
        """
        return place_of(site)

    def decide_weight(self, name: str, weight: Tensor, low: Tensor, high: Tensor) -> Decision:
        """Return the decision for the weight of a Linear layer and its range.

        Args:
            name: full name of the layer.
            weight: [O, I].
            low: [O, G, 1], lower bounds; G = 1 without groups.
            high: upper bounds.
        """
        ratio = torch.ones_like(self.linear(name).weight_quantizer.clip_ratio)
        ranges = {"low": low, "high": high, "clip_ratio": ratio}
        tensors = {f"{name}.weight_quantizer.{own}": x for own, x in ranges.items()}
        return Decision({f"{name}.weight": weight, **tensors})


def common_module(names: Sequence[str]) -> str:
    """Return the full name of the module that holds all of several modules; of one itself.

    Example:
        >>> common_module(["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"])
        'layers.0.self_attn'
    """
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        return names[0]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return ".".join(level[0] for level in shared)


def place_of(site: Site) -> str:
    """Return :meth:`BlockTensors.place`."""
    if site.route is not None:
        return site.route.layer.rpartition(".")[0]
    return common_module(list(site.linears))
