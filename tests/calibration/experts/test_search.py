"""Percentiles of experts: every site is decided, on the tokens that it sees."""

import pytest
import torch

from qvlm_lightning.methods import JointSearch, LeastSquares, MinMax, SequentialSearch
from qvlm_lightning.methods.site_chains import full_precision_site_inputs, quantized_site_input
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.nn.replay import run_unit
from qvlm_lightning.quant.scheme import Scheme


@pytest.mark.parametrize("name", ["qwen2_moe", "moe_llava_stablelm"])
@pytest.mark.parametrize(
    ("method", "mode"),
    [
        (MinMax, "static_tensor"),
        (JointSearch, "static_tensor"),
        (SequentialSearch, "static_tensor"),
        (SequentialSearch, "static_channel"),
        (SequentialSearch, "dynamic_token"),
    ],
)
def test_every_method_decides_every_site(name, method, mode, calibrator):
    made = calibrator(name, Scheme.parse("w4a4", activation_mode=mode), count=1, words=8)
    made.structure.enable(True)
    chosen = method([1.0, 0.99]) if method is not MinMax else method()
    made.search(["vision", "projector", "language"], chosen, "final")
    assert set(made.state.percentiles) == {s.name for s in made.structure.sites}
    for objective in made.state.objective:
        values = [objective[n] for n in ("minmax", "sequential", "joint") if n in objective]
        assert values
        assert torch.tensor(values).isfinite().all()
        if "joint" in objective:
            assert objective["joint"] <= min(objective["minmax"], objective["sequential"])


def test_candidates_stacked_in_the_batch_are_run_as_if_alone(calibrator):
    made = calibrator("qwen2_moe", count=1)
    made.structure.enable(True)
    tower = made.structure.towers["language"]
    ((call,),) = made.passes.calls(tower, made.search_batches, [set()])
    unit = tower.units[0]
    stacked = torch.cat([call.hidden, 2 * call.hidden, -call.hidden])
    whole = run_unit(unit, stacked, call, copies=3)
    parts = [run_unit(unit, f * call.hidden, call) for f in (1, 2, -1)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_one_site_of_an_expert_is_scored_on_tokens_that_both_chains_send_there(calibrator):
    made = calibrator("mixtral", count=1)
    made.structure.enable(True)
    tower = made.structure.towers["language"]
    exact, quantized = made.passes.calls(tower, made.search_batches, [set(), {"vision"}])
    block = made.blocks.block(tower, 0, 0, exact, quantized, MinMax())
    unit = block.units[0]
    full = full_precision_site_inputs(block, 0, [c.hidden for c in exact])[0]
    for column, site in enumerate(unit.sites):
        none = torch.zeros(len(unit.sites), dtype=torch.int64)
        (seen,) = quantized_site_input(block, 0, [c.hidden for c in quantized], none, column)
        mask = seen.shared_mask(full[column])
        assert mask is not None
        if site.route is None:
            assert torch.equal(mask, quantized[0].mask)
            continue
        both = seen.mask & full[column].mask
        assert torch.equal(mask, both)
        assert seen.hidden.shape == (*quantized[0].hidden.shape[:2], site.leader.in_features)
        assert (seen.hidden[~seen.mask & quantized[0].mask] == 0).all()


@pytest.mark.parametrize("method", [SequentialSearch, JointSearch, LeastSquares])
@pytest.mark.parametrize("sink", ["bypass", "prefix"])
def test_sink_tokens_of_experts_are_neither_searched_nor_quantized(method, sink, calibrator):
    """Experts see rows in an order of their own, and in single sites all tokens."""
    made = calibrator("qwen2_moe", Scheme.parse("w4a4", sink=sink), count=1, words=8)
    made.structure.enable(True)
    made.search(["language"], method([1.0, 0.9]), "final")
    assert made.structure.sinks.prefix == (1,)
    seen = {}
    experts = [s for s in made.structure.sites if s.route is not None and s.route.role == "down_in"]
    for site in experts:
        site.quantizer.register_forward_hook(
            lambda m, args, out, name=site.name: seen.update({name: (args[0], out)})
        )
    for batch in made.search_batches:
        made.model(**model_inputs(batch), use_cache=False)
    touched = 0
    for site in experts:
        if site.name in seen:
            (x, out), tokens = seen[site.name], site.route.tokens
            first = tokens == 0
            touched += int(first.sum())
            assert torch.equal(out[first], x[first])
            assert not torch.equal(out[tokens > 0], x[tokens > 0])
    assert touched
