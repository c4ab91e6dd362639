"""Channels that share a range with channels like them."""

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import AESPA, GPTQ, RPTQ, Chain, LearnedTransforms, SmoothQuant
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.methods.test_changing_weights import TOWERS, same, weights
from tests.methods.test_site_statistics import block_of

CHANNEL = Scheme.parse("w4a4", activation_mode="static_channel")


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_a_range_holds_all_of_its_cluster_and_no_more(calibrated, tower):
    """Per channel in the decoder, per position in the tower."""
    block = block_of(calibrated(CHANNEL), tower, RPTQ(clusters=3))
    decision = RPTQ(clusters=3).solve(block)
    for site, (low, high) in zip(block.sites, [t for u in block.tables for t in u], strict=True):
        name = f"{next(iter(site.linears))}.input_quantizer"
        own = [decision.tensors[f"{name}.{end}"].flatten().tolist() for end in ("low", "high")]
        ranges = list(zip(*own, strict=True))
        exact = list(zip(low[0].flatten().tolist(), high[0].flatten().tolist(), strict=True))
        assert len(exact) > 3
        assert 1 < len(set(ranges)) <= 3
        for shared in set(ranges):
            members = [e for e, r in zip(exact, ranges, strict=True) if r == shared]
            assert shared == (min(m[0] for m in members), max(m[1] for m in members))
    assert decision.scores["rptq"] == block.error(decision)
    assert decision.scores["minmax"] != decision.scores["rptq"]


def test_a_cluster_for_every_channel_is_a_range_per_channel(calibrated):
    block = block_of(calibrated(CHANNEL), method=RPTQ())
    many, one = RPTQ(clusters=1000).solve(block), RPTQ(clusters=1).solve(block)
    plain = block.decide(torch.zeros(len(block.sites), dtype=torch.int64))
    assert all(torch.equal(many.tensors[n], x) for n, x in plain.tensors.items())
    assert many.scores["rptq"] == many.scores["minmax"]
    for name, own in one.tensors.items():
        if name.endswith(".low"):
            assert torch.equal(own, plain.tensors[name].min().expand_as(own))


def test_it_decides_ranges_for_a_method_that_rounds(calibrated):
    alone, inside = calibrated(CHANNEL), calibrated(CHANNEL)
    alone.search(TOWERS, RPTQ(clusters=2), "a")
    inside.search(TOWERS, GPTQ(ranges=RPTQ(clusters=2)), "a")
    found = [weights(x) for x in (alone, inside)]
    name = "model.language_model.layers.0.self_attn.q_proj.input_quantizer.high"
    assert torch.equal(found[0][name], found[1][name])
    assert len(found[0][name].unique()) == 2


def test_a_resumed_search_is_the_same(calibrated, tmp_path):
    runs = []
    for _ in range(2):
        started = calibrated(CHANNEL, folder=tmp_path)
        started.search(TOWERS, RPTQ(clusters=4), "a")
        runs.append((weights(started), started.state.objective))
        sorted(tmp_path.glob("a-*.safetensors"))[2].unlink()
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize(
    "check",
    [
        RPTQ().check,
        GPTQ(ranges=RPTQ()).check,
        AESPA(ranges=RPTQ()).check,
        LearnedTransforms(ranges=RPTQ()).check,
        Chain([RPTQ(), GPTQ()]).check,
    ],
)
def test_other_ranges_than_of_channels_are_refused(check):
    for mode in ("static_tensor", "dynamic_token"):
        with pytest.raises(InputError, match=f"'{mode}' has not; allowed: activation_mode static_"):
            check(Scheme.parse("w4a4", activation_mode=mode))
    check(CHANNEL)


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match="0 clusters are not allowed"):
        RPTQ(clusters=0)
    with pytest.raises(InputError, match="rptq makes activations easier"):
        RPTQ().check(Scheme.parse("w4a16", activation_mode="static_channel"))
    with pytest.raises(InputError, match="rptq chooses ranges that were tabulated before smooth"):
        Chain([SmoothQuant(), RPTQ()]).check(CHANNEL)
    weights_only = Scheme(*[PartScheme(4, 16)] * 3)
    GPTQ(ranges=RPTQ()).check(weights_only)  # they are not asked there
