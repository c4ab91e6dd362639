"""A model with widths of single layers, beside plain loops."""

import re

import torch
from torch import Tensor

from qvlm_lightning.methods import SequentialSearch
from qvlm_lightning.methods.grid import percentile_grid
from qvlm_lightning.quant.scheme import Scheme
from tests.wiring.plain import LINEARS, SITE, TOWERS, UNITS, Plain, tables
from tests.wiring.searching import PlainSearch

OVERRIDES = {
    r"layers\.(0|2)\.mlp\.(down_proj|fc2)": {"activation_bits": 8},
    "v_proj": {"weight_bits": 8},
    r"language_model\.layers\.1\.self_attn\.o_proj": {"activation_bits": 16, "weight_bits": 3},
    r"language_model.layers.2.mlp.down_proj": {"activation_bits": 6},
}


def bits_of(name: str, key: str) -> int:
    found = 4
    for pattern, widths in OVERRIDES.items():
        if re.search(pattern, name) and key in widths:
            found = widths[key]
    return found


def rounded(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Quantize to some bits and back; the formula of docs/paper.md (A11)."""
    if bits == 16:
        return x
    low, high = torch.clamp(low, max=0), torch.clamp(high, min=0)
    scale = torch.maximum((high - low) / (2**bits - 1), 1e-6 * torch.maximum(-low, high))
    zero_point = torch.round(-low / scale)
    codes = (torch.round(x.to(scale.dtype) / scale) + zero_point).clamp(0, 2**bits - 1)
    return ((codes - zero_point) * scale).to(x.dtype)


class Overridden(Plain):
    """The plain model with the widths of ``OVERRIDES``."""

    def __init__(self, model):
        super().__init__(model)
        for name, linear in self.linear.items():
            bits = bits_of(name, "weight_bits")
            rows = [rounded(row, row.min(), row.max(), bits) for row in linear.weight]
            self.weights[name] = torch.stack(rows)

    def activation(self, site, x, bounds):
        return rounded(x, *bounds, bits_of(LINEARS[site][0], "activation_bits"))


def test_logits_are_those_of_plain_loops(calibrated, plain, toy_batches):
    made = calibrated(scheme=Scheme.parse("w4a4", overrides=OVERRIDES))
    reference = Overridden(plain().model)
    ranges = {site: found[0] for site, found in tables(plain(), toy_batches, [1.0]).items()}
    made.structure.enable(True)
    for batch in toy_batches:
        names = ("input_ids", "attention_mask", "pixel_values")
        inputs = {n: batch[n] for n in names if n in batch}
        with torch.no_grad():
            wanted = reference.run(batch, ranges).logits
            found = made.model(**inputs, use_cache=False).logits
        assert torch.allclose(found, wanted, atol=1e-9)
    assert len({bits_of(n, "activation_bits") for n in SITE}) == 4, "all of them occur"


def test_a_search_is_that_of_plain_loops(calibrated, plain, toy_batches):
    """Of a site at 16 bits no range is better than another."""
    grid = percentile_grid(1.0, 0.9, 0.0125)
    made = calibrated(scheme=Scheme.parse("w4a4", overrides=OVERRIDES))
    made.search(TOWERS, SequentialSearch(grid), "first")
    ranges = tables(plain(), toy_batches, grid)
    search = PlainSearch(Overridden(plain().model), toy_batches[:2], ranges, len(grid))
    search.run({tower: [[i, i] for i in range(len(units))] for tower, units in UNITS.items()})
    off = [s.name for s in made.structure.sites if s.quantizer.num_bits == 16]
    assert off == ["model.language_model.layers.1.o_in"]
    wanted = {site: grid[i] for site, i in search.chosen.items() if site not in off}
    assert {s: p for s, p in made.state.percentiles.items() if s not in off} == wanted
    assert len(set(wanted.values())) > 2
