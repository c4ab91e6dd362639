"""Loss terms and the search objective: the parts of V2, V3, V9 and S7 that are pure functions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.losses import (
    entropy_loss,
    gradient_norm_sums,
    jacobian_weights,
    output_error_terms,
    relative_error,
    squared_error_terms,
    token_nll,
)
from qvlm_lightning.quant.entropy import conditional_entropy, soft_joint_sums

quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def draw(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_mask(seed):
    return torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) < 0.6


def test_token_nll_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [9.0, -9.0]]])
    total, count = token_nll(logits, torch.tensor([[1, 1, -100]]))
    assert float(total) == pytest.approx(math.log(4 / 3))  # position 0 predicts label 1
    assert int(count) == 1


@quick
@given(seeds)
def test_token_nll_equals_a_loop_and_adds_up(seed):
    logits, g = draw(seed, 3, 6, 7), torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (3, 6), generator=g).masked_fill(
        torch.rand(3, 6, generator=g) < 0.5, -100
    )
    total, count = token_nll(logits, labels)
    expected, number = 0.0, 0
    for b in range(3):
        for t in range(5):
            if labels[b, t + 1] != -100:
                row = logits[b, t].double()
                expected += float(row.logsumexp(0) - row[labels[b, t + 1]])
                number += 1
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert int(count) == number
    parts = [token_nll(logits[b : b + 1], labels[b : b + 1]) for b in range(3)]
    assert float(sum(p[0] for p in parts)) == pytest.approx(float(total), rel=1e-5)
    assert sum(p[1] for p in parts) == count


def test_token_nll_without_labels_is_zero_with_a_gradient():
    logits = draw(0, 2, 4, 5).requires_grad_()
    total, count = token_nll(logits, torch.full((2, 4), -100))
    assert (float(total.detach()), int(count)) == (0.0, 0)
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_token_nll_is_computed_in_float32():
    logits = draw(0, 1, 4, 50).to(torch.bfloat16)
    total, _ = token_nll(logits, torch.tensor([[1, 2, 3, 4]]))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, token_nll(logits.float(), torch.tensor([[1, 2, 3, 4]]))[0])


@quick
@given(seeds, st.booleans())
def test_squared_error_terms_equal_a_loop(seed, with_mask):
    x_q, x_fp = draw(seed, 4, 5, 3), draw(seed + 1, 4, 5, 3)
    mask = draw_mask(seed) if with_mask else None
    numerator = denominator = 0.0
    for b in range(4):
        for t in range(5):
            if mask is None or mask[b, t]:
                numerator += float((x_q[b, t] - x_fp[b, t]).double().square().sum())
                denominator += float(x_fp[b, t].double().square().sum())
    terms = squared_error_terms(x_q, x_fp, mask)
    assert [float(t) for t in terms] == pytest.approx([numerator, denominator], rel=1e-5)
    assert float(relative_error(*terms)) == pytest.approx(
        numerator / (denominator + 1e-8), rel=1e-5
    )


def test_relative_error_gives_the_target_no_gradient_and_survives_a_zero_target():
    x_q, x_fp = draw(0, 2, 3, 4).requires_grad_(), draw(1, 2, 3, 4).requires_grad_()
    error = relative_error(*squared_error_terms(x_q, x_fp))
    to_q, to_fp = torch.autograd.grad(error, (x_q, x_fp), allow_unused=True)
    torch.testing.assert_close(to_q, 2 * (x_q - x_fp).detach() / x_fp.detach().square().sum())
    assert to_fp is None
    assert relative_error(*squared_error_terms(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))) == 0
    same = draw(2, 2, 3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(
        relative_error(*squared_error_terms(same, same.detach())), same
    )
    assert torch.equal(gradient, torch.zeros_like(same))  # the squared norm has no kink at 0


@quick
@given(seeds, st.sampled_from([float("nan"), float("inf")]))
def test_masked_tokens_do_not_count_whatever_they_hold(seed, filler):
    x, y, mask = draw(seed, 4, 5, 3), draw(seed + 1, 4, 5, 3), draw_mask(seed)
    mask[0, 0] = True
    filled = x.masked_fill(~mask[..., None], filler).requires_grad_()
    for terms in (squared_error_terms, output_error_terms):
        assert torch.equal(torch.stack(terms(filled, y, mask)), torch.stack(terms(x, y, mask)))
    (gradient,) = torch.autograd.grad(squared_error_terms(filled, y, mask)[0], filled)
    assert gradient.isfinite().all()


@quick
@given(seeds)
def test_entropy_loss_is_the_weighted_sum_with_a_plus_sign(seed):
    joints = list(torch.softmax(draw(seed, 3, 16), dim=-1).reshape(3, 4, 4))
    weights = draw(seed + 1, 3).abs().requires_grad_()
    loss = entropy_loss(joints, weights)
    expected = sum(
        w * conditional_entropy(j) for w, j in zip(weights.tolist(), joints, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    assert loss >= 0
    assert not loss.requires_grad  # the weights are detached
    assert entropy_loss([], torch.zeros(0)) == 0


def test_v2_descending_the_entropy_loss_lowers_the_dependency():
    u = (draw(0, 3, 200, dtype=torch.float64) * 2 + 7.5).requires_grad_()
    optimizer = torch.optim.Adam([u], lr=0.05)

    def joints():
        return [soft_joint_sums(u[k], u[k + 1], 16, 0.25) / 200 for k in range(2)]

    weights = torch.ones(2, dtype=torch.float64)
    before = float(entropy_loss(joints(), weights).detach())
    for _ in range(30):
        optimizer.zero_grad()
        entropy_loss(joints(), weights).backward()
        optimizer.step()
    assert float(entropy_loss(joints(), weights).detach()) < before - 0.1


def test_v3_v9_weights_by_hand():
    gradients = [torch.tensor([[3.0, 4.0], [0.0, 1.0]]), None, torch.zeros(2, 5)]
    sums = gradient_norm_sums(gradients)
    assert sums.tolist() == [6.0, 0.0, 0.0]
    assert jacobian_weights(sums, torch.full((3,), 2.0)).tolist() == [3.0, 0.0, 0.0]
    # a unit that saw half as many samples is not half as important
    assert jacobian_weights(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0])).tolist() == [
        1.0,
        1.0,
    ]


@quick
@given(seeds, st.floats(1e-6, 1e6))
def test_v3_weights_have_mean_one_whatever_the_scale(seed, scale):
    sums = draw(seed, 5, dtype=torch.float64).abs().requires_grad_()
    weights = jacobian_weights(sums * scale, torch.full((5,), 8.0))
    assert (weights >= 0).all()
    assert float(weights.mean()) == pytest.approx(1)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, jacobian_weights(sums, torch.full((5,), 8.0)))


@pytest.mark.parametrize("counts", [torch.full((4,), 8.0), torch.zeros(4)])
def test_v3_weights_are_uniform_without_any_gradient(counts):
    assert jacobian_weights(torch.zeros(4), counts).tolist() == [1.0] * 4


def test_v3_weights_match_finite_differences_of_the_error():
    w1, w2 = draw(0, 6, 6, dtype=torch.float64), draw(1, 6, 6, dtype=torch.float64)
    x, target = draw(2, 1, 6, dtype=torch.float64), draw(3, 1, 6, dtype=torch.float64)
    offset = draw(4, 2, 6, dtype=torch.float64) * 0.1  # stands for rounding, without its steps

    def error(x1, shift2):
        x2 = torch.tanh((x1 + offset[0]) @ w1) + shift2
        return ((x2 + offset[1]) @ w2 - target).square().mean(), x2

    x1 = x.clone().requires_grad_()
    e, x2 = error(x1, torch.zeros(1, 6, dtype=torch.float64))
    weights = jacobian_weights(gradient_norm_sums(torch.autograd.grad(e, (x1, x2))), torch.ones(2))
    step, norms = 1e-5, []
    for which in range(2):
        slopes = []
        for i in range(6):
            d = torch.zeros(1, 6, dtype=torch.float64)
            d[0, i] = step
            moves = [(x + s * d, 0 * d) if which == 0 else (x, s * d) for s in (1, -1)]
            slopes.append(float(error(*moves[0])[0] - error(*moves[1])[0]) / (2 * step))
        norms.append(math.sqrt(sum(s * s for s in slopes)))
    expected = torch.tensor(norms, dtype=torch.float64) * 2 / sum(norms)
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=0.0)


@quick
@given(seeds, st.integers(1, 3))
def test_s7_output_error_adds_up_over_batches(seed, cut):
    y_hat, y, mask = draw(seed, 4, 5, 3), draw(seed + 1, 4, 5, 3), draw_mask(seed)
    numerator, denominator = output_error_terms(y_hat, y, mask)
    assert numerator.dtype == denominator.dtype == torch.float64
    assert float(denominator) == 3 * int(mask.sum())
    expected = float((y_hat.double() - y.double()).square().sum(dim=-1)[mask].sum())
    assert float(numerator) == pytest.approx(expected, rel=1e-6)
    parts = [output_error_terms(y_hat[s], y[s], mask[s]) for s in (slice(0, cut), slice(cut, 4))]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(numerator), rel=1e-12)
    assert parts[0][1] + parts[1][1] == denominator
    assert output_error_terms(y, y, mask)[0] == 0
    assert output_error_terms(y_hat, y)[1] == y.numel()


def test_entropy_loss_wants_one_weight_per_edge():
    with pytest.raises(ValueError, match="2 weights came with 1 edges; one each is needed"):
        entropy_loss([torch.full((2, 2), 0.25)], torch.ones(2))


def test_the_normalized_error_does_not_see_the_length_of_a_token():
    """By hand: (3, 4) has a mean square of 12.5; turned by 90 degrees it is sqrt(2) radii away."""
    y, mask = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[True, True]])
    numerator, denominator = output_error_terms(7 * y, y, mask, normalized=True)
    assert float(numerator) == pytest.approx(0, abs=1e-9)
    assert float(denominator) == 4
    turned = torch.tensor([[[-4.0, 3.0], [0.0, 5.0]]])
    # every normalized token has a squared length of 2, the distance of orthogonal ones is 2 + 2
    assert float(output_error_terms(turned, y, mask, True)[0]) == pytest.approx(8, rel=1e-5)
    only = torch.tensor([[True, False]])
    assert float(output_error_terms(turned, y, only, True)[0]) == pytest.approx(4, rel=1e-5)
    zero = torch.zeros(1, 1, 2)
    assert float(output_error_terms(zero, zero, None, True)[0]) == 0
