"""Percentiles searched with plain loops (eq. 2 and 3); every candidate runs the whole model."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tests.wiring.plain import LINEARS, UNITS, Batch, Plain, Range, Trace, counted, sites_of

Choice = dict[str, int]
Blocks = Mapping[str, Sequence[Sequence[int]]]


class PlainSearch:
    """State of a search: what has been chosen so far.

    Args:
        plain: the model.
        batches: search batches.
        tables: site -> range per percentile.
        count: number of percentiles.
        normalized: how outputs of sites and units are compared (docs/paper.md, A13).
    """

    def __init__(
        self,
        plain: Plain,
        batches: Sequence[Batch],
        tables: Mapping[str, list[Range]],
        count: int,
        normalized: bool = True,
    ) -> None:
        self.plain, self.batches, self.tables = plain, batches, tables
        self.count, self.normalized = count, normalized
        self.chosen: Choice = {}
        with torch.no_grad():
            self.exact = [plain.run(batch, {}) for batch in batches]

    @torch.no_grad()
    def quantized(self, more: Choice, last: str) -> list[Trace]:
        """Run every batch up to unit ``last`` with what is chosen and ``more``."""
        choice = self.chosen | more
        ranges = {site: self.tables[site][index] for site, index in choice.items()}
        return [self.plain.run(batch, ranges, last) for batch in self.batches]

    def error(self, tower: str, last: int, more: Choice) -> float:
        """Return J at the output of unit ``last`` of a tower."""
        unit = list(UNITS[tower])[last]
        numerator = denominator = 0.0
        pairs = zip(self.batches, self.exact, self.quantized(more, unit), strict=True)
        for batch, exact, trace in pairs:
            if unit in exact.outputs:
                one, other = trace.outputs[unit], exact.outputs[unit]
                if self.normalized:
                    one, other = unit_length(one), unit_length(other)
                a, b = squared_error(one, other, counted(tower, batch))
                numerator, denominator = numerator + a, denominator + b
        return numerator / denominator

    def site_errors(self, tower: str, site: str) -> list[float]:
        """Return per candidate the error of the Linear layers that read a site."""
        traces = self.quantized({}, site.rpartition(".")[0])
        errors = []
        for candidate in range(self.count):
            numerator = denominator = 0.0
            for batch, exact, trace in zip(self.batches, self.exact, traces, strict=True):
                if site not in exact.inputs:
                    continue
                for linear in LINEARS[site]:
                    with torch.no_grad():
                        target = self.plain.exact(linear, exact.inputs[site])
                        bounds = self.tables[site][candidate]
                        output = self.plain.read(linear, trace.inputs[site], bounds)
                    if self.normalized:
                        output, target = unit_length(output), unit_length(target)
                    a, b = squared_error(output, target, counted(tower, batch))
                    numerator, denominator = numerator + a, denominator + b
            errors.append(numerator / denominator)
        return errors

    def sequential(self, tower: str, first: int, last: int, per: str) -> Choice:
        """Return the sequential choice of a block; what was chosen before stays as it is."""
        before = dict(self.chosen)
        for unit in range(first, last + 1):
            sites = sites_of(tower, unit)
            if per == "layer":
                errors = [
                    self.error(tower, unit, dict.fromkeys(sites, c)) for c in range(self.count)
                ]
                self.chosen |= dict.fromkeys(sites, least(errors))
                continue
            for site in sites:
                self.chosen[site] = least(self.site_errors(tower, site))
        found = {s: i for s, i in self.chosen.items() if s not in before}
        self.chosen = before
        return found

    def joint(self, tower: str, first: int, last: int, per: str, limit: int) -> Choice:
        """Return the joint choice of a block: all combinations, or coordinate descent."""
        units = [sites_of(tower, unit) for unit in range(first, last + 1)]
        together = units if per == "layer" else [[s] for sites in units for s in sites]

        def score(choice: Choice) -> float:
            return self.error(tower, last, choice)

        if self.count ** len(together) <= limit:
            best: tuple[float, Choice] | None = None
            for indices in itertools.product(range(self.count), repeat=len(together)):
                pairs = zip(together, indices, strict=True)
                choice = {site: i for sites, i in pairs for site in sites}
                value = score(choice)
                if best is None or value < best[0]:  # the first of equals clips least
                    best = value, choice
            assert best is not None
            return best[1]
        sequential = self.sequential(tower, first, last, per)
        minmax = dict.fromkeys(sequential, 0)
        start = sequential if score(sequential) <= score(minmax) else minmax
        return descend(start, together, self.count, score)

    def run(
        self, blocks: Blocks, per: str = "site", joint: bool = False, limit: int = 155
    ) -> list[dict[str, float]]:
        """Search block after block; return J of every way to choose at the block's output."""
        objective = []
        for tower, parts in blocks.items():
            for first, last in parts:
                sequential = self.sequential(tower, first, last, per)
                values = {
                    "minmax": self.error(tower, last, dict.fromkeys(sequential, 0)),
                    "sequential": self.error(tower, last, sequential),
                }
                choice = sequential
                if joint:
                    choice = self.joint(tower, first, last, per, limit)
                    values["joint"] = self.error(tower, last, choice)
                self.chosen |= choice
                objective.append(values)
        return objective


def descend(
    choice: Choice,
    together: Sequence[Sequence[str]],
    count: int,
    score: Callable[[Choice], float],
) -> Choice:
    """Change one coordinate after another to its best value until a sweep changes nothing."""
    while True:
        before = dict(choice)
        for sites in together:
            choice = choice | dict.fromkeys(
                sites, least([score(choice | dict.fromkeys(sites, c)) for c in range(count)])
            )
        if choice == before:
            return choice


def least(errors: Sequence[float]) -> int:
    return min(range(len(errors)), key=lambda c: (errors[c], c))


def unit_length(x: Tensor) -> Tensor:
    """Bring every token to a mean square of 1, as an RMS norm does."""
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6)


def squared_error(x: Tensor, target: Tensor, mask: Tensor | None) -> tuple[float, int]:
    """Return summed squared error and number of elements, sample by sample."""
    total, number = 0.0, 0
    for row in range(x.shape[0]):
        kept = slice(None) if mask is None else [t for t, m in enumerate(mask[row]) if m]
        difference = (x[row].double() - target[row].double())[kept]
        total += float((difference * difference).sum())
        number += difference.numel()
    return total, number
