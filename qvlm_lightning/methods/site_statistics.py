"""Statistics of the inputs of single sites, as methods that change weights need them.

Shapes: N tokens that count, D channels. Sums over the tokens of a batch are float32, over batches
float64: there they are exact as good as always, and do not depend on who has added what first.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.nn.distributed import all_sum
from qvlm_lightning.nn.replay import run_full_precision, run_unit
from qvlm_lightning.nn.site_input import SiteInput, site_inputs
from qvlm_lightning.nn.structure import Site

Chain = Literal["quantized", "full_precision"]

ROWS_AT_ONCE = 4096
"""Rows of a Gram matrix computed together; all of 18,944 channels would be 1.4 GB in float32."""


@dataclass
class SiteStatistics:
    """Sums over the tokens of a site's input, over all batches and processes.

    Attributes:
        gram: ``sum_t w_t x_t x_t^T``, [D, D] float64.
        cross: ``sum_t w_t (x_t^fp - x_t) x_t^T``, [D, D] float64: what the full-precision chain has
            more, against the input itself.
        magnitude: ``sum_t w_t |x_t|``, [D] float64.
        weight: ``sum_t w_t``.
        tokens: number of tokens that count.
    """

    gram: Tensor | None = None
    cross: Tensor | None = None
    magnitude: Tensor | None = None
    weight: float = 0.0
    tokens: int = 0

    def update(self, rows_ND: Tensor, weight_N: Tensor | None, more_ND: Tensor | None) -> None:
        """Add the tokens of a batch.

        Args:
            rows_ND: inputs.
            weight_N: how much each counts; ``None`` for 1.
            more_ND: full-precision inputs less inputs, for ``cross``.
        """
        rows = rows_ND.float()
        weighted = rows if weight_N is None else rows * weight_N.float()[:, None]
        if self.gram is not None:
            _add_product(self.gram, weighted, rows)
        if self.cross is not None:
            assert more_ND is not None, "both chains are needed"
            _add_product(self.cross, more_ND.float(), weighted)
        if self.magnitude is not None:
            self.magnitude += weighted.abs().sum(dim=0)
        self.weight += float(len(rows) if weight_N is None else weight_N.double().sum())
        self.tokens += len(rows)

    def reduced(self) -> "SiteStatistics":
        """Return the sums over all processes."""
        counts = all_sum(torch.tensor([self.weight, self.tokens], dtype=torch.float64)).tolist()
        found = SiteStatistics(weight=counts[0], tokens=int(counts[1]))
        if self.gram is not None:
            gram = all_sum(self.gram)
            found.gram = (gram + gram.T) / 2  # a product of matrices need not be symmetric
        found.cross = None if self.cross is None else all_sum(self.cross)
        found.magnitude = None if self.magnitude is None else all_sum(self.magnitude)
        return found


def _add_product(total_DD: Tensor, left_ND: Tensor, right_ND: Tensor) -> None:
    """Add ``left^T right``, some rows at a time."""
    for first in range(0, len(total_DD), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        total_DD[some] += left_ND[:, some].T @ right_ND


def stages(block: Block) -> list[list[Site]]:
    """Return the sites of a block in forward order; those of the experts of a layer that stand at
    the same place in them come together, as no one feeds the other.
    """
    found: dict[tuple[str, str], list[Site]] = {}
    for site in block.sites:
        key = (site.name, "") if site.route is None else (site.route.layer, site.route.role)
        found.setdefault(key, []).append(site)
    return list(found.values())


@torch.no_grad()
def inputs_of(
    block: Block,
    sites: Sequence[Site],
    decision: Decision | None = None,
    chain: Chain = "quantized",
    read: bool = False,
) -> Iterator[tuple[int, dict[str, SiteInput]]]:
    """Yield number and inputs, by site, of every batch that is this process's.

    Args:
        block: with its cached inputs.
        sites: of one of its units.
        decision: what the layers up to the sites are like.
        chain: in which chain.
        read: as the Linear layers read them, behind the site's quantizer; before it otherwise.
    """
    place = block.unit_of(sites[0])
    unit, tensors = block.units[place], block.decided(decision)
    for batch in block.mine():
        if chain == "quantized":
            call = block.x_q[batch]
            hidden = block.run(batch, decision, slice(0, place))
        else:
            call = block.x_fp[batch]
            hidden = call.hidden
            for earlier in block.units[:place]:
                hidden = run_full_precision(earlier, hidden, call, tensors)
        with site_inputs(sites, hidden, call.mask, quantized=read, stop=True) as seen:
            if chain == "quantized":
                run_unit(unit, hidden, call, tensors=tensors)
            else:
                run_full_precision(unit, hidden, call, tensors)
        block.cost.count(layers=1)
        yield batch, seen


def inputs(
    block: Block,
    site: Site,
    decision: Decision | None = None,
    chain: Chain = "quantized",
    read: bool = False,
) -> Iterator[tuple[int, SiteInput]]:
    """Yield number and input of one site in every batch that is this process's (see
    :func:`inputs_of`).
    """
    for batch, seen in inputs_of(block, [site], decision, chain, read):
        yield batch, seen[site.name]


@torch.no_grad()
def collect(
    block: Block,
    sites: Sequence[Site],
    want: Collection[str],
    decision: Decision | None = None,
    chain: Chain = "quantized",
    read: bool = False,
    weighted: bool = True,
) -> dict[str, SiteStatistics]:
    """Return statistics of several sites of a unit from one pass, by site.

    Args:
        block: with its cached inputs; its token weights count.
        sites: see :func:`inputs_of`, as are ``decision``, ``chain`` and ``read``.
        want: names of statistics: ``gram``, ``cross``, ``magnitude``. ``cross`` runs the
            full-precision chain as well.
        decision: of the quantized chain; the full-precision one has what is given.
        chain: in which chain.
        read: behind the quantizer.
        weighted: whether token weights count; otherwise every token counts 1.
    """
    found = {site.name: _empty(site, want) for site in sites}
    exact = inputs_of(block, sites, None, "full_precision") if "cross" in want else None
    for batch, seen in inputs_of(block, sites, decision, chain, read):
        other = None if exact is None else next(exact)[1]
        for site in sites:
            own, full = seen[site.name], None if other is None else other[site.name]
            mask = own.mask if full is None else own.shared_mask(full)
            weight = block.weight(batch, mask, block.place(site)) if weighted else mask
            more = None if full is None else full.hidden.float() - own.hidden.float()
            rows, kept, more = _rows(own.hidden, weight, more)
            found[site.name].update(rows, kept, more)
    return {name: sums.reduced() for name, sums in found.items()}


def gram(
    block: Block, site: Site, decision: Decision | None = None, chain: Chain = "quantized"
) -> Tensor:
    """Return ``sum_t w_t x_t x_t^T`` of a site's inputs, [D, D] float64 (see :func:`collect`)."""
    found = collect(block, [site], ("gram",), decision, chain)[site.name].gram
    assert found is not None
    return found


def mean_magnitude(
    block: Block, site: Site, decision: Decision | None = None, chain: Chain = "quantized"
) -> Tensor:
    """Return the weighted mean of each input channel's magnitude, [D] float64 (see
    :func:`collect`).
    """
    sums = collect(block, [site], ("magnitude",), decision, chain)[site.name]
    assert sums.magnitude is not None
    return sums.magnitude / max(sums.weight, torch.finfo(torch.float64).tiny)


def _empty(site: Site, want: Collection[str]) -> SiteStatistics:
    """Return sums over nothing."""
    width = site.leader.in_features
    shapes = {"gram": (width, width), "cross": (width, width), "magnitude": (width,)}
    device = site.leader.weight.device
    sums = SiteStatistics()
    for name in want:
        setattr(sums, name, torch.zeros(shapes[name], dtype=torch.float64, device=device))
    return sums


def _rows(
    hidden: Tensor, weight: Tensor | None, more: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the tokens that count, [N, D], their weights, [N], and what belongs to them."""
    if weight is None:
        flat = None if more is None else more.reshape(-1, more.shape[-1])
        return hidden.reshape(-1, hidden.shape[-1]), None, flat
    kept = weight != 0
    return hidden[kept], weight[kept], None if more is None else more[kept]
