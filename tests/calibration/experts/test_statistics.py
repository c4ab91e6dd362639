"""Experts are calibrated each on the tokens that reach it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.few_tokens import FEW_TOKENS
from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.methods import SequentialSearch
from qvlm_lightning.quant.scheme import Scheme
from tests.wiring.plain import left_padded


def reached(model: Any, name: str, data: list[dict[str, Tensor]]) -> dict[int, list[Tensor]]:
    """Return expert -> inputs of the tokens that the router of a layer sends there, by loops."""
    block = model.get_submodule(name)
    router = block.router if hasattr(block, "router") else block.gate
    found: dict[int, list[Tensor]] = {}
    for batch in data:
        seen = []
        handle = block.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        model(**model_inputs(batch, torch.device("cpu")))
        handle.remove()
        for row in range(4):
            for place in range(seen[0].shape[1]):
                if batch["attention_mask"][row, place]:
                    x = seen[0][row, place]
                    rates = (router.weight @ x).tolist()
                    for expert in sorted(range(4), key=lambda e: -rates[e])[:2]:
                        found.setdefault(expert, []).append(x)
    return found


@pytest.mark.parametrize("name", ["qwen2_moe", "moe_llava_stablelm"])
def test_every_expert_has_the_range_of_its_own_tokens(name, monkeypatch, make, batches, calibrator):
    monkeypatch.setattr("qvlm_lightning.calibration.few_tokens.FEW_TOKENS", 1)
    scheme = Scheme.parse("w4a4", activation_mode="static_channel")
    made = calibrator(name, scheme)
    plain, _ = make(name)
    layer = "model.language_model.layers.0.mlp"
    wanted = reached(plain, layer, batches())
    counts = {}
    for site in made.structure.sites:
        if site.route is None or site.route.role != "mlp_in" or not site.name.startswith(layer):
            continue
        tokens = torch.stack(wanted[site.route.index])
        counts[site.route.index] = len(tokens)
        observer = made.statistics.observers[site.name]
        assert observer.tokens == len(tokens)
        assert torch.allclose(site.quantizer.low, tokens.amin(0), atol=1e-6)
        assert torch.allclose(site.quantizer.high, tokens.amax(0), atol=1e-6)
    total = sum(int(b["attention_mask"].sum()) for b in batches())
    assert sum(counts.values()) == 2 * total
    assert len(counts) == 4
    assert made.structure.notes == []


def test_statistics_do_not_depend_on_the_batches(make, batches, calibrator):
    whole = calibrator("qwen2_moe")
    model, family = make("qwen2_moe")
    single = []
    for batch in batches():
        images = iter(batch["pixel_values"])
        for row in range(4):
            length = int(batch["attention_mask"][row].sum())
            one = {n: batch[n][row : row + 1] for n in ("has_image", "sample_index")}
            names = ("input_ids", "attention_mask", "labels")
            one |= {n: batch[n][row : row + 1, :length] for n in names}
            if batch["has_image"][row]:
                one["pixel_values"] = next(images)[None]
            single.append(one)
    alone = Calibrator(model, family, Scheme.parse("w4a4"), single, single[:1])
    alone.collect()
    for site in whole.structure.sites:
        mine, theirs = (c.statistics.observers[site.name] for c in (whole, alone))
        assert mine.tokens == theirs.tokens
        for left, right in zip(mine.ranges([1.0, 0.98]), theirs.ranges([1.0, 0.98]), strict=True):
            assert torch.allclose(left, right, atol=1e-5)


def test_an_expert_with_few_tokens_takes_over_the_range_of_its_layer(make, batches, calibrator):
    made = calibrator("qwen2_moe", words=6)
    plain, _ = make("qwen2_moe")
    layer = "model.language_model.layers.1.mlp"
    counts = {e: len(x) for e, x in reached(plain, layer, batches(words=6)).items()}
    few = [e for e in range(4) if counts.get(e, 0) < FEW_TOKENS]
    assert few, "the test is about such experts"
    noted = [n for n in made.structure.notes if n.startswith(layer)]
    assert [n.partition(":")[0] for n in noted] == [f"{layer}.experts.{e}" for e in few]
    for note, expert in zip(noted, few, strict=True):
        assert f"saw {counts.get(expert, 0)} calibration tokens, fewer than {FEW_TOKENS}" in note
    sites = [
        s
        for s in made.structure.sites
        if s.route is not None and s.route.role == "down_in" and s.name.startswith(layer)
    ]
    lows = {float(s.quantizer.low) for s in sites if s.route and s.route.index in few}
    assert len(lows) == 1
    assert lows.pop() == min(float(s.quantizer.low) for s in sites)
    made.collect()
    assert len(made.structure.notes) == len(set(made.structure.notes)), "named once"


def test_an_expert_that_no_token_reaches_is_calibrated_too(make, batches):
    model, family = make("moe_llava_stablelm")
    layer = model.model.language_model.layers[0]
    layer.post_attention_layernorm.bias[0] = 100  # whatever the token
    layer.mlp.router.weight[3] = 0
    layer.mlp.router.weight[3, 0] = -10
    made = Calibrator(model, family, Scheme.parse("w4a4"), batches(), batches()[:1])
    made.collect()
    name = "model.language_model.layers.0.mlp.experts.3"
    (note,) = [n for n in made.structure.notes if n.startswith(f"{name}:")]
    assert "saw 0 calibration tokens" in note
    made.structure.enable(True)
    made.search(["vision", "projector", "language"], SequentialSearch(), "final")
    assert made.state.percentiles[f"{name}.mlp_in"] == 1.0, "nothing to choose by"


@pytest.mark.parametrize("name", ["qwen2_moe", "moe_llava_stablelm"])
def test_peaks_of_an_expert_have_the_positions_of_its_own_tokens(name, make, batches):
    """Padding is in front of every other batch."""
    data = [b if i % 2 else left_padded(b) for i, b in enumerate(batches())]
    model, family = make(name)
    made = Calibrator(model, family, Scheme.parse("w4a4"), data, data[:1])
    made.collect()
    plain, _ = make(name)
    layer = "model.language_model.layers.0.mlp"
    magnitudes: dict[tuple[int, int], float] = {}
    for batch in data:
        seen: list[Tensor] = []
        handle = plain.get_submodule(layer).register_forward_pre_hook(
            lambda m, args, seen=seen: seen.append(args[0])
        )
        plain(**model_inputs(batch, torch.device("cpu")))
        handle.remove()
        for row, sample in enumerate(batch["sample_index"].tolist()):
            real = [p for p in range(seen[0].shape[1]) if batch["attention_mask"][row, p]]
            for position, place in enumerate(real):
                magnitudes[sample, position] = float(seen[0][row, place].abs().max())
    wanted = {e: len(x) for e, x in reached(plain, layer, data).items()}
    peaks, found = made.statistics.peaks, dict.fromkeys(wanted, 0)
    for site in made.structure.sites:
        if site.route is None or site.route.role != "mlp_in" or not site.name.startswith(layer):
            continue
        for sample, kept in peaks.of(site.name).items():
            places = peaks.places(site.name).get(sample, torch.arange(len(kept)))
            found[site.route.index] += len(kept)
            for position, magnitude in zip(places.tolist(), kept.tolist(), strict=True):
                assert magnitude == pytest.approx(magnitudes[sample, position], abs=1e-6)
        peak = peaks.peak(site.name)
        assert peak.worst == pytest.approx(magnitudes[peak.sample, peak.position], abs=1e-6)
    assert found == wanted
