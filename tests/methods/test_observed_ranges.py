"""Ranges observed in the quantized chain, against loops over captured inputs."""

from dataclasses import replace

import pytest
import torch

from qvlm_lightning.methods import Decision, ObservedRanges, SmoothQuant
from qvlm_lightning.methods.site_statistics import inputs
from qvlm_lightning.quant.primitives import fake_quantize, fake_quantize_symmetric
from qvlm_lightning.quant.scheme import Scheme

GRID = [1.0, 0.99, 0.95, 0.9]


def block_of(calibrator, method, given=None):
    tower = calibrator.structure.towers["language"]
    exact, quantized = calibrator.blocks.chains(tower, method)
    block = calibrator.blocks.block(tower, 0, 0, exact, quantized, method)
    return replace(block, given=given or Decision())


def rows_of(block, site, decision):
    """Every token that counts of a site's input in the quantized chain, [N, D]."""
    kept = []
    for _, seen in inputs(block, site, decision):
        hidden = seen.hidden
        kept.append(hidden[seen.mask] if seen.mask is not None else hidden.flatten(0, 1))
    return torch.cat(kept)


@pytest.mark.parametrize("mode", ["static_tensor", "dynamic_token"])
def test_every_range_has_the_least_error_of_its_candidates(mode, calibrated):
    calibrator = calibrated(Scheme.parse("w4a4", activation_mode=mode))
    method = ObservedRanges(percentiles=GRID, clip_ratios=GRID)
    with calibrator.structure.only({"language"}):
        block = block_of(calibrator, method)
        found = method.solve(block)
        earlier = Decision()
        for site in block.sites:
            name = f"{next(iter(site.linears))}.input_quantizer"
            x = rows_of(block, site, earlier)
            errors, bounds = [], []
            for share in GRID:
                if mode == "dynamic_token":
                    top = x.abs().amax(-1, keepdim=True) * share
                    y, low, high = fake_quantize_symmetric(x, top, 4), -share, share
                else:
                    low, high = torch.quantile(x.flatten(), torch.tensor([1 - share, share]))
                    y = fake_quantize(x, low, high, 4)
                errors.append(float((y - x).double().square().sum()))
                bounds.append((float(low), float(high)))
            own = tuple(float(found.tensors[f"{name}.{bound}"]) for bound in ("low", "high"))
            best = bounds[errors.index(min(errors))]
            assert own == pytest.approx(best, rel=1e-4, abs=1e-6), site.name
            mine = {n: t for n, t in found.tensors.items() if n.startswith(name)}
            earlier = Decision(earlier.tensors | mine)
        assert found.scores["observed_mse"] == block.error(found)
        assert found.scores["given"] == block.error()


def test_inputs_behind_a_fold_are_what_is_observed(calibrated):
    """A range of the model as it was measured would be that of other numbers."""
    calibrator = calibrated(Scheme.parse("w4a4", activation_mode="static_tensor"))
    method = ObservedRanges(percentiles=[1.0])
    with calibrator.structure.only({"language"}):
        folded = SmoothQuant().solve(block_of(calibrator, method))
        block = block_of(calibrator, method, Decision(folded.tensors))
        found = method.solve(block)
        site = block.sites[0]
        name = f"{next(iter(site.linears))}.input_quantizer"
        x = rows_of(block, site, None)
        assert float(found.tensors[f"{name}.high"]) == pytest.approx(float(x.max()), rel=1e-6)
        assert float(found.tensors[f"{name}.low"]) == pytest.approx(float(x.min()), rel=1e-6)
        plain = method.solve(block_of(calibrator, method))
        assert float(plain.tensors[f"{name}.high"]) != float(found.tensors[f"{name}.high"])
