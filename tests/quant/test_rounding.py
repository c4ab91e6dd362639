"""Learned rounding, its quadratic form and Hessian-scored ranges against plain loops."""

import itertools

import pytest
import torch

from qvlm_lightning.quant import rounding
from qvlm_lightning.quant.gptq import Grid, compensated, inverse_factor, sweep
from qvlm_lightning.quant.hessian_ranges import hessian_ranges
from qvlm_lightning.quant.quadratic import Quadratic
from qvlm_lightning.quant.rounding import Annealing, Steps, learned_rounding
from qvlm_lightning.quant.weight_ranges import rounded_on
from qvlm_lightning.quant.weights import weight_ranges
from tests.quant.test_gptq import data, nearest

SHORT = Annealing(steps=300, lr=0.05)


def positive(size, count, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return root @ root.transpose(1, 2)


def trace(error, gram, heads):
    """``tr(G E H E^T)`` of one part, sum by sum."""
    rows, inputs = error.shape
    total = 0.0
    for r, s, i, j in itertools.product(range(rows), range(rows), range(inputs), range(inputs)):
        weight = float(heads[r, s]) if heads is not None else float(r == s)
        total += weight * float(error[s, i]) * float(gram[i, j]) * float(error[r, j])
    return total


@pytest.mark.parametrize(("shared", "coupled"), [(False, False), (False, True), (True, True)])
def test_the_quadratic_form_is_a_trace_part_by_part(shared, coupled):
    error = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    gram, heads = positive(4, 1 if shared else 2, 1), positive(3, 2, 2) if coupled else None
    form = Quadratic(gram, heads)
    for part in range(2):
        h, g = gram[0 if shared else part], None if heads is None else heads[part]
        own = float(form.by_row(error)[part].sum())
        assert own == pytest.approx(trace(error[part], h, g))
    error = error.double().requires_grad_()
    form.by_row(error).sum().backward()
    torch.testing.assert_close(error.grad / 2, form.gradient(error).detach())
    scaled = Quadratic(gram * 7, None if heads is None else heads * 3).normalized()
    torch.testing.assert_close(scaled.inputs, form.normalized().inputs)
    assert scaled.inputs.diagonal(dim1=1, dim2=2).mean(dim=1).tolist() == pytest.approx(
        [1.0] * len(gram)
    )


def problem(coupled, seed=0):
    weight = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    mix = positive(8, 1, seed + 1) + 4 * torch.ones(8, 8, dtype=torch.float64)
    heads = positive(3, 2, seed + 2) if coupled else None
    form = Quadratic(mix if coupled else mix.repeat(2, 1, 1), heads)
    scale = torch.full((2, 3, 1), 0.7)
    return weight, Steps(scale, torch.full_like(scale, -3), torch.full_like(scale, 2)), form


@pytest.mark.parametrize("coupled", [False, True])
def test_learned_roundings_are_steps_below_or_above_and_gain(coupled):
    gained = 0
    for seed in range(3):
        weight, steps, form = problem(coupled, seed)
        done = learned_rounding(weight, weight, steps, form, SHORT)
        codes = done / 0.7
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
        assert bool(((codes.round() >= -3) & (codes.round() <= 2)).all())
        inside = (weight / 0.7).clamp(-3, 2)
        assert float((codes - inside).abs().max()) <= 1 + 1e-5
        near = (weight / 0.7).round().clamp(-3, 2) * 0.7
        for part in range(2):
            h = form.inputs[0 if coupled else part]
            g = form.outputs[part] if coupled else None
            learned, plain = (trace((x - weight)[part], h, g) for x in (done, near))
            assert learned <= plain * (1 + 1e-6)
            gained += learned < plain * 0.9
    assert gained >= 4


@pytest.mark.parametrize("coupled", [False, True])
def test_slopes_are_those_of_autograd(coupled):
    weight, steps, form = problem(coupled)
    form = form.normalized()
    steps = steps.wide(8)
    start = weight / steps.scale
    generator = torch.Generator().manual_seed(7)
    free = torch.randn(2, 3, 8, generator=generator).mul(3).requires_grad_()
    share = rounding.raised(free)
    assert 0 < int(((share == 0) | (share == 1)).sum()) < 48
    soft = rounding.softly_rounded(start.floor(), share, steps)
    assert bool((soft / steps.scale != start.floor() + share).any())  # some are clipped
    loss = form.by_row(soft - weight).sum()
    (expected,) = torch.autograd.grad(loss, free, retain_graph=True)
    found = rounding._slope(free.detach(), start.floor(), steps, weight, form)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (expected,) = torch.autograd.grad(rounding.undecided(share, 3.5), free)
    torch.testing.assert_close(rounding._undecided_slope(free.detach(), 3.5), expected)


def test_groups_have_steps_of_their_own():
    weight, _, form = problem(coupled=False)
    scale = torch.tensor([0.2, 0.9]).expand(2, 3, 2)
    done = learned_rounding(
        weight, weight, Steps(scale, -9 * torch.ones(2, 3, 2), 9 * torch.ones(2, 3, 2)), form, SHORT
    )
    for place in range(8):
        codes = done[..., place] / (0.2 if place < 4 else 0.9)
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)


def test_what_was_started_from_is_not_what_is_wanted():
    """A start that stands a step higher is not brought back, but judged by what is wanted."""
    weight, steps, form = problem(coupled=False)
    done = learned_rounding(weight + 0.7, weight, steps, form, SHORT)
    codes = (done / 0.7).round()
    low = (weight / 0.7).floor().clamp(-3, 2)
    assert bool(((codes >= low) | (codes == 2)).all())
    near = ((weight + 0.7) / 0.7).round().clamp(-3, 2) * 0.7
    assert form.by_row(done - weight).sum() < form.by_row(near - weight).sum()


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_is_the_best_of_its_candidates(group_size, symmetric):
    weight, gram = data(seed=3)
    ratios = [1.0, 0.8, 0.6]
    low, high = weight_ranges(weight, group_size, symmetric)
    found = hessian_ranges(weight, gram, 3, group_size, symmetric, torch.float32, ratios)
    size, moved = group_size or 12, 0

    def error(row, group, ends):
        d = [
            nearest(float(weight[row, i]), *ends, 3, symmetric) - float(weight[row, i])
            for i in range(group * size, group * size + size)
        ]
        first = group * size
        return sum(
            d[i] * d[j] * float(gram[first + i, first + j])
            for i in range(size)
            for j in range(size)
        )

    for row in range(6):
        for group in range(12 // size):
            bottom, top = float(low[row, group]), float(high[row, group])
            errors = [error(row, group, (bottom, top))]
            for ratio in ratios:
                if symmetric:
                    errors.append(error(row, group, (bottom * ratio, top * ratio)))
                    continue
                scale = (max(top, 0) - min(bottom, 0)) * ratio / 7
                place = -min(bottom, 0) * ratio / scale
                for zero in (int(place), min(int(place) + 1, 7)):
                    errors.append(error(row, group, (-zero * scale, (7 - zero) * scale)))
            own = error(row, group, [float(x[row, group]) for x in found])
            assert own == pytest.approx(min(errors), rel=1e-4)
            assert own <= errors[0] * (1 + 1e-6)
            moved += own < errors[0] * 0.999
    assert moved > 0


def test_what_a_sweep_rounded_is_known_from_its_result():
    weight, gram = data()
    low, high = weight_ranges(weight, 4, symmetric=False)
    order = gram.diagonal().argsort(descending=True)
    factor = inverse_factor(gram[order][:, order], 0.01)
    done, grid = sweep(weight, factor, Grid(low, high, 3, False, torch.float32), order)
    found = compensated(weight, done, factor, order)
    left = weight.double()[:, order].clone()
    for i in range(12):
        torch.testing.assert_close(found[:, order[i]], left[:, i])
        error = (left[:, i] - done[:, order[i]]) / factor[i, i]
        left[:, i:] -= error[:, None] * factor[i, i:]
    near = rounded_on(found.float(), grid.low, grid.high, 3, symmetric=False)
    torch.testing.assert_close(near, done.float())
