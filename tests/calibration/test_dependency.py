"""The dependency measured on a model: what it follows and what it counts; E7, E8 and Q14."""

import math

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.calibration import Calibrator, dependency
from qvlm_lightning.calibration.dependency import dependency_counts, draw_triples, pick_tokens
from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.methods import JointSearch
from qvlm_lightning.methods.proxies import (
    ConditionalEntropy,
)
from qvlm_lightning.quant.scheme import Scheme

TOWERS = ("vision", "projector", "language")
W4A4 = Scheme.parse("w4a4")


def counts_of(
    calibrator: Calibrator, tower: str = "language", quantized: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    return dependency_counts(
        calibrator.passes,
        calibrator.family,
        calibrator.structure,
        calibrator.structure.towers[tower],
        calibrator.statistics,
        calibrator.batches,
        quantized=set(quantized),
        samples=2000,
        seed=calibrator.seed,
    )


# --- the partition follows the model, not the position --------------------------------------------


def adding(model: nn.Module, layer: int) -> list[nn.Linear]:
    """Return what a decoder layer adds to the residual stream with."""
    found = model.model.language_model.layers[layer]
    return [found.self_attn.o_proj, found.mlp.down_proj]


def test_other_weights_make_other_partitions(start, build, toy_batches):
    """The same architecture, weights of other sizes."""
    found = set()
    for seed in range(10):
        model = build(seed)  # seeds torch as well
        for layer, gain in enumerate(torch.empty(4).uniform_(-2, 3).exp().tolist()):
            for linear in adding(model, layer):
                linear.weight.mul_(gain)
        calibrator = start(model, toy_batches)
        calibrator.repartition(["language"], ConditionalEntropy(), max_depth=2)
        found.add(str(calibrator.state.partition["language"]))
    assert len(found) >= 3


@pytest.mark.parametrize("edge", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_layer_that_scrambles_its_input_is_merged_with_the_next(
    start, build, toy_batches, seed, edge
):
    """One layer adds much to the residual stream, the others little, wherever it stands."""
    model = build(seed)
    for source in (
        model.model.language_model.embed_tokens,
        model.model.multi_modal_projector.linear_2,
    ):
        source.weight.mul_(10)
    for layer in range(4):
        for linear in adding(model, layer):
            linear.weight.mul_(20.0 if layer == edge else 0.1)
    calibrator = start(model, toy_batches)
    calibrator.repartition(["language"], ConditionalEntropy(), max_depth=2)
    alone = [[i, i] for i in range(4) if i not in (edge, edge + 1)]
    assert calibrator.state.partition["language"] == sorted([[edge, edge + 1], *alone])
    others = [d for k, d in enumerate(calibrator.state.dependency["language"]) if k != edge]
    assert calibrator.state.dependency["language"][edge] > 2 > 1 > max(others)


def test_more_noise_of_one_layer_means_more_dependency(start, build, toy_batches):
    found = []
    for factor in (0.01, 0.1, 1.0, 10.0):
        model = build(0)
        for linear in adding(model, 1):
            linear.weight.mul_(factor)
        calibrator = start(model, toy_batches)
        calibrator.repartition(["language"], ConditionalEntropy())
        found.append(calibrator.state.dependency["language"][1])
    assert found == sorted(found)
    assert found[0] < 0.2 < 1.0 < found[-1] < math.log(16)


# --- what is counted ------------------------------------------------------------------------------


def test_every_triple_is_counted_once_per_edge(calibrated):
    calibrator = calibrated()
    vision, language = counts_of(calibrator, "vision"), counts_of(calibrator)
    assert vision["all"].shape == (1, 16, 16)
    assert set(vision) == {"all"}
    assert language["all"].shape == (3, 16, 16)
    for counts in (vision["all"], language["all"]):
        assert counts.dtype == torch.int64
        assert counts.sum(dim=(1, 2)).eq(2000).all()
    assert torch.equal(language["image"] + language["text"], language["all"])
    assert language["image"].sum() > 0


def test_a_counted_pair_is_the_pair_of_codes_of_neighbouring_layers(calibrated, toy_batches):
    """Against loops over all tokens and channels, which the draw tends to."""
    calibrator = calibrated()
    exact = torch.zeros(16, 16, dtype=torch.float64)
    calibrator.structure.enable(False)
    layers = calibrator.model.model.language_model.layers
    inputs: list[Tensor] = []
    for layer in layers[:2]:
        layer.self_attn.q_proj.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    for batch in toy_batches:
        inputs.clear()
        calibrator.model(**model_inputs(batch, torch.device("cpu")))
        mask = batch["attention_mask"].bool()
        codes = []
        for x, unit in zip(inputs, calibrator.structure.towers["language"].units, strict=False):
            low, high = calibrator.statistics.channel_range(unit.sites[0])
            low, high = low.clamp_max(0), high.clamp_min(0)
            step = (high - low) / 15
            codes.append(((x / step).round() + (-low / step).round()).clamp(0, 15).long())
        for row in range(len(mask)):
            pairs = torch.stack([c[row][mask[row]].flatten() for c in codes])
            weight = 1 / pairs.shape[1]  # samples count alike, however long they are
            for a, b in pairs.T.tolist():
                exact[a, b] += weight
    drawn = dependency_counts(
        calibrator.passes,
        calibrator.family,
        calibrator.structure,
        calibrator.structure.towers["language"],
        calibrator.statistics,
        toy_batches,
        set(),
        samples=200_000,
    )["all"][0].double()
    assert float((drawn / drawn.sum() - exact / exact.sum()).abs().max()) < 2e-3


def test_tokens_are_drawn_from_what_the_mask_leaves():
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()
    sample, fraction, channel = draw_triples(3, 7, 6000, seed=1)
    token = pick_tokens(mask, sample, fraction, 6)
    assert mask[sample, token].all()
    assert set(channel.tolist()) == set(range(7))
    for row in range(3):
        valid = mask[row].nonzero().flatten()
        share = torch.stack([(token[sample == row] == t).float().mean() for t in valid])
        assert torch.allclose(share, torch.full_like(share, 1 / len(valid)), atol=0.05)
    edge = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert pick_tokens(mask, torch.tensor([0, 0]), edge, 6).tolist() == [2, 5]
    assert pick_tokens(None, torch.tensor([0, 0]), edge, 6).tolist() == [0, 5]


def repadded(batch: dict[str, Tensor], token: int, side: str = "right") -> dict[str, Tensor]:
    """Return the batch with ``token`` as padding, on the given side."""
    batch = dict(batch)
    mask = batch["attention_mask"].bool()
    batch["input_ids"] = batch["input_ids"].masked_fill(~mask, token)
    if side == "left":
        order = mask.int().argsort(dim=1, stable=True)
        for name in ("input_ids", "attention_mask", "labels"):
            batch[name] = batch[name].gather(1, order)
    return batch


@pytest.mark.parametrize("side", ["left", "right"])
def test_e8_q14_content_of_padding_changes_nothing(start, build, toy_batches, side):
    found = []
    for token in (0, 17, 39):
        calibrator = start(build(), [repadded(b, token, side) for b in toy_batches])
        ranges = [calibrator.statistics.ranges(s, [1.0, 0.98]) for s in calibrator.structure.sites]
        counts = counts_of(calibrator)["all"]
        calibrator.repartition(TOWERS, ConditionalEntropy(), threshold=0.0)
        calibrator.search(TOWERS, JointSearch([1.0, 0.99, 0.98], per="layer"), "all")
        state = calibrator.state
        found.append((ranges, counts, state.partition, state.percentiles, state.objective))
    for other in found[1:]:
        for (low, high), (low_other, high_other) in zip(found[0][0], other[0], strict=True):
            assert torch.equal(low, low_other)
            assert torch.equal(high, high_other)
        assert torch.equal(other[1], found[0][1])
        assert other[2:] == found[0][2:]


def regrouped(batches: list[dict[str, Tensor]], size: int, extra: int) -> list[dict[str, Tensor]]:
    """Return the same samples in float64, in batches of ``size``, with ``extra`` more padding."""
    single = []
    for batch in batches:
        images = iter(batch.get("pixel_values", torch.zeros(0)))
        for row in range(len(batch["sample_index"])):
            length = int(batch["attention_mask"][row].sum())
            names = ("input_ids", "attention_mask", "labels")
            one = {name: batch[name][row, :length] for name in names}
            one |= {name: batch[name][row] for name in ("sample_index", "has_image")}
            one["image"] = next(images) if batch["has_image"][row] else None
            single.append(one)
    made = []
    for first in range(0, len(single), size):
        rows = single[first : first + size]
        width = max(len(r["input_ids"]) for r in rows) + extra
        batch = {}
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            padded = [
                nn.functional.pad(r[name], (0, width - len(r[name])), value=fill) for r in rows
            ]
            batch[name] = torch.stack(padded)
        for name in ("sample_index", "has_image"):
            batch[name] = torch.stack([r[name] for r in rows])
        if any(r["image"] is not None for r in rows):
            batch["pixel_values"] = torch.stack(
                [r["image"] for r in rows if r["image"] is not None]
            ).double()
        made.append(batch)
    return made


@pytest.mark.parametrize(("size", "extra"), [(1, 0), (3, 2), (5, 0), (12, 7)])
def test_e7_grouping_into_batches_changes_no_count(start, build, toy_batches, size, extra):
    """In float64: in float32 a product of another shape may round to another code."""
    one = start(build().double(), regrouped(toy_batches, 4, 0))
    other = start(build().double(), regrouped(toy_batches, size, extra))
    for tower in ("vision", "language"):
        for kind, counts in counts_of(one, tower).items():
            assert torch.equal(counts_of(other, tower)[kind], counts)


def test_e7_shares_of_processes_add_up(calibrated, monkeypatch):
    calibrator = calibrated()
    whole = counts_of(calibrator)
    for size in (2, 3, 5):
        shares = []
        for rank in range(size):
            monkeypatch.setattr(dependency, "world", lambda rank=rank, size=size: (rank, size))
            shares.append(counts_of(calibrator))
        for kind, counts in whole.items():
            assert torch.equal(sum(share[kind] for share in shares), counts)


def test_a9_the_tower_itself_is_measured_unquantized_behind_the_towers_that_are(calibrated):
    calibrator = calibrated()
    plain = counts_of(calibrator)["all"]
    calibrator.structure.enable(True)
    assert torch.equal(counts_of(calibrator)["all"], plain)
    assert torch.equal(counts_of(calibrator, quantized=("language",))["all"], plain)
    assert not torch.equal(counts_of(calibrator, quantized=("vision",))["all"], plain)
    assert all(calibrator.structure.enabled().values())
