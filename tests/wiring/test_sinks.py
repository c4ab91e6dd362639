"""Sink tokens of the toy against a plain copy that runs a prompt's rest on a key-value cache."""

import pytest
import torch

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.generate import generate
from qvlm_lightning.methods import SequentialSearch
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.calibration.conftest import IMAGE, make_batch
from tests.wiring.conftest import DoubleToy
from tests.wiring.plain import (
    DECODER,
    LINEARS,
    Plain,
    Trace,
    double,
    left_padded,
    of_pool,
    tower_of,
)

BEGIN, SECOND, LATER = 1, 6, 17
LANGUAGE = PartScheme(4, 4)
OFF = PartScheme(16, 16)


def with_second(batch):
    """Return the batch with the same second token in every sample."""
    out = dict(batch)
    for name, value in (("input_ids", SECOND), ("attention_mask", 1), ("labels", -100)):
        x = batch[name]
        out[name] = torch.cat([x[:, :1], torch.full_like(x[:, :1], value), x[:, 1:]], dim=1)
    return out


@pytest.fixture
def prompts():
    """Batches whose samples begin with the same two tokens; LATER is in many of them."""
    batches = [with_second(make_batch(0, text=5)), with_second(make_batch(4, text=7))]
    for batch in batches:
        ids = batch["input_ids"]
        text = (ids > IMAGE) & (ids != SECOND)
        batch["input_ids"] = torch.where(text & (ids % 3 == 0), LATER, ids)
    return [double(batches[0]), double(left_padded(batches[1]))]


class MassiveToy(DoubleToy):
    """The toy with a first token, a second and a recurring one that are massive in layer 1."""

    tokens = (BEGIN, SECOND, LATER)

    def load_model(self):
        model = super().load_model()
        layer, embeddings = (
            model.model.language_model.layers[1],
            model.get_input_embeddings().weight,
        )
        with torch.no_grad():
            # one channel of the residual says who is massive, one of the MLP makes it so
            embeddings[:, 0] = 0
            embeddings[list(self.tokens), 0] = 40.0
            for earlier in model.model.language_model.layers[:2]:
                earlier.self_attn.o_proj.weight[0] *= 1e-3
                earlier.mlp.down_proj.weight[0] *= 1e-3
            layer.mlp.gate_proj.weight[0] *= 1e-3
            layer.mlp.up_proj.weight[0] *= 1e-3
            layer.mlp.gate_proj.weight[0, 0] = layer.mlp.up_proj.weight[0, 0] = 6.0
        return model


def calibrated(prompts, sink, mode="static_tensor", family=None):
    family = family or MassiveToy()
    scheme = Scheme(vision=OFF, projector=OFF, language=LANGUAGE, sink=sink, activation_mode=mode)
    calibrator = Calibrator(family.load_model(), family, scheme, prompts, prompts)
    calibrator.collect()
    calibrator.structure.enable(True)
    return calibrator


def sample(batch, row):
    """Return one sample without its padding."""
    real = batch["attention_mask"][row].bool()
    inputs = {"input_ids": batch["input_ids"][row : row + 1, real]}
    if bool(batch["has_image"][row]):
        place = int(batch["has_image"][:row].sum())
        inputs["pixel_values"] = batch["pixel_values"][place : place + 1]
    return inputs, real


def without_sinks(batch, sinks):
    """Return which tokens of a batch count, found one by one."""
    counted = batch["attention_mask"].bool().clone()
    for row in range(len(counted)):
        real = counted[row].nonzero()[:, 0].tolist()
        for rank, place in enumerate(real):
            if rank < len(sinks.prefix) or int(batch["input_ids"][row, place]) in sinks.tokens:
                counted[row, place] = False
    return counted


@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_sinks_are_those_that_are_massive(prompts, sink):
    sinks = calibrated(prompts, sink).structure.sinks
    assert sinks.prefix == (BEGIN, SECOND)
    assert sinks.tokens == ((LATER,) if sink == "bypass" else ())


def test_a_model_without_massive_tokens_has_the_first_one(prompts):
    for sink in ("prefix", "bypass"):
        sinks = calibrated(prompts, sink, family=DoubleToy()).structure.sinks
        assert (sinks.prefix, sinks.tokens) == ((BEGIN,), ())


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel"])
@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_ranges_are_those_of_all_other_tokens(prompts, sink, mode):
    calibrator = calibrated(prompts, sink, mode)
    sinks, plain = calibrator.structure.sinks, Plain(MassiveToy().load_model(), mode)
    pools = {site: [] for site in LINEARS if tower_of(site) == "language"}
    for batch in prompts:
        trace, counted = plain.run(batch, {}), without_sinks(batch, sinks)
        for site, pool in pools.items():
            pool += [x[kept] for x, kept in zip(trace.inputs[site].float(), counted, strict=True)]
    for site in calibrator.structure.towers["language"].sites:
        low, high = of_pool(mode, site.name, pools[site.name], 1.0)
        assert torch.equal(site.quantizer.low, low)
        assert torch.equal(site.quantizer.high, high)


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel", "dynamic_token"])
def test_prefix_is_a_full_precision_cache_in_front_of_a_quantized_prompt(prompts, mode):
    calibrator = calibrated(prompts, "prefix", mode)
    sites = calibrator.structure.towers["language"].sites
    if mode == "dynamic_token":  # at a ratio of 1, a token's own absmax lies between two codes
        for site in sites:
            site.quantizer.set_range(torch.tensor(-0.93), torch.tensor(0.93), 0.93)
    ranges = {site.name: (site.quantizer.low, site.quantizer.high) for site in sites}
    plain = Plain(MassiveToy().load_model(), mode)
    for batch in prompts:
        given = calibrator.model(**model_inputs(batch)).logits
        for row in range(len(given)):
            inputs, real = sample(batch, row)
            ids = inputs.pop("input_ids")
            cache = plain.model(input_ids=ids[:, :2], use_cache=True).past_key_values
            with plain._hooks(Trace(), ranges, ""):
                rest = plain.model(input_ids=ids[:, 2:], past_key_values=cache, **inputs).logits
            torch.testing.assert_close(given[row][real][2:], rest[0], rtol=1e-6, atol=1e-6)


def test_a_search_runs_behind_the_stored_keys_and_values(prompts):
    """Decisions of a search are judged by what the quantized model computes as a whole."""
    calibrator = calibrated(prompts, "prefix")
    calibrator.search(["language"], SequentialSearch(objective="plain"), "search")
    last = calibrator.state.objective[-1]
    plain, wrong, power = MassiveToy().load_model(), 0.0, 0.0
    outputs = []
    for model in (calibrator.model, plain):
        layer = model.get_submodule(f"{DECODER}.3")
        seen = []
        handle = layer.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        for batch in prompts:
            model(**model_inputs(batch))
        handle.remove()
        outputs.append([x[0] if isinstance(x, tuple) else x for x in seen])
    for batch, ours, exact in zip(prompts, *outputs, strict=True):
        counted = without_sinks(batch, calibrator.structure.sinks)
        wrong += float((ours - exact)[counted].square().sum())
        power += ours[counted].numel()
    assert last["sequential"] == pytest.approx(wrong / power, rel=1e-6)


@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_answers_are_those_of_a_model_without_a_cache(prompts, sink):
    calibrator = calibrated(prompts, sink)
    batch = {n: x for n, x in prompts[1].items() if n != "labels"}
    answers = generate(calibrator.model, batch, {2}, 4)
    for row, tokens in enumerate(answers.rows()):
        inputs, _ = sample(batch, row)
        expected = []
        while len(expected) < 4:
            token = int(calibrator.model(**inputs, use_cache=False).logits[0, -1].argmax())
            if token == 2:
                break
            expected.append(token)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        assert tokens == expected


def test_bypass_quantizes_no_sink_and_every_other_token(prompts):
    calibrator = calibrated(prompts, "bypass")
    site = next(s for s in calibrator.structure.towers["language"].sites if "down" in s.name)
    seen = []
    site.quantizer.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    for batch in prompts:
        calibrator.model(**model_inputs(batch))
        (x, out), counted = seen.pop(), without_sinks(batch, calibrator.structure.sinks)
        left = batch["attention_mask"].bool() & ~counted
        assert torch.equal(out[left], x[left])
        low, high = site.quantizer.low, site.quantizer.high
        levels = (out[counted].float() / ((high - low) / 15)).round() * ((high - low) / 15)
        assert torch.allclose(out[counted].float(), levels, atol=1e-5)


def test_prefix_needs_constant_first_tokens(prompts):
    batch = {n: x.clone() for n, x in prompts[0].items()}
    batch["input_ids"][2, 0] = 9
    with pytest.raises(InputError, match="begins with token 1, another with 9"):
        calibrated([batch], "prefix")
    assert calibrated([batch], "bypass").structure.sinks.prefix == (-1,)
    batch["input_ids"][2, 0] = IMAGE
    with pytest.raises(InputError, match="begins with an image"):
        calibrated([batch], "prefix")
