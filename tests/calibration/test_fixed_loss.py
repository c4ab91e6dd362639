"""The loss of the whole calibration set before, between and after the epochs."""

import math
from typing import Any

import pytest
import torch

from qvlm_lightning.calibration import LossWeights, VisualEncoderOptimization

TERMS = ("reg", "ent", "err", "total")
WEIGHTS = LossWeights(0.3, 0.7, 2.0)
LEVELS = 16


def moments(module: VisualEncoderOptimization) -> list[tuple[int, str]]:
    return [(m["epoch"], m["after"]) for m in module.state.loss_fixed]


def dependency(x: torch.Tensor, y: torch.Tensor, seed: int, ranges: list[Any], mask: Any) -> float:
    """H(V|U) of soft codes at triples drawn as docs/paper.md (A2, A3) says, in loops of its own."""
    generator = torch.Generator().manual_seed(seed)
    rows, _, channels = x.shape
    sample = torch.randint(rows, (64,), generator=generator)
    fraction = torch.rand(64, generator=generator, dtype=torch.float64)
    channel = torch.randint(channels, (64,), generator=generator)
    joint = torch.zeros(LEVELS, LEVELS, dtype=torch.float64)
    for s, f, c in zip(sample.tolist(), fraction.tolist(), channel.tolist(), strict=True):
        valid = range(x.shape[1]) if mask is None else mask[s].nonzero().flatten().tolist()
        token = valid[int(f * len(valid))]
        soft = []
        for value, (low, high) in ((x[s, token, c], ranges[0]), (y[s, token, c], ranges[1])):
            least, most = min(float(low[c]), 0.0), max(float(high[c]), 0.0)
            scale = (most - least) / (LEVELS - 1)
            code = min(max(float(value) / scale + round(-least / scale), 0.0), LEVELS - 1.0)
            weight = [math.exp(-((code - a) ** 2) / 0.25) for a in range(LEVELS)]
            soft.append(torch.tensor([w / sum(weight) for w in weight], dtype=torch.float64))
        joint += torch.outer(*soft) / 64
    entropy = 0.0
    for u in range(LEVELS):
        for v in range(LEVELS):
            if joint[u, v] > 1e-12:
                entropy -= float(joint[u, v]) * math.log(float(joint[u, v] / joint[u].sum()))
    return entropy


def watched(module: VisualEncoderOptimization, batch: dict[str, Any]) -> dict[str, Any]:
    """Return logits and every tensor the loss looks at, of one forward pass."""
    model, seen = module.model, {}
    places = {"n": model.lm_head, "v": model.model.multi_modal_projector}
    for name in ("vision", "language"):
        for k, unit in enumerate(module.structure.towers[name].units):
            places[name, k] = unit.sites[0].leader

    def keep(name: Any) -> Any:
        return lambda _, args: seen.__setitem__(name, args[0].detach())

    handles = [m.register_forward_pre_hook(keep(name)) for name, m in places.items()]
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values") if k in batch}
    with torch.no_grad():
        seen["logits"] = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return seen


def slow_terms(module: VisualEncoderOptimization, number: int, batch: Any) -> dict[str, float]:
    """Eq. 8-10 of one batch from its definition."""
    seen = watched(module, batch)
    with module.structure.only(set()):
        exact = watched(module, batch)
    nll, count = 0.0, 0
    for row, labels in enumerate(batch["labels"]):
        for t, label in enumerate(labels[1:].tolist()):
            if label != -100:
                nll -= float(seen["logits"][row, t].double().log_softmax(-1)[label])
                count += 1
    mask = batch["attention_mask"].bool()
    parts = [(seen["n"][mask] - exact["n"][mask], exact["n"][mask], WEIGHTS.eta)]
    if "v" in seen:
        parts.append((seen["v"] - exact["v"], exact["v"], 1.0))
    err = sum(w * float(d.double().square().sum() / x.double().square().sum()) for d, x, w in parts)
    ent, image = 0.0, batch["has_image"]
    for name, tokens in (("vision", None), ("language", mask)):
        if name == "vision" and not image.any():
            continue
        units = module.structure.towers[name].units
        ranges = [module.calibrator.statistics.channel_range(u.sites[0]) for u in units]
        for k in range(len(units) - 1):
            pair = seen[name, k], seen[name, k + 1]
            weight = module.state.jacobian_fixed[name][k]
            ent += weight * dependency(*pair, number, ranges[k : k + 2], tokens)
    total = nll / count + WEIGHTS.lambda_ent * ent + WEIGHTS.lambda_err * err
    return {"reg": nll / count, "ent": ent, "err": err, "total": total}


def test_a_measurement_is_the_mean_over_all_batches_from_the_definition(started, toy_batches):
    module = started(weights=WEIGHTS, entropy_samples=64)
    module._measure(0, "search")
    found = module.state.loss_fixed[0]
    slow = [slow_terms(module, i, batch) for i, batch in enumerate(toy_batches)]
    for term in TERMS:
        expected = sum(terms[term] for terms in slow) / len(slow)
        assert found[term] == pytest.approx(expected, rel=2e-4), term


def test_draws_and_jacobian_weights_stay_those_of_the_first_epoch(started):
    module = started(weights=WEIGHTS, entropy_samples=64)
    module._measure(0, "search")
    module.state.steps += 5
    module.state.jacobian = {n: [2 * w for w in ws] for n, ws in module.state.jacobian.items()}
    module._measure(1, "training")
    first, second = ({n: m[n] for n in TERMS} for m in module.state.loss_fixed)
    assert first == second
    with torch.no_grad():
        module.structure.towers["vision"].sites[0].quantizer.high_ratio.mul_(0.5)
    module._measure(2, "training")
    assert all(module.state.loss_fixed[2][n] != first[n] for n in TERMS)


def test_it_is_measured_before_and_after_every_epoch_and_after_every_search(
    family_class, toy_batches, tmp_path, fit
):
    module = fit(family_class(), toy_batches, tmp_path, epochs=3, every_n_epochs=2)
    assert moments(module) == [
        (0, "search"),
        (1, "training"),
        (2, "training"),
        (2, "search"),
        (3, "training"),
        (3, "search"),
    ]
    fewer = fit(
        family_class(), toy_batches, tmp_path / "fewer", 3, every_n_epochs=2,
        measure_every_n_epochs=3,
    )  # fmt: skip
    assert moments(fewer) == [(0, "search"), (3, "training"), (3, "search")]
    assert fewer.state.loss_fixed[-1] == module.state.loss_fixed[-1]
    assert fewer.state.loss == module.state.loss  # measuring changes nothing


def test_a_measurement_is_the_same_in_parts(started, toy_batches, make):
    """Some parts have no image."""
    toy_batches[0] = make(0, blind=(0, 2))
    for parts in (1, 2, 4):
        module = started(weights=WEIGHTS, micro_batches=parts)
        module._measure(0, "search")
        if parts == 1:
            whole = module.state.loss_fixed[0]
        for term in TERMS:
            assert module.state.loss_fixed[0][term] == pytest.approx(whole[term], rel=1e-5), term


def test_measured_terms_are_logged(started):
    class Kept:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            self.rows.append((values, step))

    module, kept = started(), Kept()
    module.trainer.loggers = [kept]
    module.state.steps = 3
    module._measure(1, "training")
    measured = module.state.loss_fixed[0]
    values = {f"detail/loss_fixed/{n}": measured[n] for n in TERMS}
    total = dict.fromkeys(("headline/loss", "baseline/loss"), measured["total"])
    assert kept.rows == [(values | total, 3)]
