"""Statistics of several sites from one pass, and chains of decisions, against plain loops."""

import pytest
import torch

from qvlm_lightning.methods import ByKind, Decision, LeastSquares, MinMax, SequentialSearch
from qvlm_lightning.methods.block_tensors import common_module
from qvlm_lightning.methods.scaling import scaled
from qvlm_lightning.methods.site_statistics import collect, inputs, stages
from qvlm_lightning.models.family import ANSWER, PROMPT, VISION
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.experts.conftest import calibrator  # noqa: F401
from tests.methods.test_site_statistics import block_of


def kept_rows(block, seen, batch):
    """Row and token of every token that counts, for one site's input."""
    hidden = seen.hidden
    for row in range(hidden.shape[0]):
        for token in range(hidden.shape[1]):
            if seen.mask is None or seen.mask[row, token]:
                yield row, token


@pytest.mark.parametrize("place", [0, 3])
def test_token_weights_count_in_every_statistic(calibrated, toy_batches, place):
    share = {VISION: 0.5, PROMPT: 0.0, ANSWER: 3.0}
    weights = ByKind(vision=0.5, prompt=0.0, answer=3.0)
    started = calibrated()
    block = block_of(started, method=MinMax(token_weights=weights))
    site = block.sites[place]
    width = site.leader.in_features
    gram, cross = torch.zeros(2, width, width, dtype=torch.float64)
    size, total, tokens = torch.zeros(width, dtype=torch.float64), 0.0, 0
    exact = [seen for _, seen in inputs(block, site, chain="full_precision")]
    for batch, seen in inputs(block, site):
        kind = started.family.token_kind(toy_batches[batch])
        for row, token in kept_rows(block, seen, batch):
            weight = share[int(kind[row, token])]
            x = seen.hidden[row, token].double()
            more = exact[batch].hidden[row, token].double() - x
            gram += weight * torch.outer(x, x)
            cross += weight * torch.outer(more, x)
            size += weight * x.abs()
            total, tokens = total + weight, tokens + (weight > 0)
    found = collect(block, [site], ("gram", "cross", "magnitude"))[site.name]
    torch.testing.assert_close(found.gram, gram, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cross, cross, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.magnitude, size, rtol=1e-5, atol=1e-5)
    assert found.weight == pytest.approx(total)
    assert found.tokens == tokens


def test_behind_the_quantizer_is_what_the_layers_read(calibrated):
    block = block_of(calibrated(Scheme.parse("w4a3")))
    site = block.sites[1]
    for (_, before), (_, behind) in zip(
        inputs(block, site), inputs(block, site, read=True), strict=True
    ):
        assert torch.equal(site.quantizer(before.hidden), behind.hidden)
        assert not torch.equal(before.hidden, behind.hidden)
    for (_, before), (_, behind) in zip(
        inputs(block, site, chain="full_precision"),
        inputs(block, site, chain="full_precision", read=True),
        strict=True,
    ):
        assert torch.equal(before.hidden, behind.hidden)


def test_large_gram_matrices_are_added_in_pieces(calibrated, monkeypatch):
    from qvlm_lightning.methods import site_statistics

    block = block_of(calibrated())
    site = block.sites[3]
    whole = collect(block, [site], ("gram",))[site.name].gram
    monkeypatch.setattr(site_statistics, "ROWS_AT_ONCE", 7)
    pieces = collect(block, [site], ("gram",))[site.name].gram
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def test_experts_at_the_same_place_are_one_stage(calibrator):  # noqa: F811
    made = calibrator("mixtral", count=1)
    made.structure.enable(True)
    block = block_of(made)
    found = [[site.name.rpartition("layers.")[2] for site in stage] for stage in stages(block)]
    flat = [name for stage in found for name in stage]
    assert sorted(flat) == sorted(site.name.rpartition("layers.")[2] for site in block.sites)
    routed = [stage for stage in found if len(stage) > 1]
    assert [len(stage) for stage in routed] == [4] * 4
    for stage in routed:
        assert len({name.rpartition(".")[2] for name in stage}) == 1
    firsts = [stage[0].rpartition(".")[2] for stage in found]
    assert firsts.index("mlp_in") < firsts.index("down_in")
    together = collect(block, stages(block)[2], ("gram",))
    for site in stages(block)[2]:
        alone = collect(block, [site], ("gram",))[site.name]
        assert torch.equal(alone.gram, together[site.name].gram)
        assert alone.tokens == together[site.name].tokens


def test_a_place_is_the_module_that_holds_the_layers(calibrated):
    block = block_of(calibrated())
    places = [block.place(site).rpartition("layers.0.")[2] for site in block.units[0].sites]
    assert places == ["self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"]
    assert common_module(["a.bc.d", "a.b.d"]) == "a"


@pytest.mark.parametrize("method", [SequentialSearch(), SequentialSearch(per="layer"), MinMax()])
def test_what_is_given_lies_under_every_decision(calibrated, method):
    """A fold that is given changes inputs, tables keep their place: dynamic ranges are ratios."""
    scheme = Scheme.parse("w4a3", activation_mode="dynamic_token")
    started = calibrated(scheme)
    block = block_of(started, method=method)
    site = block.sites[0]
    factor = torch.linspace(0.2, 5.0, site.leader.in_features)
    fold = scaled(block, site, factor)
    plain = block.error(fold)
    assert plain != block.error()
    block.given = fold
    assert block.error() == plain
    assert block.error(Decision()) == plain
    assert torch.equal(block.tensor(f"{next(iter(site.linears))}.weight"),
                       fold.tensors[f"{next(iter(site.linears))}.weight"])  # fmt: skip
    minmax = method.solve(block).scores["minmax"]
    assert minmax == pytest.approx(plain, rel=1e-6)  # stacked candidates round differently
    block.given = Decision()
    other = method.solve(block).scores["minmax"]
    assert other != pytest.approx(plain, rel=1e-3)


def test_site_errors_are_those_of_the_given_weights(calibrated):
    """A search behind a decided weight judges sites with that weight."""
    started = calibrated(Scheme.parse("w4a3", activation_mode="dynamic_token"))
    search = SequentialSearch(clip_ratios=[1.0, 0.7, 0.5])
    block = block_of(started, method=search)
    site = block.sites[0]
    fold = scaled(block, site, torch.linspace(0.05, 20.0, site.leader.in_features))
    block.given = fold
    chosen = search.choose(block)
    low, high = block.tables[0][0]
    errors = []
    for ratio in range(3):
        total = 0.0
        for (_, quantized), (_, exact) in zip(
            inputs(block, site), inputs(block, site, chain="full_precision"), strict=True
        ):
            with site.quantizer.candidates(low[ratio][None], high[ratio][None]):
                x = site.quantizer(quantized.hidden)
            for name, linear in site.linears.items():
                weight = fold.tensors[f"{name}.weight"]
                y = torch.nn.functional.linear(x, linear.weight_quantizer(weight))
                target = torch.nn.functional.linear(exact.hidden, weight)
                y, target = (
                    v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() for v in (y, target)
                )
                total += float((y - target)[exact.mask].double().square().sum())
        errors.append(total)
    assert int(chosen[0]) == errors.index(min(errors))


def test_least_squares_looks_at_the_given_inputs(calibrated):
    started = calibrated(Scheme.parse("w4a4", activation_mode="dynamic_token"))
    block = block_of(started, method=LeastSquares())
    site = block.sites[0]
    block.given = scaled(block, site, torch.linspace(0.05, 20.0, site.leader.in_features))
    given, seen = block.given, LeastSquares._errors(block)[0]
    block.given = Decision()
    assert not torch.allclose(seen, LeastSquares._errors(block)[0], rtol=1e-3)
    assert given.tensors
