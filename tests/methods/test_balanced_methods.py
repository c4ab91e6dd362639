"""Token weights inside methods: MBQ's balance in Gram matrices, ranges, transforms and rounding."""

import pytest
import torch

from qvlm_lightning.calibration.checks import check_before
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import (
    AESPA,
    GPTQ,
    AdaRound,
    ByKind,
    JointSearch,
    LearnedRounding,
    LearnedTransforms,
    LeastSquares,
    MinMax,
    ModalityBalance,
    ObservedRanges,
    SequentialSearch,
    Uniform,
)
from qvlm_lightning.methods.site_statistics import SiteStatistics
from qvlm_lightning.quant.scheme import Scheme
from tests.methods.test_site_statistics import block_of

W3A4 = Scheme.parse("w3a4")
GRID = [1.0, 0.97, 0.9]
FINE = [1 - 0.02 * step for step in range(20)]
METHODS = {
    "gptq": lambda own: GPTQ(token_weights=own),
    "gptq_with_ranges": lambda own: GPTQ(ranges=LeastSquares(GRID), token_weights=own),
    "aespa": lambda own: AESPA(steps=3, token_weights=own),
    "least_squares": lambda own: LeastSquares(token_weights=own),
    "observed": lambda own: ObservedRanges(token_weights=own),
    "sequential": lambda own: SequentialSearch(FINE, token_weights=own),
    "joint": lambda own: JointSearch(FINE, per="layer", token_weights=own),
    "transforms": lambda own: LearnedTransforms(steps=2, token_weights=own),
    "signs": lambda own: LearnedRounding(steps=8, token_weights=own),
    "adaround": lambda own: AdaRound(steps=2, token_weights=own),
}


@pytest.fixture
def solved(calibrated):
    """Decisions of a method under several token weights, on the same first two layers."""

    def solve(make, *several, balance=None):
        found, started = [], calibrated(W3A4)
        started.prepare(make(Uniform()))
        for own in several:
            block = block_of(started, method=make(own))
            block.gradients = {} if balance is None else balance(block)
            found.append(make(own).solve(block))
        return found

    return solve


def differ(one, other):
    return any(not torch.equal(x, other.tensors[n]) for n, x in one.tensors.items())


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_one_change_nothing_and_others_do(solved, method):
    plain, ones, other = solved(METHODS[method], Uniform(), ByKind(), ByKind(vision=0.01))
    assert not differ(plain, ones)
    assert plain.scores == ones.scores
    assert differ(plain, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_balance_is_the_ratio_at_the_output_of_each_module(solved, method):
    """Measured at whole layers too, where the methods that look at single inputs do not look."""
    whole = method in ("joint", "transforms", "signs", "adaround")
    single = method == "joint" or not whole  # a joint search starts from that of single sites

    def balance(block):
        ratios = {unit.name: 0.01 if whole else 1.0 for unit in block.units}
        ratios |= {block.place(site): 0.01 if single else 1.0 for site in block.sites}
        return {place: {"vision": own, "text": 1.0} for place, own in ratios.items()}

    kinds, balanced = solved(
        METHODS[method], ByKind(vision=0.01), ModalityBalance(), balance=balance
    )
    assert not differ(kinds, balanced)


def test_a_weight_of_two_is_the_token_twice():
    generator = torch.Generator().manual_seed(0)
    rows, more = torch.randn(2, 5, 4, generator=generator)
    weight = torch.tensor([1.0, 2.0, 1.0, 0.0, 3.0])
    times = weight.long()
    found = []
    for given in (
        (rows, weight, more),
        (rows.repeat_interleave(times, 0), None, more.repeat_interleave(times, 0)),
    ):
        sums = SiteStatistics(*torch.zeros(2, 4, 4).double(), torch.zeros(4).double())
        sums.update(*given)
        found.append(sums)
    assert found[0].weight == found[1].weight == 7
    for own in ("gram", "cross", "magnitude"):
        torch.testing.assert_close(*(getattr(x, own) for x in found), rtol=1e-6, atol=1e-6)
        assert getattr(found[0], own).abs().sum() > 0


@pytest.mark.parametrize("make", [GPTQ, AESPA, LearnedTransforms])
def test_token_weights_of_nested_ranges_are_refused(make):
    with pytest.raises(InputError, match="ranges is mse with token weights of its own, which"):
        make(ranges=LeastSquares(token_weights=ModalityBalance()))
    make(ranges=LeastSquares(token_weights=Uniform()), token_weights=ModalityBalance())


def test_a_balance_without_answers_is_refused_before_statistics(toy_family, toy_batches):
    class Module:
        exports, family = False, toy_family

        def __init__(self, weights):
            self.method = MinMax(token_weights=weights)

    blind = [b | {"labels": torch.full_like(b["labels"], -100)} for b in toy_batches]
    model, ids = toy_family.load_model(), [str(i) for i in range(12)]
    with pytest.raises(InputError, match="no answers, whose gradients token weights need"):
        check_before(Module(ModalityBalance()), model, blind, ids)
    check_before(Module(ByKind(vision=0.1)), model, blind, ids)
    check_before(Module(ModalityBalance()), model, toy_batches, ids)
