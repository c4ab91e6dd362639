"""Methods one behind the other."""

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import (
    GPTQ,
    MBQ,
    ByKind,
    Chain,
    JointSearch,
    LeastSquares,
    MinMax,
    ModalityBalance,
    SequentialSearch,
    SmoothQuant,
)
from qvlm_lightning.quant.scheme import Scheme
from tests.methods.test_changing_weights import TOWERS, same, weights
from tests.methods.test_site_statistics import block_of

TOKEN = Scheme.parse("w3a4", activation_mode="dynamic_token")


def test_rounding_starts_from_the_folded_weight(calibrated):
    smooth, chain = SmoothQuant(), Chain([SmoothQuant(), GPTQ(weight_range="minmax")])
    block = block_of(calibrated(TOKEN), method=chain)
    folded, whole = smooth.solve(block), chain.solve(block)
    for site in block.sites:
        for name in site.linears:
            start = block.tensor(f"{name}.weight", folded)
            step = (start.amax(1) - start.amin(1)).amax() / 7
            error = (whole.tensors[f"{name}.weight"] - start).abs()
            assert float(error.mean()) < step / 2
            assert whole.tensors[f"{name}.weight"].unique().numel() <= 8 * len(start)
    assert list(whole.scores) == ["minmax", "smoothquant", "gptq", "chain"]
    assert whole.scores["smoothquant"] == folded.scores["smoothquant"]
    assert whole.scores["chain"] == whole.scores["gptq"] == block.error(whole)
    assert whole.scores["gptq"] < whole.scores["smoothquant"]
    norms = [name for name in folded.tensors if "norm" in name]
    assert norms
    assert all(torch.equal(whole.tensors[n], folded.tensors[n]) for n in norms)


def test_every_step_has_its_own_token_weights(calibrated):
    seen = []

    class Spy(MinMax):
        def solve(self, block):
            seen.append(block.token_weights)
            return super().solve(block)

    steps = [Spy(token_weights=ByKind(vision=0.5)), Spy(token_weights=ModalityBalance())]
    chain = Chain(steps)
    assert chain.needs_kind
    assert chain.needs_gradients
    started = calibrated(TOKEN)
    started.search(["language"], chain, "a")
    assert seen[:2] == [step.token_weights for step in steps]
    assert started.state.gradients
    assert not Chain([MinMax(), GPTQ()]).needs_gradients


def test_a_chain_is_committed_and_resumed(calibrated, tmp_path):
    chain = Chain([MBQ(grid=3), LeastSquares(), GPTQ()])
    first = calibrated(TOKEN, folder=tmp_path)
    first.search(TOWERS, chain, "a")
    stored = sorted(tmp_path.glob("a-*.safetensors"))
    stored[1].unlink()
    stored[-1].unlink()
    second = calibrated(TOKEN, folder=tmp_path)
    second.search(TOWERS, chain, "a")
    assert same(weights(first), weights(second))
    assert first.state.objective == second.state.objective
    assert set(first.state.objective[-1]) >= {"minmax", "mbq", "mse", "gptq", "chain"}
    assert min(first.state.percentiles.values()) < 1


def test_orders_that_do_not_work_are_refused():
    with pytest.raises(InputError, match="smoothquant cannot follow gptq"):
        Chain([GPTQ(), SmoothQuant()])
    with pytest.raises(InputError, match="sequential cannot follow gptq"):
        Chain([GPTQ(), SequentialSearch()])
    with pytest.raises(InputError, match="gptq cannot follow gptq"):
        Chain([GPTQ(), GPTQ()])
    with pytest.raises(InputError, match="a chain of 1 methods"):
        Chain([GPTQ()])
    static = Scheme.parse("w4a4")
    with pytest.raises(InputError, match="joint chooses ranges that were tabulated before mbq"):
        Chain([MBQ(), JointSearch()]).check(static)
    with pytest.raises(InputError, match="gptq chooses ranges that were tabulated before mbq"):
        Chain([MBQ(), GPTQ(ranges=LeastSquares())]).check(static)
    Chain([MBQ(), JointSearch()]).check(TOKEN)
    Chain([MBQ(), GPTQ()]).check(static)
    with pytest.raises(InputError, match="two steps of a chain choose"):
        Chain([LeastSquares(), SequentialSearch()]).check(static)
    with pytest.raises(InputError, match="smoothquant makes activations easier"):
        Chain([SmoothQuant(), GPTQ()]).check(Scheme.parse("w4a16"))
    settings = Chain([SmoothQuant(), GPTQ()]).settings()
    assert [step["class"] for step in settings["steps"]] == ["SmoothQuant", "GPTQ"]
