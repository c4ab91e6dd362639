"""GPTQ against a slow reference in float64 with plain loops."""

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.gptq import Grid, inverse_factor, row_errors, sweep
from qvlm_lightning.quant.weight_ranges import quadratic_rows, rounded_on, searched_ranges
from qvlm_lightning.quant.weights import fake_quantize_weight_on, weight_ranges


def data(outputs=6, inputs=12, tokens=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight, x.T @ x


def nearest(value, low, high, bits, symmetric):
    """One number on its grid; scales are those of float32, as models store them."""
    if symmetric:
        scale = float(torch.tensor(high) / ((2**bits - 1) / 2))
        return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(value / scale))) * scale
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float((torch.tensor(high) - torch.tensor(low)) / (2**bits - 1))
    zero = round(-low / scale)
    return (max(0, min(2**bits - 1, round(value / scale) + zero)) - zero) * scale


def slow(weight, gram, damp, grid, order, bits, symmetric):
    """Optimal brain surgeon, one channel at a time, with the inverse of what is left (eq. 2)."""
    inputs = weight.shape[1]
    hessian = gram.clone()
    for i in range(inputs):
        hessian[i, i] += damp * float(gram.diagonal().mean())
    low, high = grid
    done = torch.zeros(weight.shape, dtype=torch.float64)
    for row in range(len(weight)):
        left = [float(x) for x in weight[row]]
        for step, i in enumerate(order):
            rest = list(order[step:])
            inverse = torch.linalg.inv(hessian[rest][:, rest])
            group = i * low.shape[1] // inputs
            done[row, i] = nearest(
                left[i], float(low[row, group]), float(high[row, group]), bits, symmetric
            )
            error = (left[i] - float(done[row, i])) / float(inverse[0, 0])
            for place, j in enumerate(rest):
                left[j] -= error * float(inverse[0, place])
    return done


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("block", [3, 5, 128])
def test_it_is_the_slow_reference(symmetric, group_size, ordered, block):
    weight, gram = data(seed=int(symmetric) + 2 * int(ordered))
    low, high = weight_ranges(weight, group_size, symmetric)
    order = gram.diagonal().argsort(descending=True) if ordered else torch.arange(12)
    factor = inverse_factor(gram[order][:, order], 0.01)
    grid = Grid(low, high, 3, symmetric, torch.float32)
    done, _ = sweep(weight, factor, grid, order if ordered else None, block=block)
    expected = slow(weight, gram, 0.01, (low, high), order.tolist(), 3, symmetric)
    torch.testing.assert_close(done, expected, rtol=1e-5, atol=1e-6)
    near = fake_quantize_weight_on(weight, low, high, 3, symmetric)
    assert not torch.allclose(done.float(), near)
    assert row_errors(done - weight, gram).sum() < row_errors(near - weight, gram).sum()


@pytest.mark.parametrize("block", [3, 6, 128])
def test_a_group_has_the_range_of_what_its_weight_has_become(block):
    weight, gram = data()
    low, high = weight_ranges(weight, 4, symmetric=False)
    grid, seen = Grid(low, high, 3, False, torch.float32), []

    def ranges_of(part, columns):
        seen.append((columns, part.clone()))
        return weight_ranges(part, None, symmetric=False)

    factor = inverse_factor(gram, 0.01)
    done, chosen = sweep(weight, factor, grid, None, ranges_of, block)
    assert [c.start for c, _ in seen] == [0, 4, 8]
    # again, each group's range given beforehand: the same, and errors of earlier groups are in it
    again, _ = sweep(weight, factor, chosen, block=128)
    torch.testing.assert_close(done, again, rtol=1e-9, atol=1e-9)
    inverse = torch.linalg.inv(gram + 0.01 * gram.diagonal().mean() * torch.eye(12))
    error = (done - weight.double())[:, :4]
    moved = weight.double()[:, 4:] + error @ torch.linalg.inv(inverse[:4, :4]) @ inverse[:4, 4:]
    # the least-squares answer of all later channels to the first group's errors (eq. 3)
    torch.testing.assert_close(seen[1][1], moved[:, :4], rtol=1e-4, atol=1e-4)


def test_the_factor_is_that_of_the_inverse():
    _, gram = data()
    factor = inverse_factor(gram, 0.05)
    damped = gram + 0.05 * gram.diagonal().mean() * torch.eye(12)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))
    assert torch.equal(factor, factor.triu())


def test_channels_without_inputs_are_rounded_by_themselves():
    weight, gram = data()
    gram[3] = gram[:, 3] = 0.0
    low, high = weight_ranges(weight, None, symmetric=False)
    grid = Grid(low, high, 3, False, torch.float32)
    done, _ = sweep(weight, inverse_factor(gram, 0.01), grid)
    near = rounded_on(weight, low, high, 3, symmetric=False)
    assert torch.allclose(done[:, 3].float(), near[:, 3])
    nothing, _ = sweep(weight, inverse_factor(torch.zeros(12, 12), 0.01), grid)
    assert torch.allclose(nothing.float(), near)


def test_fewer_tokens_than_channels_and_numbers_that_are_not():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 12, generator=generator)
    factor = inverse_factor(x.T @ x, 1e-9)
    assert factor.isfinite().all()
    with pytest.raises(InputError, match="not finite"):
        inverse_factor(torch.full((2, 2), torch.inf), 0.01)
    with pytest.raises(InputError, match="not positive"):
        inverse_factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), 0.01)


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("of_output", [False, True])
def test_a_searched_range_has_the_least_error_of_all(group_size, symmetric, of_output):
    weight, gram = data(seed=3)
    ratios = [1.0, 0.9, 0.8, 0.7, 0.6]
    low, high = weight_ranges(weight, group_size, symmetric)
    found = searched_ranges(weight, ratios, 3, group_size, symmetric, gram if of_output else None)
    size, chosen = group_size or 12, set()
    for row in range(6):
        for group in range(12 // size):
            errors = []
            for ratio in ratios:
                ends = float(low[row, group]) * ratio, float(high[row, group]) * ratio
                d = [
                    nearest(float(weight[row, i]), *ends, 3, symmetric) - float(weight[row, i])
                    for i in range(group * size, group * size + size)
                ]
                errors.append(sum(
                    d[i] * d[j] * float(gram[group * size + i, group * size + j])
                    if of_output else (i == j) * d[i] ** 2
                    for i in range(size) for j in range(size)
                ))  # fmt: skip
            best = errors.index(min(errors))
            chosen.add(best)
            for ends, of in zip(found, (low, high), strict=True):
                expected = float(of[row, group]) * ratios[best]
                assert float(ends[row, group]) == pytest.approx(expected)
    assert len(chosen) > 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_rounded_weights_are_those_of_the_models_type(symmetric):
    weight = data()[0].bfloat16()
    low, high = weight_ranges(weight, 4, symmetric)
    expected = fake_quantize_weight_on(weight, low, high, 4, symmetric)
    found = rounded_on(weight.float(), low, high, 4, symmetric, torch.bfloat16)
    assert torch.equal(found.bfloat16(), expected)


def by_columns(weight, factor, grid, order):
    """Channel after channel, each later one told of every error at once."""
    (scale, zero, least, most), inputs = grid.qparams(), weight.shape[1]
    left, done = weight.double()[:, order], torch.zeros(weight.shape, dtype=torch.float64)
    for i, place in enumerate(order.tolist()):
        s, z = (x[:, place * scale.shape[1] // inputs] for x in (scale, zero))
        done[:, place] = (((left[:, i] / s).round() + z).clamp(least, most) - z) * s
        error = (left[:, i] - done[:, place]) / factor[i, i]
        for j in range(i + 1, inputs):
            left[:, j] -= error * factor[i, j]
    return done


@pytest.mark.parametrize("group_size", [None, 30])
@pytest.mark.parametrize("block", [1, 64, 128])
def test_no_code_depends_on_blocks_or_on_the_order_in_memory(group_size, block):
    weight, gram = data(outputs=24, inputs=150, tokens=400)
    order = gram.diagonal().argsort(descending=True)
    factor = inverse_factor(gram[order][:, order], 0.01)
    grid = Grid(*weight_ranges(weight, group_size, False), 4, False, torch.float32)
    expected = by_columns(weight, factor, grid, order)
    for given in (weight, weight.T.contiguous().T):
        done, _ = sweep(given, factor, grid, order, block=block)
        assert torch.equal(done, expected)
    half, _ = sweep(
        weight[12:], factor, Grid(grid.low[12:], grid.high[12:], 4, False, torch.float32), order
    )
    assert torch.equal(half, expected[12:])


@pytest.mark.parametrize("block", [1, 5, 12, 128])
def test_half_of_the_products_make_the_whole_error(block):
    rows, gram = data(seed=5)
    expected = [
        sum(float(d[i]) * float(gram[i, j]) * float(d[j]) for i in range(12) for j in range(12))
        for d in rows
    ]
    found = quadratic_rows(rows.double(), gram, block)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
