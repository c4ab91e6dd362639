"""Scales of input channels, folded into what comes before."""

import pytest
import torch

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import AESPA, ByKind, Chain, Decision, ZFold
from qvlm_lightning.methods.fold_groups import fold_groups
from qvlm_lightning.methods.site_statistics import collect
from qvlm_lightning.nn.weight_quantizer import exact_weights
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.quant.z_fold import FoldedLayer
from tests.calibration.conftest import ToyFamily, build_toy
from tests.methods.test_changing_weights import TOWERS, same, weights
from tests.methods.test_site_statistics import block_of

W3 = Scheme.parse("w3a16")


class Always(ZFold):
    """Takes every fold, whether it lowers the error or not."""

    def factors(self, block, group, decision):
        return super().factors(block, group, decision)[1:]


@pytest.mark.parametrize(("kv_heads", "dtype"), [(1, torch.float32), (2, torch.bfloat16)])
def test_a_folded_layer_computes_the_same_until_it_is_rounded(toy_batches, kv_heads, dtype):
    model = build_toy(kv_heads=kv_heads).to(dtype)
    started = Calibrator(model, ToyFamily(), W3, toy_batches, toy_batches[:2])
    started.collect()
    block = block_of(started, method=ZFold())
    decision = Always(rounds=5).solve(block)
    folded = {n.removesuffix(".weight").rpartition(".")[2] for n in decision.tensors}
    assert {"input_layernorm", "post_attention_layernorm", "down_proj"} <= folded
    exact = [x.weight_quantizer for site in block.sites for x in site.linears.values()]
    with exact_weights(exact):
        assert block.error(decision) < (1e-8 if dtype == torch.float32 else 1e-3)
    assert decision.scores["zfold"] == block.error(decision)
    assert all(x.isfinite().all() for x in decision.tensors.values())


def test_factors_are_those_that_the_form_asks_for(calibrated):
    """Layers that read one norm: their common error falls when the fold is applied."""
    block = block_of(calibrated(W3), method=ZFold())
    group = fold_groups(block, 0)[0]
    ones, factor = ZFold().factors(block, group, Decision())
    gram = collect(block, group.sites, ("gram",), None, "full_precision")[group.sites[0].name].gram
    layers = [
        FoldedLayer(x.weight, gram, torch.arange(len(gram)), 3, None, False)
        for x in group.sites[0].linears.values()
    ]
    assert len(layers) == 3
    tried = (1 / ones, 1 / factor, factor)  # any change may happen to help a little
    errors = [sum(x.error(x.rounded(z), z) for x in layers) for z in tried]
    assert errors[1] < min(errors[0], errors[2])


def test_rounding_behind_it_is_better_than_without(calibrated):
    errors = []
    for method in (AESPA(steps=0), Chain([ZFold(), AESPA(steps=0)])):
        started = calibrated(W3)
        started.search(TOWERS, method, "a")
        errors.append(started.state.objective)
    gained = [one["aespa"] - other["chain"] for one, other in zip(*errors, strict=True)]
    assert sum(gained) > 0


def test_token_weights_count_and_runs_resume(calibrated, tmp_path):
    runs = []
    for weigh in (ByKind(), ByKind(), ByKind(vision=0.01)):
        folder = tmp_path / str(weigh.vision)
        started = calibrated(W3, folder=folder)
        started.search(TOWERS, ZFold(rounds=2, token_weights=weigh), "a")
        runs.append(weights(started))
        sorted(folder.glob("a-*.safetensors"))[3].unlink()
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_impossible_settings_and_orders_are_refused():
    with pytest.raises(InputError, match="rounds 0 is not allowed"):
        ZFold(rounds=0)
    with pytest.raises(InputError, match="zfold decides quantized weights"):
        ZFold().check(Scheme.parse("w16a4"))
    with pytest.raises(InputError, match="zfold cannot follow aespa"):
        Chain([AESPA(), ZFold()])
