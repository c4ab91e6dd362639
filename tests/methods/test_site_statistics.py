"""Statistics, token weights and folds of a block against plain loops."""

import pytest
import torch

from qvlm_lightning.methods import ByKind, Decision, MinMax, Uniform
from qvlm_lightning.methods.scaling import scaled
from qvlm_lightning.methods.site_statistics import gram, inputs, mean_magnitude
from qvlm_lightning.models.family import ANSWER, PAD, PROMPT, VISION
from qvlm_lightning.quant.scheme import Scheme


def block_of(calibrator, tower="language", method=None):
    owner = calibrator.structure.towers[tower]
    method = method or MinMax()
    calibrator.structure.enable(False)
    exact, quantized = calibrator.blocks.chains(owner, method)
    calibrator.structure.enable(True, {tower})
    return calibrator.blocks.block(owner, 0, 1, exact, quantized, method)


def tokens_of(calibrator, block, site, full_precision):
    """Rows that a site's first Linear reads, caught by a hook of our own, without padding."""
    rows, on = [], calibrator.structure.enabled()
    unit = block.unit_of(site)
    for call in block.x_q:
        caught = []
        handle = site.leader.register_forward_pre_hook(lambda _, a, c=caught: c.append(a[0]))
        calibrator.structure.enable(not full_precision, {"language"})
        hidden = call.hidden
        with torch.no_grad():
            for one in block.units[: unit + 1]:
                hidden = one.module(hidden, *call.args, **call.kwargs)
        handle.remove()
        for row in range(caught[0].shape[0]):
            for token in range(caught[0].shape[1]):
                if call.mask[row, token]:
                    rows.append(caught[0][row, token].double())
    for name, was in on.items():
        calibrator.structure.enable(was, {name})
    return rows


@pytest.mark.parametrize("chain", ["quantized", "full_precision"])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_gram_and_mean_magnitude_are_sums_over_tokens(calibrated, chain, place):
    calibrator = calibrated()
    block = block_of(calibrator)
    site = block.sites[place]
    rows = tokens_of(calibrator, block, site, chain == "full_precision")
    expected = torch.zeros(site.leader.in_features, site.leader.in_features, dtype=torch.float64)
    size = torch.zeros(site.leader.in_features, dtype=torch.float64)
    for x in rows:
        expected += torch.outer(x, x)
        size += x.abs()
    torch.testing.assert_close(gram(block, site, chain=chain), expected, rtol=1e-5, atol=1e-5)
    mean = mean_magnitude(block, site, chain=chain)
    torch.testing.assert_close(mean, size / len(rows), rtol=1e-5, atol=1e-7)


def test_a_decision_reaches_the_inputs_behind_it(calibrated):
    calibrator = calibrated()
    block = block_of(calibrator)
    first, last = block.sites[0], block.sites[3]
    name = next(iter(first.linears))
    decision = Decision({f"{name}.weight": torch.zeros_like(first.leader.weight)})
    before = [seen.hidden for _, seen in inputs(block, last)]
    after = [seen.hidden for _, seen in inputs(block, last, decision)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(
        torch.equal(a, b.hidden) for a, (_, b) in zip(before, inputs(block, last), strict=True)
    )


def test_token_weights_by_kind():
    kind = torch.tensor([[VISION, PROMPT, ANSWER, PAD], [PROMPT, ANSWER, ANSWER, VISION]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, True]])
    weight = ByKind(vision=2.0, prompt=0.5, answer=3.0)(kind, mask)
    assert weight.tolist() == [[2.0, 0.5, 3.0, 0.0], [0.5, 3.0, 0.0, 2.0]]
    assert ByKind()(None, mask) is mask
    assert Uniform()(kind, mask) is mask
    with pytest.raises(Exception, match="none below 0"):
        ByKind(vision=-1.0)


def test_j_counts_each_token_by_its_weight(calibrated, toy_batches):
    calibrator = calibrated()
    weights = ByKind(vision=0.0, prompt=0.25, answer=2.0)
    block = block_of(calibrator, method=MinMax(token_weights=weights))
    numerator = denominator = 0.0
    for batch, (call, target) in enumerate(zip(block.x_q, block.targets, strict=True)):
        out = block.run(batch)
        kind = calibrator.family.token_kind(toy_batches[batch])
        for row in range(out.shape[0]):
            for token in range(out.shape[1]):
                if not call.mask[row, token]:
                    continue
                w = {VISION: 0.0, PROMPT: 0.25, ANSWER: 2.0}[int(kind[row, token])]
                a, b = (
                    x[row, token].double() / (x[row, token].double().square().mean() + 1e-6).sqrt()
                    for x in (out, target)
                )
                numerator += w * float((a - b).square().sum())
                denominator += w * out.shape[-1]
    assert block.error() == pytest.approx(numerator / denominator, rel=1e-5)
    plain = block_of(calibrated(), method=MinMax())
    assert plain.error() != pytest.approx(block.error(), rel=1e-3)


def test_equal_weights_are_no_weights(calibrated):
    one = block_of(calibrated(), method=MinMax(token_weights=ByKind()))
    other = block_of(calibrated(), method=MinMax())
    assert one.error() == pytest.approx(other.error(), rel=1e-12)


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel", "dynamic_token"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_scale_fold_changes_ranges_and_nothing_in_full_precision(calibrated, mode, place):
    calibrator = calibrated(Scheme.parse("w4a4", activation_mode=mode))
    block = block_of(calibrator)
    site = block.sites[place]
    source = block.sources[site.name]
    generator = torch.Generator().manual_seed(place)
    size = site.leader.in_features // source.repeats
    factor = torch.rand(size, generator=generator) * 3 + 0.25
    decision = scaled(block, site, factor, None)
    wide = factor[source.channels(site.leader.in_features)]
    name = next(iter(site.linears))
    pairs = zip(
        inputs(block, site, chain="full_precision"),
        inputs(block, site, decision, "full_precision"),
        strict=True,
    )
    low, high = torch.inf, -torch.inf
    for (_, before), (_, after) in pairs:
        torch.testing.assert_close(after.hidden * wide, before.hidden, rtol=1e-4, atol=1e-5)
        kept = after.hidden[after.mask]
        low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    for linear in site.linears:
        expected = site.linears[linear].weight * wide
        torch.testing.assert_close(decision.tensors[f"{linear}.weight"], expected)
    if mode == "static_tensor":
        assert float(decision.tensors[f"{name}.input_quantizer.low"]) == pytest.approx(low)
        assert float(decision.tensors[f"{name}.input_quantizer.high"]) == pytest.approx(high)
    elif mode == "dynamic_token":
        assert not any("input_quantizer" in n for n in decision.tensors)
    assert block.error(decision) > 0
