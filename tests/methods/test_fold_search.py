"""Scales per channel (AWQ, MBQ, SmoothQuant), against plain loops."""

import copy
import random

import pytest
import torch

from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import AWQ, MBQ, ByKind, Decision, SmoothQuant
from qvlm_lightning.methods.fold_groups import fold_errors, fold_groups
from qvlm_lightning.methods.scale_search import magnitude_factors
from qvlm_lightning.methods.site_statistics import inputs
from qvlm_lightning.models.family import ANSWER, PAD, PROMPT, VISION
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.replay import run_full_precision
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.calibration.experts.conftest import calibrator  # noqa: F401
from tests.methods.test_changing_weights import TOWERS, same, weights
from tests.methods.test_site_statistics import block_of

SHARE = {VISION: 0.3, PROMPT: 1.0, ANSWER: 2.0, PAD: 0.0}
WEIGHTS = ByKind(vision=0.3, prompt=1.0, answer=2.0)
PLACES = ["self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"]


def plain(module):
    """A copy of a module whose Linear layers quantize nothing."""
    other = copy.deepcopy(module)
    for linear in other.modules():
        if isinstance(linear, QuantLinear):
            linear.enabled = False
            linear.site.enabled = False
    return other


def called(block, module, batch):
    """How a module is called in the full-precision chain, and what it gives."""
    seen = []
    handle = module.register_forward_hook(
        lambda _, a, k, y: seen.append((a, k, y[0] if isinstance(y, tuple) else y)),
        with_kwargs=True,
    )
    call = block.x_fp[batch]
    run_full_precision(block.units[0], call.hidden, call)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("mode", "number", "power"),
    [
        *(("static_tensor", number, 1.0) for number in range(4)),
        ("static_channel", 0, 2.0),
        ("static_channel", 3, 2.0),
        ("dynamic_token", 1, 2.0),
        ("dynamic_token", 2, 2.0),
    ],
)
def test_the_error_of_a_scale_is_that_of_a_loop(calibrated, toy_batches, mode, number, power):
    scheme = Scheme.parse("w3a4", activation_mode=mode)
    started = calibrated(scheme)
    block = block_of(started, method=AWQ(token_weights=WEIGHTS))
    group = fold_groups(block, 0)[number]
    assert group.place.endswith(f"layers.0.{PLACES[number]}")
    width = group.sites[0].leader.in_features
    factors = torch.stack([torch.ones(width), torch.linspace(0.3, 4.0, width)])
    found = fold_errors(block, group, factors, Decision(), power)
    module, site = block.module(group.place), group.sites[0]
    lowest, highest = torch.full((width,), torch.inf), torch.full((width,), -torch.inf)
    for _, seen in inputs(block, site, chain="full_precision"):
        ends = seen.hidden[seen.mask].aminmax(dim=0)
        lowest, highest = torch.minimum(lowest, ends[0]), torch.maximum(highest, ends[1])
    expected = []
    for factor in factors:
        other, error, size = plain(module), 0.0, 0.0
        for name, linear in site.linears.items():
            own = name.removeprefix(group.place).lstrip(".")
            copied = other.get_submodule(own) if own else other
            quantized = linear.weight_quantizer(linear.weight * factor)
            copied.weight = torch.nn.Parameter(quantized, requires_grad=False)
        quantizer = copy.deepcopy(site.quantizer)
        if mode == "static_tensor":
            quantizer.set_range((lowest / factor).min(), (highest / factor).max(), 1.0)
        elif mode == "static_channel":
            quantizer.set_range(lowest / factor, highest / factor, 1.0)
        for batch in range(len(block.x_fp)):
            args, kwargs, target = called(block, module, batch)
            x = args[0] if args else kwargs["hidden_states"]
            with torch.no_grad():
                x = quantizer(x / factor)
                out = other(x) if args else other(**kwargs | {"hidden_states": x})
            out = out[0] if isinstance(out, tuple) else out
            kind = started.family.token_kind(toy_batches[batch])
            for row in range(out.shape[0]):
                for token in range(out.shape[1]):
                    share = SHARE[int(kind[row, token])]
                    y, full = out[row, token].double(), target[row, token].double()
                    error += share * float(((y - full).abs() ** power).sum())
                    size += share * float((full.abs() ** power).sum())
        expected.append(error / size)
    assert found.tolist() == pytest.approx(expected, rel=2e-3)
    assert expected[0] != pytest.approx(expected[1], rel=1e-2)


def test_candidates_are_powers_of_the_magnitude():
    size = torch.tensor([0.5, 2.0, 8.0])
    found = magnitude_factors(size, 20)
    for k in range(20):
        row = [float(x) ** (k / 20) for x in size]
        norm = (max(row) * min(row)) ** 0.5
        assert found[k].tolist() == pytest.approx([x / norm for x in row], rel=1e-5)


@pytest.mark.parametrize("scheme", [Scheme.parse("w3a16"), Scheme.parse("w4a8", group_size=8)])
def test_mbq_with_equal_weights_and_squares_is_awq(calibrated, scheme):
    awq, mbq, other = calibrated(scheme), calibrated(scheme), calibrated(scheme)
    awq.search(TOWERS, AWQ(4, clip=False), "a")
    mbq.search(TOWERS, MBQ(4, power=2.0, token_weights=ByKind()), "a")
    assert same(weights(awq), weights(mbq))
    assert [o["awq"] for o in awq.state.objective] == [o["mbq"] for o in mbq.state.objective]
    other.search(TOWERS, MBQ(4), "a")
    assert not same(weights(awq), weights(other))


def test_mbq_keeps_its_power_and_balance():
    assert MBQ().power == 1.0
    assert MBQ(power=2.0).power == 2.0
    assert MBQ().needs_gradients
    assert not MBQ(token_weights=ByKind()).needs_gradients
    assert MBQ().settings()["token_weights"]["class"] == "ModalityBalance"


@pytest.mark.parametrize(
    "method", [AWQ(5, clip=False), MBQ(5), SmoothQuant([0.3, 0.5, 0.8], False)]
)
@pytest.mark.parametrize("tower", ["vision", "language"])
def test_in_full_precision_nothing_changes(calibrated, method, tower):
    scheme = Scheme.parse("w3a4", activation_mode="dynamic_token")
    started = calibrated(scheme)
    block = block_of(started, tower, method=method)
    if tower == "language":
        places = [block.units[-1].name, *map(block.place, block.sites)]
        sizes = {"vision": 0.2, "prompt": 1.0, "answer": 1.0, "text": 1.0}
        block.gradients = dict.fromkeys(places, sizes)
    decision = method.solve(block)
    assert any("norm" in name for name in decision.tensors)
    assert any("proj.bias" in name or "v_proj.weight" in name for name in decision.tensors)
    for call, target in zip(block.x_fp, block.targets, strict=True):
        hidden = call.hidden
        for unit in block.units:
            hidden = run_full_precision(unit, hidden, call, decision.tensors)
        assert float((hidden - target).norm() / target.norm()) < 1e-5
    assert decision.scores[method.name] != decision.scores["minmax"]


def test_the_best_of_the_candidates_is_taken(calibrated):
    method, chosen = AWQ(clip=False), []
    block = block_of(calibrated(Scheme.parse("w3a16")), method=method)
    decision = Decision()
    for group in fold_groups(block, 0):
        factors = method.factors(block, group, decision)
        errors = fold_errors(block, group, factors, decision)
        best = errors.tolist().index(min(errors.tolist()))
        after = method._fold(block, group, decision)
        source, name = group.source, group.sites[0].leader
        assert source is not None
        before = block.tensor(f"{next(iter(group.sites[0].linears))}.weight", decision)
        moved = block.tensor(f"{next(iter(group.sites[0].linears))}.weight", after)
        columns = source.channels(name.in_features)
        torch.testing.assert_close(moved, before * factors[best][columns].float())
        chosen.append(best)
        decision = after
    assert len(set(chosen)) > 1


def test_smoothquant_is_its_formula(calibrated):
    scheme = Scheme.parse("w4a4", activation_mode="dynamic_token")
    block = block_of(calibrated(scheme), method=SmoothQuant())
    group = fold_groups(block, 0, norms_only=True)[1]
    found = SmoothQuant([0.25, 0.75]).factors(block, group, Decision())
    site = group.sites[0]
    for channel in range(site.leader.in_features):
        x = max(
            float(seen.hidden[seen.mask][:, channel].abs().max())
            for _, seen in inputs(block, site, chain="full_precision")
        )
        w = max(float(linear.weight[:, channel].abs().max()) for linear in site.linears.values())
        for row, alpha in enumerate((0.25, 0.75)):
            assert float(found[row, channel]) == pytest.approx(
                x**alpha / w ** (1 - alpha), rel=1e-5
            )
    assert len(fold_groups(block, 0, norms_only=True)) == 2
    assert len(fold_groups(block, 0)) == 4


def test_clipped_weights_are_not_worse_and_some_are_clipped(calibrated):
    method = AWQ(inputs="quantized")
    block = block_of(calibrated(Scheme.parse("w3a16", group_size=8)), method=method)
    decision, clipped = method.solve(block), 0
    for site in block.sites:
        rows = torch.cat([s.hidden[s.mask] for _, s in inputs(block, site, decision)]).double()
        for name, linear in site.linears.items():
            weight = decision.tensors[f"{name}.weight"]
            low = decision.tensors[f"{name}.weight_quantizer.low"]
            high = decision.tensors[f"{name}.weight_quantizer.high"]
            own = linear.weight_quantizer
            whole = own(weight)
            own.low, own.high = low, high
            inside = own(weight)
            own.measure_again()
            for group in range(low.shape[1]):
                part = slice(group * 8, group * 8 + 8)
                errors = [
                    (rows[:, part] @ (w - weight)[:, part].double().T).square().sum(dim=0)
                    for w in (inside, whole)
                ]
                assert (errors[0] <= errors[1] * (1 + 1e-4) + 1e-9).all()
                clipped += int((errors[0] < errors[1] * 0.999).sum())
    assert clipped > 10


@pytest.mark.parametrize("method", [AWQ(grid=4), MBQ(grid=4), SmoothQuant()])
def test_a_run_resumed_at_any_block_is_the_same(calibrated, tmp_path, method):
    scheme = Scheme.parse("w4a4")
    first = calibrated(scheme, folder=tmp_path)
    first.search(TOWERS, method, "a")
    stored = sorted(tmp_path.glob("a-*.safetensors"))
    for path in random.Random(5).sample(stored, 4):
        path.unlink()
    second = calibrated(scheme, folder=tmp_path)
    second.search(TOWERS, method, "a")
    assert same(weights(first), weights(second))
    assert first.state.objective == second.state.objective


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        (MBQ(grid=3), "bfloat16"),
        pytest.param(MBQ(grid=3), "float32", marks=pytest.mark.slow),
        pytest.param(AWQ(grid=3), "float16", marks=pytest.mark.slow),
        pytest.param(SmoothQuant([0.4, 0.6]), "float32", marks=pytest.mark.slow),
    ],
)
def test_a_streamed_model_decides_the_same(opened, folder, tmp_path, method, dtype):
    whole, streamed = (opened(folder, s, Scheme.parse("w3a8"), dtype) for s in (False, True))
    for started in (whole, streamed):
        started.blocks.decisions = Decisions(tmp_path / str(id(started)))
        started.collect([1.0] if started is streamed else None)
        started.search(TOWERS, method, "a")
        started.structure.enable(True)
    assert whole.state.objective == streamed.state.objective
    assert len(whole.structure.changes) > 20
    for name in whole.structure.changes:
        decided = whole.model.get_parameter(name)
        assert decided.isfinite().all()
        assert torch.equal(streamed.passes.weights.read(name), decided)


@pytest.mark.parametrize("method", [AWQ(grid=3), MBQ(grid=3), SmoothQuant([0.5, 0.7], False)])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_experts_are_scaled_together(calibrator, name, method):  # noqa: F811
    made = calibrator(name, Scheme.parse("w3a8"), count=1)
    block = block_of(made, method=AWQ())
    (group,) = [g for g in fold_groups(block, 0, norms_only=True) if len(g.sites) > 1]
    assert group.place.endswith("layers.0.mlp")
    made.search(TOWERS, method, "a")
    for objective in made.state.objective:
        assert torch.tensor([objective[method.name], objective["minmax"]]).isfinite().all()
    exact = made.blocks.chains(made.structure.towers["language"], AWQ())[0]
    with made.structure.only(set()):
        targets = [run_full_precision(made.structure.towers["language"].units[0], c.hidden, c)
                   for c in exact]  # fmt: skip
    tensors = {n: made.structure.changes._changes[n].decided() for n in made.structure.changes}
    for call, target in zip(exact, targets, strict=True):
        unit = made.structure.towers["language"].units[0]
        if isinstance(method, SmoothQuant):  # nothing but folds: the function is the same
            moved = run_full_precision(unit, call.hidden, call, tensors)
            assert float((moved - target).norm() / target.norm()) < 1e-4


@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_values_that_sinks_store_are_not_folded(calibrated, sink):
    started = calibrated(Scheme.parse("w3a8", sink=sink))
    block = block_of(started, method=AWQ())
    places = [group.place.rpartition("layers.0.")[2] for group in fold_groups(block, 0)]
    assert ("self_attn.o_proj" in places) == (sink == "bypass")
    started.search(TOWERS, MBQ(grid=3), "a")
    assert all(o["mbq"] > 0 for o in started.state.objective)


def test_layers_that_nothing_quantizes_are_left_alone(calibrated):
    off = {"mlp": {"weight_bits": 16, "activation_bits": 16}}
    block = block_of(calibrated(Scheme.parse("w4a8", overrides=off)), method=AWQ())
    places = [group.place.rpartition("layers.0.")[2] for group in fold_groups(block, 0)]
    assert places == ["self_attn", "self_attn.o_proj"]


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="awq decides quantized weights"):
        AWQ().check(Scheme.parse("w16a8"))
    with pytest.raises(InputError, match="mbq decides quantized weights"):
        MBQ().check(Scheme.parse("w16a8"))
    with pytest.raises(InputError, match="smoothquant makes activations easier"):
        SmoothQuant().check(Scheme.parse("w4a16"))
    SmoothQuant().check(Scheme(vision=PartScheme(16, 16), projector=PartScheme(16, 16)))
    with pytest.raises(InputError, match="grid 0"):
        AWQ(grid=0)
    with pytest.raises(InputError, match="power 0"):
        MBQ(power=0.0)
    with pytest.raises(InputError, match="'quantized', 'full_precision'"):
        MBQ(inputs="exact")
    with pytest.raises(InputError, match="each from 0 to 1"):
        SmoothQuant([1.5])
