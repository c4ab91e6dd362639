"""Which part and which layer hurts, against one sample and one position at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.calibration import sensitivity as module
from qvlm_lightning.calibration.sensitivity import (
    Sensitivity,
    answer_positions,
    sensitivity,
    sensitivity_report,
)
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.methods import JointSearch
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.quant.scheme import Scheme


def quantize_below(model: nn.Module, prefixes: list[str]) -> None:
    """Switch on every Linear layer inside ``prefixes`` by hand, and no other."""
    for name, linear in model.named_modules():
        if isinstance(linear, QuantLinear):
            on = any(name.startswith(f"{prefix}.") for prefix in prefixes)
            linear.enabled = linear.site.enabled = on


def logits_of(model: nn.Module, batch: dict[str, Tensor], row: int) -> Tensor:
    """Return [T, V] of one sample of a batch by itself, without padding."""
    length = int(batch["attention_mask"][row].sum())
    inputs = {"input_ids": batch["input_ids"][row : row + 1, :length]}
    if batch["has_image"][row]:
        image = int(batch["has_image"][:row].sum())
        inputs["pixel_values"] = batch["pixel_values"][image : image + 1]
    return model(**inputs).logits[0].double()


@torch.no_grad()
def slow_kl(calibrator: Calibrator, prefixes: list[str], batches: list[Any]) -> float:
    """Return the mean divergence, word by word of the vocabulary."""
    model, found = calibrator.model, []
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            quantize_below(model, [])
            exact = logits_of(model, batch, row)
            quantize_below(model, prefixes)
            rough = logits_of(model, batch, row)
            for t in range(len(exact) - 1):
                if batch["labels"][row, t + 1] != -100:
                    p, q = (x[t].exp() / x[t].exp().sum() for x in (exact, rough))
                    terms = [float(a) * math.log(a / b) for a, b in zip(p, q, strict=True)]
                    found.append(sum(terms))
    return sum(found) / len(found)


@pytest.fixture
def searched(calibrated):
    calibrator = calibrated()
    calibrator.search(list(calibrator.structure.towers), JointSearch(per="layer"), "first")
    calibrator.structure.enable(True)
    return calibrator


def test_equals_a_loop_over_samples_positions_and_words(searched, toy_batches):
    found = sensitivity(searched)
    tower = [f"model.vision_tower.encoder.layers.{i}" for i in range(2)]
    decoder = [f"model.language_model.layers.{i}" for i in range(4)]
    projector = ["model.multi_modal_projector"]
    parts = {"vision": tower, "projector": projector, "language": decoder}
    assert list(found.layers) == [*tower, *projector, *decoder]
    assert list(found.parts) == list(parts)
    for part, prefixes in parts.items():
        slow = slow_kl(searched, prefixes, toy_batches[:2])
        assert slow > 1e-4
        assert found.parts[part] == pytest.approx(slow, rel=1e-3), part
    for name, kl in found.layers.items():
        assert kl == pytest.approx(slow_kl(searched, [name], toy_batches[:2]), rel=1e-3), name
    every = slow_kl(searched, ["model"], toy_batches[:2])
    assert found.everything == pytest.approx(every, rel=1e-3)
    # two labels in each of eight samples
    assert found.positions == 16
    # full precision, everything, two parts of several layers, the projector, six layers
    assert found.forwards == 2 * (1 + 1 + 2 + 1 + 6)
    assert found.seconds > 0


def test_quantizers_are_left_as_they_were(searched):
    searched.structure.enable(False, {"vision"})
    sensitivity(searched)
    assert searched.structure.enabled() == {"vision": False, "projector": True, "language": True}
    linears = [x for site in searched.structure.sites for x in site.linears.values()]
    assert all(linear._weight_cache is None for linear in linears), "no quantized weight is kept"


def test_a_part_at_16_bits_does_not_hurt(calibrated):
    calibrator = calibrated(Scheme.parse("vision-w4a4_projector-w16a16_language-w16a16"))
    found = sensitivity(calibrator)
    assert found.parts["projector"] == found.parts["language"] == 0
    assert found.parts["vision"] == found.everything > 0
    assert set(found.layers) == {u.name for u in calibrator.structure.towers["vision"].units}


def test_everything_at_16_bits_does_not_hurt(searched):
    for site in searched.structure.sites:
        site.quantizer.num_bits = 16
        for linear in site.linears.values():
            linear.weight_quantizer.num_bits = 16
    found = sensitivity(searched)
    assert found.everything == 0
    assert found.parts == {"vision": 0, "projector": 0, "language": 0}
    assert set(found.layers.values()) == {0}


def test_the_worst_layer_is_the_one_that_was_broken(searched):
    broken = searched.structure.towers["language"].units[2]
    for site in broken.sites:
        site.quantizer.set_range(torch.tensor(-1e-3), torch.tensor(1e-3), 1.0)
    report = sensitivity_report(searched)
    assert report["layers"][0]["name"] == broken.name
    kls = [layer["kl"] for layer in report["layers"]]
    assert kls == sorted(kls, reverse=True)
    assert report["unit"] == "nats"
    assert report["parts"]["language"] > max(report["parts"][p] for p in ("vision", "projector"))


def test_a_report_holds_ten_layers():
    layers = {f"layer{i}": float((7 * i) % 12) for i in range(12)}
    worst = Sensitivity(0.0, {}, layers, 1, 1, 0.0).worst()
    assert [kl for _, kl in worst] == [11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert worst[0] == ("layer5", 11.0)


@pytest.mark.parametrize("searched_batches", [1, 2])
def test_a_streamed_model_says_the_same(opened, folder, toy_batches, tmp_path, searched_batches):
    found = []
    for streamed in (False, True):
        calibrator = opened(folder, streamed)
        calibrator.search_batches = calibrator.search_batches[:searched_batches]
        if isinstance(calibrator.passes, StreamedModel):
            calibrator.passes.spill = tmp_path / "spilled"
        calibrator.collect([1.0])
        calibrator.structure.enable(True)
        found.append(sensitivity(calibrator))
    memory, streamed = found
    assert streamed.parts == pytest.approx(memory.parts, rel=1e-4)
    assert streamed.layers == pytest.approx(memory.layers, rel=1e-4)
    assert streamed.everything == pytest.approx(memory.everything, rel=1e-4)
    assert all(p.is_meta for n, p in calibrator.model.named_parameters() if n.endswith(".weight"))
    assert list((tmp_path / "spilled").iterdir()) == []


def test_a_changed_weight_counts_with_its_layer_only(opened, folder):
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    found: dict[tuple[bool, bool], Sensitivity] = {}
    for streamed in (False, True):
        calibrator = opened(folder, streamed)
        calibrator.collect([1.0])
        found[streamed, False] = sensitivity(calibrator)
        shape = calibrator.model.get_parameter(name).shape
        decided = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        changed = (lambda decided=decided: decided) if streamed else decided
        calibrator.structure.changes.set(calibrator.model, "language", name, changed)
        calibrator.structure.enable(True)
        found[streamed, True] = sensitivity(calibrator)
    before, after = found[False, False], found[False, True]
    same = {layer for layer, kl in after.layers.items() if kl == before.layers[layer]}
    assert set(after.layers) - same == {name.removesuffix(".mlp.down_proj.weight")}
    assert after.parts["vision"] == before.parts["vision"]
    assert after.parts["language"] != before.parts["language"]
    assert found[True, True].layers == pytest.approx(after.layers, rel=1e-4)
    assert found[True, True].parts == pytest.approx(after.parts, rel=1e-4)


@pytest.mark.parametrize("streamed", [False, True])
def test_progress_rises_and_ends_once(opened, folder, streamed):
    calls: list[tuple[str, int, int]] = []
    calibrator = opened(folder, streamed)
    calibrator.collect([1.0])
    calibrator.progress = lambda *call: calls.append(call)
    found = sensitivity(calibrator)
    variants = found.forwards // 2
    done = [done for _, done, _ in calls]
    assert {(what, of) for what, _, of in calls} == {("sensitivity", variants)}
    assert done == sorted(done)
    assert done.count(variants) == 1


def test_hidden_states_that_wait_are_no_more_than_those_of_the_calibration(opened, folder):
    calibrator = opened(folder)
    calibrator.collect([1.0])
    calibrator.search_batches = calibrator.search_batches[:1]  # 4 of 12 pairs
    waiting: list[int] = []
    logits = calibrator.passes.logits

    def counted(batches: Any, *rest: Any) -> None:
        waiting.append(sum(len(batch["sample_index"]) for batch in batches.values()))
        logits(batches, *rest)

    calibrator.passes.logits = counted
    sensitivity(calibrator)
    assert max(waiting) == 12
    assert sum(waiting) == 4 * 11


def test_processes_share_the_batches(searched, monkeypatch):
    alone = sensitivity(searched)
    tables: list[Tensor] = []
    monkeypatch.setattr(module, "all_sum", lambda table: tables.append(table) or table)
    for rank in (0, 1):
        monkeypatch.setattr(module, "world", lambda rank=rank: (rank, 2))
        sensitivity(searched)
    assert all((table == 0).any() and (table > 0).any() for table in tables)
    together = sum(tables).sum(dim=1) / alone.positions
    assert float(together[1]) == alone.everything


def test_samples_without_an_answer_count_their_last_token(make):
    batch = make(0)
    assert answer_positions(batch).sum(dim=1).tolist() == [2, 2, 2, 2]
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        # the last two tokens are the answer
        assert answer_positions(batch)[row].nonzero().flatten().tolist() == [length - 3, length - 2]
    batch["labels"][1] = -100
    assert answer_positions(batch)[1].nonzero().flatten().tolist() == [lengths[1] - 1]
    del batch["labels"]
    assert answer_positions(batch).int().argmax(dim=1).tolist() == [n - 1 for n in lengths]
    assert answer_positions(batch).sum() == 4
