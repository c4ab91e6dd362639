"""aespa as a method: never worse than rounding to the nearest by its own measure, in every form."""

import copy
import random

import pytest
import safetensors.torch
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import AESPA, GPTQ, ByKind, LeastSquares, MinMax, TokenWeights
from qvlm_lightning.methods.attention_statistics import attention_of, attention_statistics
from qvlm_lightning.methods.site_statistics import collect, inputs
from qvlm_lightning.nn.replay import run_full_precision
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.experts.conftest import calibrator  # noqa: F401
from tests.methods.test_changing_weights import TOWERS, same, weights

W3 = Scheme.parse("w3a4")


@pytest.fixture
def grouped(toy_family):
    """A calibrator of a LLaVA whose four query heads read two key heads, and its batches."""

    def make(batches, scheme="w3a4"):
        torch.manual_seed(0)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, image_size=16, patch_size=8, projection_dim=16,
            ),
            text_config=LlamaConfig(
                vocab_size=40, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=6, pad_token_id=0,
                bos_token_id=1, eos_token_id=2,
            ),
            image_token_index=3,
        )  # fmt: skip
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        model = model.eval().requires_grad_(False)
        made = Calibrator(model, toy_family, Scheme.parse(scheme), batches, batches)
        made.collect()
        return made

    return make


def layer_of(made, method):
    """The first layer of the decoder by itself."""
    owner = made.structure.towers["language"]
    made.structure.enable(False)
    exact, quantized = made.blocks.chains(owner, method)
    made.structure.enable(True, {"language"})
    return made.blocks.block(owner, 0, 0, exact, quantized, method)


def near_of(linear):
    return linear.weight_quantizer(linear.weight)


def per_head(block, site, decision):
    """Yield (what, error of the decision, of the nearest values) of every head and other row."""
    attention = attention_of(block, site)
    heads = {}
    if attention is not None:
        found = attention_statistics(block, site, attention, decision)
        gram = collect(block, [site], ("gram",), decision, read=True)[site.name].gram
        plain = collect(block, [site], ("gram",), decision, read=True, weighted=False)
        keys = plain[site.name].gram
        heads[attention.q.name] = [(gram, g) for g in found.queries]
        heads[attention.k.name] = [(keys, g) for g in found.keys]
        heads[attention.v.name] = [(h, None) for h in found.values]
    else:
        gram = collect(block, [site], ("gram",), decision, read=True)[site.name].gram
    for name, linear in site.linears.items():
        decided, exact = decision.tensors[f"{name}.weight"], linear.weight.double()
        errors = [x.double() - exact for x in (decided, near_of(linear))]
        parts = heads.get(name, [(gram, None)])
        size = len(exact) // len(parts)
        for head, (inner, outer) in enumerate(parts):
            own = [e[head * size : (head + 1) * size] for e in errors]
            if outer is not None:
                yield (name, head, *(float((outer @ e @ inner @ e.T).trace()) for e in own))
                continue
            for row in range(size):
                yield (name, row, *(float(e[row] @ inner @ e[row]) for e in own))


@pytest.mark.parametrize(
    ("method", "group_size"),
    [
        (AESPA(steps=60), None),
        (AESPA(steps=0, token_weights=ByKind(vision=0.2)), 8),
        (AESPA(steps=40, sweep=False, damp=1.0, ranges=LeastSquares()), 8),
    ],
)
def test_no_head_and_no_row_is_worse_than_rounding_to_the_nearest(calibrated, method, group_size):
    scheme = Scheme.parse("w3a4", group_size=group_size)
    block = layer_of(calibrated(scheme), method)
    decision, gains = method.solve(block), []
    for site in block.sites:
        for name, part, own, near in per_head(block, site, decision):
            assert own <= near * (1 + 1e-5) + 1e-9, (name, part)
            gains.append(near - own > 0)
        for name, linear in site.linears.items():
            quantizer = copy.deepcopy(linear.weight_quantizer)
            for end in ("low", "high"):
                setattr(quantizer, end, decision.tensors[f"{name}.weight_quantizer.{end}"])
            decided = decision.tensors[f"{name}.weight"]
            torch.testing.assert_close(quantizer(decided), decided)
    assert sum(gains) > 0.8 * len(gains)
    assert decision.scores["aespa"] < decision.scores["minmax"]


def test_learning_gains_on_the_sweep_and_attention_on_layers(calibrated):
    block = layer_of(calibrated(Scheme.parse("w3a16")), AESPA())
    totals = {}
    for name, method in (
        ("sweep", AESPA(steps=0)),
        ("learned", AESPA(steps=60)),
        ("layerwise", AESPA(steps=0, attention=False)),
    ):
        decision, site = method.solve(block), block.sites[0]
        totals[name] = sum(own for *_, own, _ in per_head(block, site, decision))
    assert totals["learned"] < totals["sweep"] < totals["layerwise"]


class OneToken(TokenWeights):
    """One token of the first sample counts, no other."""

    def __call__(self, kind_BT, mask_BT):
        weight = torch.zeros(mask_BT.shape)
        weight[0, 5] = 1.0
        return weight


def test_for_one_query_the_form_is_the_change_of_its_scores_and_bounds_the_outputs(
    toy_batches, grouped, monkeypatch
):
    """Of one query token no mean is split: ``tr(G E H E^T)`` is the change of ``K q``, exactly."""
    made = grouped([{n: x[:1] for n, x in toy_batches[0].items()}], "w4a16")
    method = MinMax(token_weights=OneToken())
    block = layer_of(made, method)
    site = block.sites[0]
    attention = attention_of(block, site)
    assert (attention.heads, attention.kv_heads) == (4, 2)
    found = attention_statistics(block, site, attention)
    gram = collect(block, [site], ("gram",), read=True)[site.name].gram
    seen, plain = [], torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, *a, **k):
        out = plain(query, key, value, *a, **k)
        seen.append((query, key, value, out))
        return out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    name = f"{attention.q.name}.weight"
    weight, call = block.tensor(name), block.x_q[0]
    change = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for tensors in ({}, {name: weight + change}):
            run_full_precision(block.units[0], call.hidden, call, tensors)
    (q0, k0, v0, out0), (q1, *_, out1) = seen
    k0, v0 = (x.repeat_interleave(4 // x.shape[1], dim=1) for x in (k0, v0))
    for head in range(4):
        own = change[6 * head : 6 * head + 6].double()
        form = float((found.queries[head] @ own @ gram @ own.T).trace())
        scores = (k0[0, head] @ (q1 - q0)[0, head, 5]).double()
        assert form == pytest.approx(float(scores.square().sum()), rel=1e-3)
        # the Jacobian of softmax has no singular value above 1/2
        bound = float(torch.linalg.matrix_norm(v0[0, head].double(), 2)) ** 2 / 4 / 6 * form
        moved = float((out1 - out0)[0, head, 5].double().square().sum())
        assert 0 < moved <= bound * (1 + 1e-2)
    for head in range(2):  # every token is a key of that query; rotations keep lengths
        size = sum(float(q0[0, 2 * head + other, 5].double().square().sum()) for other in (0, 1))
        count = int(call.mask.sum())
        assert float(found.keys[head].trace()) == pytest.approx(count * size, rel=1e-3)


def test_weights_of_one_change_nothing(calibrated):
    decisions = []
    for token_weights in (None, ByKind()):
        method = AESPA(steps=20, token_weights=token_weights)
        block = layer_of(calibrated(W3), method)
        decisions.append(method.solve(block))
    one, other = (d.tensors for d in decisions)
    assert one.keys() == other.keys()
    assert all(torch.equal(x, other[n]) for n, x in one.items())


def test_grouped_queries_and_many_heads(grouped, toy_batches):
    made = grouped(toy_batches)
    made.search(TOWERS, AESPA(steps=20), "a")
    assert all("aespa" in objective for objective in made.state.objective)
    for objective in made.state.objective:
        assert objective["aespa"] < objective["minmax"]


def test_an_attention_of_another_form_is_said_and_rounded_like_other_layers(calibrated):
    method, found = AESPA(steps=0), []
    for known in (True, False):
        block = layer_of(calibrated(W3), method)
        if not known:
            block.attentions = {}
        found.append(method.solve(block))
    assert list(found[0].scores) == ["minmax", "aespa"]
    assert list(found[1].scores) == ["minmax", "aespa_layerwise"]
    block = layer_of(calibrated(W3), method)
    plain = AESPA(steps=0, attention=False).solve(block)
    assert list(plain.scores) == ["minmax", "aespa"]
    assert all(torch.equal(x, plain.tensors[n]) for n, x in found[1].tensors.items())
    assert any(not torch.equal(x, plain.tensors[n]) for n, x in found[0].tensors.items())


def test_an_attention_that_calls_no_function_of_the_library_is_not_known(calibrated, monkeypatch):
    block = layer_of(calibrated(W3), AESPA())
    site = block.sites[0]
    module = block.module(attention_of(block, site).o.rpartition(".")[0])

    def forward(hidden_states, **_):
        module.q_proj(hidden_states), module.k_proj(hidden_states)
        return module.o_proj(module.v_proj(hidden_states)), None

    monkeypatch.setattr(module, "forward", forward)
    assert attention_statistics(block, site, attention_of(block, site)) is None
    assert "aespa_layerwise" in AESPA(steps=0).solve(block).scores


def test_a_run_resumed_at_any_block_is_the_same(calibrated, tmp_path):
    method = AESPA(steps=10)
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
        own, other = safetensors.torch.load(content), safetensors.torch.load(again)
        assert own.keys() == other.keys()
        assert all(torch.equal(x, other[n]) for n, x in own.items())
    assert first.state.objective == second.state.objective


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_streamed_model_decides_the_same_and_is_finite(opened, folder, tmp_path, dtype):
    scheme = Scheme.parse("w3a4", group_size=8)
    whole, streamed = (opened(folder, s, scheme, dtype) for s in (False, True))
    for started in (whole, streamed):
        started.blocks.decisions = Decisions(tmp_path / str(id(started)))
        started.collect([1.0] if started is streamed else None)
        started.search(TOWERS, AESPA(steps=10), "a")
        started.structure.enable(True)
    assert whole.state.objective == streamed.state.objective
    assert all(objective["aespa"] > 0 for objective in whole.state.objective)
    assert len(whole.structure.changes) == len(whole.structure.quantized)
    for name in whole.structure.changes:
        decided = whole.model.get_parameter(name)
        assert decided.isfinite().all()
        assert torch.equal(streamed.passes.weights.read(name), decided)


@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_sinks_are_keys_but_count_in_nothing_else(calibrated, sink):
    started = calibrated(Scheme.parse("w3a4", sink=sink))
    block = layer_of(started, AESPA())
    site = block.sites[0]
    attention = attention_of(block, site)
    whole = attention_statistics(block, site, attention)
    for call in block.x_q:
        call.mask = call.mask & (call.sinks[1] < 0)
    again = attention_statistics(block, site, attention)
    torch.testing.assert_close(whole.values, again.values)
    for call in block.x_q:
        call.sinks = (call.sinks[0], torch.full_like(call.sinks[1], -1))
    fewer = attention_statistics(block, site, attention)
    assert float(fewer.queries.diagonal(dim1=1, dim2=2).sum()) < float(
        whole.queries.diagonal(dim1=1, dim2=2).sum()
    )


@pytest.mark.parametrize("name", ["mixtral", "moe_llava_stablelm"])
def test_experts_with_few_tokens_or_none(calibrator, name):  # noqa: F811
    made = calibrator(name, Scheme.parse("w3a4"), count=1, words=4)
    made.search(TOWERS, AESPA(steps=5), "a")
    for objective in made.state.objective:
        assert torch.tensor([objective["aespa"], objective["minmax"]]).isfinite().all()
    assert len(made.structure.changes) == len(made.structure.quantized)


def test_layers_that_overrides_leave_alone_stay(calibrated):
    started = calibrated(Scheme.parse("w3a16", overrides={"(down|k)_proj": {"weight_bits": 16}}))
    started.search(["language"], AESPA(steps=0), "a")
    changed = set(started.structure.changes)
    assert not any("down_proj" in name or "k_proj" in name for name in changed)
    assert any("q_proj" in name for name in changed)


def test_inputs_are_those_behind_the_quantizer(calibrated):
    block = layer_of(calibrated(Scheme.parse("w3a3")), AESPA())
    site = block.sites[0]
    found = attention_statistics(block, site, attention_of(block, site))
    rows = [s.hidden[s.mask].double() for _, s in inputs(block, site, read=True)]
    exact = [s.hidden[s.mask].double() for _, s in inputs(block, site)]
    assert not torch.equal(rows[0], exact[0])
    # what a token averages over lies within what it reads: no direction is new
    width = rows[0].shape[1]
    grid = torch.cat(rows).unique().numel()
    assert grid <= 8 < torch.cat(exact).unique().numel()
    assert found.values.shape == (2, width, width)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="steps -1"):
        AESPA(steps=-1)
    with pytest.raises(InputError, match="damp 0"):
        AESPA(damp=0)
    with pytest.raises(InputError, match="changes weights"):
        AESPA(ranges=GPTQ())
    with pytest.raises(InputError, match="aespa decides quantized weights"):
        AESPA().check(Scheme.parse("w16a8"))
    assert AESPA(ranges=MinMax()).settings()["ranges"]["class"] == "MinMax"
