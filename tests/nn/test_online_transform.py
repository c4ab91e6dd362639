"""Online transforms by hand: every product written out as a loop over single channels."""

import pytest
import torch
from torch import nn

from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.online_transform import (
    OnlineTransform,
    inverse_in_weight,
    taken_out_of_weight,
)
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.structure import Site

LEFT, RIGHT = 2, 3


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(n, n, generator=generator) + 2 * torch.eye(n) for n in (LEFT, RIGHT))


def product(left, right):
    """P written out: row (a, b), column (c, d)."""
    left, right = left.double(), right.double()
    rows = []
    for a in range(LEFT):
        for b in range(RIGHT):
            rows.append([left[a, c] * right[b, d] for c in range(LEFT) for d in range(RIGHT)])
    return torch.tensor(rows, dtype=torch.float64)


def site_of(width=6, consumers=2, mode="dynamic_token", bits=4):
    quantizer = ActivationQuantizer(bits, mode, (), consumers)
    linears = {}
    for index in range(consumers):
        plain = nn.Linear(width, 5)
        linears[f"l{index}"] = QuantLinear.from_linear(plain, quantizer, index == 0, 4, None, False)
    return Site("s", quantizer, linears)


def test_the_input_is_multiplied_by_the_product(factors):
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ product(*factors)
    assert torch.allclose(OnlineTransform(*factors)(x).double(), expected, atol=1e-5)


@pytest.mark.parametrize("orders", [(1, 6), (6, 1), (1, 1)])
def test_a_factor_of_one_row_is_only_a_number(orders):
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(n, n, generator=generator) for n in orders)
    width = orders[0] * orders[1]
    x = torch.randn(2, width, generator=generator)
    whole = torch.kron(left, right)
    numbers = left.item() if orders[0] == 1 else right.item()
    found = OnlineTransform(left, right)(x)
    # a factor of one row is skipped, so it has to be 1 to mean what it says
    assert torch.allclose(
        found * (numbers if width > 1 else found.new_tensor(whole.item())), x @ whole, atol=1e-5
    )


def test_the_inverse_goes_into_the_weight_and_comes_out_again(factors):
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    whole = product(*factors)
    inside = inverse_in_weight(weight, *factors)
    assert torch.allclose(inside, weight.double() @ torch.linalg.inv(whole).T, atol=1e-6)
    assert torch.allclose(taken_out_of_weight(inside, *factors), weight.double(), atol=1e-5)


def test_a_site_computes_what_it_did(factors):
    site = site_of()
    x = torch.randn(2, 3, 6)
    before = [linear(x) for linear in site.linears.values()]
    transform = site.put_transform(*factors)
    with torch.no_grad():
        for linear in site.linears.values():
            linear.weight.copy_(transform.of_weight(linear.weight))
    after = [linear(x) for linear in site.linears.values()]
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_is_quantized_is_the_transformed_input(factors):
    site = site_of()
    seen = []
    site.quantizer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    transform = site.put_transform(*factors)
    site.quantizer.enabled = True
    x = torch.randn(2, 3, 6)
    for linear in site.linears.values():
        linear(x)
    (given, quantized), (again, _) = seen
    assert torch.allclose(given, transform(x))
    assert again is given  # so that one quantized input serves both layers
    assert len(quantized[0, 0].unique()) <= 16


def test_another_input_or_factor_is_not_taken_for_the_kept_one(factors):
    site = site_of(consumers=3)
    transform = site.put_transform(*factors)
    first, second, third = site.linears.values()
    x = torch.randn(2, 6)
    kept = transform.before(first, (x,))[0]
    assert transform.before(second, (x,))[0] is kept
    other = torch.randn(2, 6)
    assert torch.allclose(transform.before(third, (other,))[0], transform(other))
    transform.before(first, (x,))
    x.mul_(2)
    assert torch.allclose(transform.before(second, (x,))[0], transform(x))
    transform.before(first, (x,))
    transform.left.mul_(3)
    assert torch.allclose(transform.before(second, (x,))[0], transform(x))
    transform.before(first, (x,))
    site.forget_inputs()
    assert transform._shared is None


def test_one_full_matrix_instead_of_two_factors(factors):
    transform = OnlineTransform(*factors)
    x = torch.randn(4, 6)
    before, macs = transform(x), transform.macs
    transform.make_full()
    assert torch.allclose(transform(x), before, atol=1e-5)
    assert (macs, transform.macs) == (6 * (2 + 3), 36)


def test_a_half_precision_input_keeps_its_type(factors):
    x = torch.randn(4, 6).to(torch.bfloat16)
    found = OnlineTransform(*factors)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, OnlineTransform(*factors)(x.float()).to(torch.bfloat16))


def test_gradients_reach_the_factors(factors):
    site = site_of(consumers=1)
    site.put_transform(*factors)
    left, right = (x.clone().requires_grad_() for x in factors)
    leader = site.leader
    leader.input_transform.left, leader.input_transform.right = left, right
    leader(torch.randn(2, 6)).square().sum().backward()
    assert left.grad.abs().sum() > 0
    assert right.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused(factors):
    site = site_of(width=8)
    with pytest.raises(ValueError, match="2 x 3 for the 8 inputs"):
        site.put_transform(*factors)
    site = site_of()
    site.put_transform(*factors)
    with pytest.raises(ValueError, match="has a transform already"):
        site.put_transform(*factors)
