"""E1, E9 and E10: soft levels and the differentiable dependency."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.entropy import (
    conditional_entropy,
    hard_codes,
    joint_distribution,
    real_codes,
    soft_assignment,
    soft_joint_sums,
)

quick = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
level_counts = st.sampled_from([2, 3, 4, 16])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def soft_dependency(u_a, u_b, levels, temperature, **delta):
    return conditional_entropy(
        soft_joint_sums(u_a, u_b, levels, temperature, **delta) / u_a.numel()
    )


def test_hand_computed_soft_assignment():
    pi = soft_assignment(torch.tensor([0.25], dtype=torch.float64), 3, 0.5)
    weights = [math.exp(-(d**2) / 0.5) for d in (0.25, 0.75, 1.75)]
    assert pi[0].tolist() == pytest.approx([w / sum(weights) for w in weights])
    # as printed: exp(-(x - q)^2 / delta), with x = 0.25 delta and q = a delta
    printed = soft_assignment(torch.tensor([0.25], dtype=torch.float64), 3, "paper", delta=0.1)
    weights = [math.exp(-((d * 0.1) ** 2) / 0.1) for d in (0.25, 0.75, 1.75)]
    assert printed[0].tolist() == pytest.approx([w / sum(weights) for w in weights])


@quick
@given(seeds, level_counts, st.sampled_from([1e-3, 0.05, 0.25, 1.0]))
def test_e1_soft_assignment_is_a_distribution_around_the_hard_code(seed, levels, temperature):
    u = (torch.rand(300, generator=generator(seed), dtype=torch.float64) * 1.4 - 0.2) * levels
    pi = soft_assignment(u, levels, temperature)
    assert (pi >= 0).all()
    torch.testing.assert_close(pi.sum(dim=-1), torch.ones(300, dtype=torch.float64))
    inside = u.clamp(0, levels - 1)
    clear = (inside - inside.floor() - 0.5).abs() > 1e-6
    assert torch.equal(pi.argmax(dim=-1)[clear], hard_codes(u, levels)[clear])
    one_hot = torch.nn.functional.one_hot(hard_codes(u, levels), levels).double()
    far = (inside - inside.floor() - 0.5).abs() > 1e-2
    torch.testing.assert_close(soft_assignment(u, levels, 1e-4)[far], one_hot[far])


def test_e6_printed_temperature_does_depend_on_scale():
    g = generator(0)
    x, y = torch.randn(2, 2000, generator=g, dtype=torch.float64)
    found = []
    for factor in (0.1, 1.0, 100.0):
        scaled = [t * factor for t in (x, y)]
        u = [real_codes(t, t.min(), t.max(), 16) for t in scaled]
        delta = tuple((t.max() - t.min()) / 15 for t in scaled)
        found.append(float(soft_dependency(*u, 16, "paper", delta=delta)))
    assert max(found) - min(found) > 0.3


def test_e9_gradient_of_the_soft_dependency_is_right():
    g = generator(0)
    u = torch.rand(2, 12, generator=g, dtype=torch.float64) * 2.8 + 0.1  # inside [0, 3]
    u = u.requires_grad_()
    assert torch.autograd.gradcheck(lambda u: soft_dependency(u[0], u[1], 4, 0.25), (u,))
    delta = tuple(torch.full((12,), d, dtype=torch.float64) for d in (2.0, 0.7))
    assert torch.autograd.gradcheck(
        lambda u: soft_dependency(u[0], u[1], 4, "paper", delta=delta), (u,)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_e9_gradients_stay_finite_at_empty_cells_and_saturated_codes(dtype):
    joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(conditional_entropy(joint), joint)
    assert gradient.isfinite().all()
    u = torch.tensor([[-1e30, 3.0, 7.0, 1e30], [0.0, -50.0, 15.0, 99.0]], dtype=dtype)
    u.requires_grad_()
    for temperature in (1e-4, 0.25):
        value = soft_dependency(u[0], u[1], 16, temperature)
        (gradient,) = torch.autograd.grad(value, u)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient[0, 0] == gradient[0, 3] == 0  # the clamp ends the gradient


@quick
@given(seeds)
def test_e10_soft_with_a_low_temperature_is_hard(seed):
    g = generator(seed)
    codes = torch.randint(16, (2, 800), generator=g)
    codes[1] = (codes[0] + torch.randint(3, (800,), generator=g)) % 16
    u = codes + 0.8 * torch.rand(2, 800, generator=g, dtype=torch.float64) - 0.4
    hard = float(conditional_entropy(joint_distribution(*hard_codes(u, 16), 16)))
    assert float(soft_dependency(*u, 16, 1e-4)) == pytest.approx(hard, abs=1e-2)


def test_soft_assignment_runs_in_float32_under_autocast():
    u = torch.linspace(0, 15, 50, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert soft_assignment(u, 16, 0.25).dtype == torch.float32
        sums = soft_joint_sums(u, u, 16, 0.25)
    assert sums.dtype == torch.float32
    assert float(sums.sum()) == pytest.approx(50, rel=1e-5)


def test_real_codes_keep_the_gradient_of_x_only():
    x = torch.tensor([0.3, 1.0], requires_grad=True)
    bound = torch.tensor(1.5, requires_grad=True)
    u = real_codes(x, -bound, bound, 16)
    torch.testing.assert_close(u, x.detach() / 0.2 + 8)
    (gradient,) = torch.autograd.grad(u.sum(), x)
    torch.testing.assert_close(gradient, torch.full((2,), 5.0))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: soft_assignment(torch.zeros(2), 4, "paper"), "'paper' needs delta"),
        (lambda: soft_assignment(torch.zeros(2), 4, "hot"), "temperature 'hot' is not allowed"),
        (lambda: soft_assignment(torch.zeros(2), 4, 0.0), "temperature 0.0 is not allowed"),
        (lambda: soft_assignment(torch.zeros(2), 4, -1.0), "temperature -1.0 is not allowed"),
    ],
)
def test_faults_name_what_was_given(fault, message):
    with pytest.raises(InputError, match=message):
        fault()
