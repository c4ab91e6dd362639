"""GPTQ as a method: never worse than rounding to the nearest value, and carried everywhere."""

import copy
import random
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from qvlm_lightning.calibration import QuantModule
from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import GPTQ, ByKind, LeastSquares, MinMax, SequentialSearch
from qvlm_lightning.methods.site_statistics import collect, inputs
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.calibration.conftest import family_class  # noqa: F401
from tests.calibration.experts.conftest import calibrator  # noqa: F401
from tests.methods.test_changing_weights import TOWERS, same, weights
from tests.methods.test_site_statistics import block_of

W3 = Scheme.parse("w3a4")


def output_error(rows, wanted, weight):
    """Squared error of a layer's output, token after token."""
    return sum(float(((x.double() @ (weight - wanted).double().T) ** 2).sum()) for x in rows)


@pytest.mark.parametrize(
    "method",
    [
        GPTQ(),
        GPTQ(act_order=False, weight_range="mse"),
        GPTQ(damp=1.0, weight_range="minmax", ranges=LeastSquares()),
        GPTQ(token_weights=ByKind(vision=0.2)),
    ],
)
@pytest.mark.parametrize("group_size", [None, 8])
def test_no_layer_is_worse_than_rounding_to_the_nearest(calibrated, method, group_size):
    scheme = Scheme.parse("w3a4", group_size=group_size)
    block = block_of(calibrated(scheme), method=method)
    decision, gains = method.solve(block), []
    for site in block.sites:
        rows = []
        for batch, seen in inputs(block, site, decision, read=True):
            weight = block.weight(batch, seen.mask)
            rows += list(seen.hidden[weight != 0] * weight[weight != 0].sqrt()[:, None])
        for name, linear in site.linears.items():
            near = linear.weight_quantizer(linear.weight)
            own = decision.tensors[f"{name}.weight"]
            quantizer = copy.deepcopy(linear.weight_quantizer)
            for end in ("low", "high"):
                setattr(quantizer, end, decision.tensors[f"{name}.weight_quantizer.{end}"])
            torch.testing.assert_close(quantizer(own), own)
            errors = [output_error(rows, linear.weight, w) for w in (own, near)]
            assert errors[0] <= errors[1] * (1 + 1e-5)
            gains.append(errors[1] - errors[0])
    assert sum(g > 0 for g in gains) > len(gains) // 2
    assert decision.scores["gptq"] != decision.scores["minmax"]


def test_asymmetric_inputs_bring_the_output_nearer_to_full_precision(calibrated):
    """The objective is ||W_q X - W X_fp||^2; both are judged by it, without damping in between."""
    errors = {}
    for asymmetric in (False, True):
        method = GPTQ(damp=1e-4, asymmetric=asymmetric)
        block = block_of(calibrated(Scheme.parse("w4a3")), method=method)
        site = block.sites[0]
        want = ("gram", "cross") if asymmetric else ("gram",)
        sums = collect(block, [site], want, read=True)[site.name]
        decision = method._decide(block, site, sums)
        full = inputs(block, site, chain="full_precision")
        pairs = list(zip(inputs(block, site, read=True), full, strict=True))
        total = 0.0
        for name, linear in site.linears.items():
            weight = decision.tensors[f"{name}.weight"].double()
            for (_, seen), (_, exact) in pairs:
                y = seen.hidden.double() @ weight.T
                target = exact.hidden.double() @ linear.weight.double().T
                total += float((y - target)[exact.mask].square().sum())
        errors[asymmetric] = total
    assert errors[True] < errors[False]


def test_the_wanted_weight_is_the_least_squares_answer(calibrated):
    method = GPTQ(damp=1e-9, asymmetric=True)
    block = block_of(calibrated(Scheme.parse("w4a3")), method=method)
    site = block.sites[3]
    x = torch.cat([s.hidden[s.mask] for _, s in inputs(block, site, read=True)]).double()
    exact = torch.cat([s.hidden[s.mask] for _, s in inputs(block, site, chain="full_precision")])
    linear = site.leader
    sums = collect(block, [site], ("gram", "cross"), read=True)[site.name]
    wanted = []
    method._ranges = lambda weight, *_: (wanted.append(weight), GPTQ()._ranges(weight, *_))[1]
    method._decide(block, site, sums)
    answer = torch.linalg.lstsq(x, exact.double() @ linear.weight.double().T).solution.T
    torch.testing.assert_close(wanted[0].double(), answer, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        (GPTQ(), "dynamic_token"),
        (GPTQ(act_order=False, ranges=SequentialSearch([1.0, 0.97])), "static_tensor"),
    ],
)
def test_every_layer_is_on_its_grid(calibrated, method, mode):
    scheme = Scheme.parse("w3a4", activation_mode=mode, group_size=8, weight_symmetric=True)
    started = calibrated(scheme)
    started.search(TOWERS, method, "a")
    after = weights(started)
    for name, linear in started.model.named_modules():
        if isinstance(linear, QuantLinear):
            scale, _ = linear.weight_quantizer.qparams(after[f"{name}.weight"])
            steps = after[f"{name}.weight"].reshape(*scale.shape, -1) / scale[..., None]
            assert torch.allclose(steps, steps.round(), atol=1e-3)
            assert int(steps.round().min()) >= -4
            assert int(steps.round().max()) <= 3
    if method.ranges is not None:
        assert min(started.state.percentiles.values()) < 1


@pytest.mark.parametrize("method", [GPTQ(ranges=LeastSquares()), GPTQ(asymmetric=True)])
def test_a_run_resumed_at_any_block_is_the_same(calibrated, tmp_path, method):
    first = calibrated(W3, folder=tmp_path)
    first.search(TOWERS, method, "a")
    stored = sorted(tmp_path.glob("a-*.safetensors"))
    files = {path.name: path.read_bytes() for path in stored}
    for path in random.Random(3).sample(stored, 4):
        path.unlink()
    second = calibrated(W3, folder=tmp_path)
    second.search(TOWERS, method, "a")
    assert same(weights(first), weights(second))
    for name, content in files.items():
        again = (tmp_path / name).read_bytes()
        if content != again:  # seconds are in the header only
            assert safetensors.torch.load(content).keys() == safetensors.torch.load(again).keys()
            size = 8 + int.from_bytes(content[:8], "little")
            assert content[size:] == again[8 + int.from_bytes(again[:8], "little") :]
    assert first.state.objective == second.state.objective


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.slow),
    ],
)
def test_a_streamed_model_decides_the_same(opened, folder, tmp_path, dtype):
    scheme = Scheme.parse("w3a4", group_size=8)
    whole, streamed = (opened(folder, s, scheme, dtype) for s in (False, True))
    method = GPTQ(act_order=False)
    for started in (whole, streamed):
        started.blocks.decisions = Decisions(tmp_path / str(id(started)))
        started.collect([1.0] if started is streamed else None)
        started.search(TOWERS, method, "a")
        started.structure.enable(True)
    assert whole.state.objective == streamed.state.objective
    assert len(whole.structure.changes) == len(whole.structure.quantized)
    for name in whole.structure.changes:
        decided = whole.model.get_parameter(name)
        assert decided.isfinite().all()
        assert torch.equal(streamed.passes.weights.read(name), decided)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "moe_llava_stablelm"])
def test_experts_with_few_tokens_or_none(calibrator, name):  # noqa: F811
    scheme = Scheme.parse("w3a4")
    made = calibrator(name, scheme, count=1, words=4)
    made.search(TOWERS, GPTQ(), "a")
    for objective in made.state.objective:
        assert torch.tensor([objective["gptq"], objective["minmax"]]).isfinite().all()
    made.structure.enable(True)
    for site in made.structure.sites:
        for name, linear in site.linears.items():
            assert linear.weight.isfinite().all(), name
    assert len(made.structure.changes) == len(made.structure.quantized)


def test_an_expert_without_tokens_keeps_the_nearest_values(calibrator):  # noqa: F811
    made = calibrator("mixtral", Scheme.parse("w3a4"), count=1)
    block = block_of(made, method=GPTQ(weight_range="mse"))
    site = next(s for s in block.sites if s.route is not None)
    empty = collect(block, [site], ("gram",))[site.name]
    empty.gram.zero_()
    decision = GPTQ(weight_range="minmax")._decide(block, site, empty)
    for name, linear in site.linears.items():
        near = linear.weight_quantizer(linear.weight)
        assert torch.allclose(decision.tensors[f"{name}.weight"], near, atol=1e-6)


def test_ranges_are_not_searched_where_no_activation_is_quantized(calibrated):
    class Refuses(LeastSquares):
        def solve(self, block):
            raise AssertionError("there is nothing to decide")

    started = calibrated(Scheme.parse("w3a16"))
    started.search(["language"], GPTQ(ranges=Refuses()), "a")
    assert started.structure.changes


def test_layers_that_overrides_leave_alone_stay(calibrated):
    scheme = Scheme.parse("w3a4", overrides={"(down|k)_proj": {"weight_bits": 16}})
    started = calibrated(scheme)
    started.search(TOWERS, GPTQ(), "a")
    changed = set(started.structure.changes)
    assert changed
    assert not any("down_proj" in name or "k_proj" in name for name in changed)
    assert any("q_proj" in name for name in changed)


@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_sinks_take_no_part_in_statistics(calibrated, sink):
    started = calibrated(Scheme.parse("w3a4", sink=sink))
    block = block_of(started, method=GPTQ())
    site = block.sites[0]
    found = collect(block, [site], ("gram",))[site.name]
    expected = torch.zeros_like(found.gram)
    for batch, seen in inputs(block, site):
        place = block.x_q[batch].sinks[1]
        for row in range(len(place)):
            for token in range(place.shape[1]):
                if place[row, token] < 0 and seen.mask[row, token]:
                    expected += torch.outer(*[seen.hidden[row, token].double()] * 2)
    torch.testing.assert_close(found.gram, expected, rtol=1e-5, atol=1e-5)
    started.search(TOWERS, GPTQ(), "a")
    assert all(o["gptq"] > 0 for o in started.state.objective)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="damp 0"):
        GPTQ(damp=0)
    with pytest.raises(InputError, match="'minmax', 'mse', 'output'"):
        GPTQ(weight_range="max")
    with pytest.raises(InputError, match="changes weights"):
        GPTQ(ranges=GPTQ())
    with pytest.raises(InputError, match="gptq decides quantized weights"):
        GPTQ().check(Scheme.parse("w16a8"))
    GPTQ().check(Scheme.parse("w16a8", overrides={"down": {"weight_bits": 4}}))
    GPTQ().check(Scheme(vision=PartScheme(16, 16), projector=PartScheme(16, 16)))
    assert GPTQ(ranges=MinMax()).settings()["ranges"]["class"] == "MinMax"


def test_a_module_refuses_a_scheme_before_a_model_is_read(family_class):  # noqa: F811
    class NoModel(family_class):
        def load_model(self):
            raise AssertionError("the model is read")

    with pytest.raises(InputError, match="scheme 'w16a8' leaves them at 16 bits"):
        QuantModule(NoModel(), Scheme.parse("w16a8"), GPTQ())


@pytest.mark.parametrize("act_order", [False, True])
def test_layers_of_a_site_are_rounded_as_each_by_itself(calibrated, act_order):
    method = GPTQ(act_order=act_order)
    scheme = Scheme.parse("w3a4", group_size=8, overrides={"k_proj": {"weight_bits": 4}})
    block = block_of(calibrated(scheme), method=method)
    site = block.sites[0]
    assert len(site.linears) == 3
    assert len({linear.weight_quantizer.num_bits for linear in site.linears.values()}) == 2
    sums = collect(block, [site], ("gram",), read=True)[site.name]
    together = method._decide(block, site, sums)
    apart = {}
    for name, linear in site.linears.items():
        alone = method._decide(block, replace(site, linears={name: linear}), sums).tensors
        assert all(own.startswith(name) for own in alone)
        apart |= alone
    assert together.tensors.keys() == apart.keys()
    assert all(torch.equal(x, apart[name]) for name, x in together.tensors.items())
    pointers = {x.untyped_storage().data_ptr() for x in together.tensors.values()}
    assert len(pointers) == len(together.tensors), "a file holds tensors of their own"
