"""Ranges of activations as they are behind folds and transforms."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.range_rules import LeastSquares
from qvlm_lightning.methods.site_statistics import inputs_of, stages
from qvlm_lightning.nn.distributed import all_sum, gather_objects
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.quant.observers import Granularity, RangeObserver
from qvlm_lightning.quant.scheme import OFF

_GRANULARITY: dict[int, Granularity] = {0: "tensor", 1: "channel", 2: "position"}


class ObservedRanges(LeastSquares):
    """Range of the least squared error of the inputs that the quantized chain gives, site by site.

    :class:`LeastSquares` knows the percentiles of the model as it was measured. Behind a step that
    folds or transforms activations these are others: here they are observed where they are needed,
    every site behind the quantized ones before it.

    Args:
        percentiles: candidates of static ranges; see ``SequentialSearch``.
        clip_ratios: candidates in ``dynamic_token`` mode.
        objective: see :class:`Method`; decides nothing here but the J that is reported.
        token_weights: see there.
    """

    name = "observed_mse"
    uses_tables = False
    pairs = "all"

    def candidates(self, activation_mode: str) -> list[float]:
        """Return one: percentiles are taken from what is observed."""
        return [1.0]

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return the ranges, and J at the block's output for them and for those that are given."""
        decision = Decision()
        for stage in stages(block):
            sites = [site for site in stage if site.quantizer.num_bits < OFF]
            if sites:
                decision |= self._decided(block, sites, decision)
        given, own = block.errors([None, decision]).tolist()
        return decision | Decision(scores={"given": given, self.name: own})

    def _decided(self, block: Block, sites: Sequence[Site], decision: Decision) -> Decision:
        """Return the ranges of sites at the same place of a layer."""
        tables = self._tables(block, sites, decision)
        errors = {s.name: torch.zeros(len(tables[s.name][0]), dtype=torch.float64) for s in sites}
        for batch, seen in inputs_of(block, sites, decision):
            with block.x_q[batch].sinks_placed(spread=True):
                for site in sites:
                    own = seen[site.name]
                    weight = block.weight(batch, own.mask, block.place(site))
                    for index, (low, high) in enumerate(zip(*tables[site.name], strict=True)):
                        with site.quantizer.candidates(low[None], high[None]):
                            square = (site.quantizer(own.hidden) - own.hidden).double().square()
                        error = square.sum(-1) if weight is None else square.sum(-1) * weight
                        errors[site.name][index] += float(error.sum())
        found = Decision()
        for site in sites:
            best = int(all_sum(errors[site.name]).argmin())
            name = f"{next(iter(site.linears))}.input_quantizer"
            ratio = torch.ones_like(site.quantizer.low)
            for own_name, table in zip(("low", "high"), tables[site.name], strict=True):
                bound = table[best].to(ratio).expand_as(ratio).clone()
                found.tensors |= {f"{name}.{own_name}": bound}
                found.tensors |= {f"{name}.{own_name}_ratio": ratio.clone()}
        return found

    def _tables(
        self, block: Block, sites: Sequence[Site], decision: Decision
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the candidates of every site: low and high, [P, *shape]."""
        device = sites[0].quantizer.low.device
        if sites[0].quantizer.mode == "dynamic_token":
            ratio = torch.tensor(self.clip_ratios, dtype=torch.float32, device=device)
            return {site.name: (-ratio, ratio) for site in sites}
        size = max(call.hidden.shape[0] for call in block.x_q)
        observers = {
            site.name: RangeObserver(
                _GRANULARITY[site.quantizer.low.dim()], expected_samples=size * len(block.x_q)
            )
            for site in sites
        }
        for batch, seen in inputs_of(block, sites, decision):
            for name, own in seen.items():
                hidden, mask = own.hidden, own.mask
                if hidden.dim() == 2:  # patches without a batch dimension are one sample
                    hidden, mask = hidden[None], None if mask is None else mask[None]
                rows = range(batch * size, batch * size + len(hidden))
                observers[name].update(hidden, mask, list(rows))
        states = gather_objects({name: one.state() for name, one in observers.items()})
        tables = {}
        for name in observers:
            merged = RangeObserver.from_state(states[0][name])
            for other in states[1:]:
                merged.merge(RangeObserver.from_state(other[name]))
            tables[name] = merged.ranges(self.percentiles, device)
        return tables
