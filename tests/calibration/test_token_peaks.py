"""Which calibration token stands out at a site, and where it stands."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.calibration.token_peaks import (
    Peak,
    TokenPeaks,
    counted_tokens,
    expert_places,
    find_peak,
    recurring_positions,
)
from qvlm_lightning.errors import InputError


def values(seed: int, samples: int, tokens: int) -> list[list[list[float]]]:
    """Numbers with halves, so that equal magnitudes occur and float32 holds every one."""
    draw = random.Random(seed)
    return [
        [[draw.randint(-20, 20) / 2 for _ in range(3)] for _ in range(tokens)]
        for _ in range(samples)
    ]


def by_loops(x: list[list[list[float]]], mask: list[list[bool]]) -> Peak:
    """Return the token that stands out most, and where it stands behind the padding."""
    magnitudes, worst = [], (-1.0, 0, 0)
    for sample, tokens in enumerate(x):
        first = next(place for place, real in enumerate(mask[sample]) if real)
        for place, channels in enumerate(tokens):
            if mask[sample][place]:
                magnitude = max(abs(value) for value in channels)
                magnitudes.append(magnitude)
                if magnitude > worst[0]:
                    worst = (magnitude, sample, place - first)
    middle = sorted(magnitudes)[(len(magnitudes) - 1) // 2]
    return Peak(worst[0], middle, worst[1], worst[2])


@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@pytest.mark.parametrize("side", ["left", "right", "hole"])
def test_the_worst_token_is_that_of_plain_loops_whatever_the_padding(side, seed, lengths):
    """A token that does not count holds the largest value of all."""
    width = max(lengths) + 2
    x = values(seed, len(lengths), width)
    mask = [
        [(p < n) if side != "left" else (p >= width - n) for p in range(width)] for n in lengths
    ]
    if side == "hole":
        for row in mask:
            row[2], row[1] = True, False
    for tokens, row in zip(x, mask, strict=True):
        for place, real in enumerate(row):
            tokens[place] = tokens[place] if real else [1000.0, float("nan"), 0.0]
    peaks = TokenPeaks()
    peaks.update("site", torch.tensor(x), torch.tensor(mask), range(len(lengths)))
    assert peaks.peak("site") == by_loops(x, mask)


@given(seed=st.integers(0, 999))
def test_batches_order_and_processes_do_not_matter(seed):
    x, mask = torch.tensor(values(seed, 6, 5)), torch.ones(6, 5, dtype=torch.bool)
    mask[2, 3:], mask[4, :2] = False, False
    whole, first, second = TokenPeaks(), TokenPeaks(), TokenPeaks()
    whole.update("site", x, mask, range(6))
    second.update("site", x[3:], mask[3:], [3, 4, 5])
    for row in (2, 0, 1):
        first.update("site", x[row : row + 1], mask[row : row + 1], [row])
    merged = TokenPeaks()
    for part in (second, first):
        merged.merge("site", part.state("site"))
    assert merged.peak("site") == whole.peak("site")
    assert merged.recurring("site", 1.0) == whole.recurring("site", 1.0)
    for index in range(6):
        assert torch.equal(merged.of("site")[index], x[index][mask[index]].abs().amax(1))


def test_a_sample_that_comes_again_is_counted_once():
    peaks = TokenPeaks()
    gap = torch.tensor([[True, False, True]])
    peaks.update("site", torch.tensor([[[50.0], [1.0], [1.0]]]), gap, [0])
    assert peaks.places("site")[0].tolist() == [0, 2]
    peaks.update("site", torch.tensor([[[1.0], [3.0], [2.0]]]), None, [0])
    assert peaks.peak("site") == Peak(3.0, 2.0, 0, 1)
    assert peaks.places("site") == {}


def test_positions_of_an_expert_are_those_of_its_tokens():
    """The second sample has two tokens of padding in front; rows of filling are -1."""
    tokens = torch.tensor([[0, 3, -1], [2, 4, 5]])
    mask = torch.tensor([[True, True, True, True, False, False], [False, False] + [True] * 4])
    places = expert_places(tokens, mask)
    assert places[:, 0].tolist() == [0, 0]
    peaks = TokenPeaks()
    x = torch.tensor([[[1.0], [2.0], [99.0]], [[1.0], [2.0], [-7.0]]])
    peaks.update("expert", x, tokens >= 0, [4, 5], places)
    assert peaks.peak("expert") == Peak(7.0, 2.0, 5, 3)
    # of both samples: rows of at least the median, 2
    assert peaks.recurring("expert", 1.0) == {3: 2, 2: 1}
    assert expert_places(tokens, None) is tokens


def test_positions_recur_by_the_number_of_samples_that_have_them():
    draw = random.Random(3)
    peaks = {s: torch.tensor([draw.choice([1.0, 9.0]) for _ in range(4 + s)]) for s in range(5)}
    wanted: dict[int, int] = {}
    for magnitudes in peaks.values():
        for place, magnitude in enumerate(magnitudes.tolist()):
            if magnitude >= 9:
                wanted[place] = wanted.get(place, 0) + 1
    found = recurring_positions(peaks, 9.0)
    assert found == wanted
    assert list(found) == sorted(wanted, key=lambda place: (-wanted[place], place))
    shifted = recurring_positions(peaks, 9.0, {0: torch.arange(4) + 100})
    assert {p for p in shifted if p >= 100} == {100 + int(p) for p in (peaks[0] >= 9).nonzero()}


def test_of_equal_tokens_the_first_sample_and_position_is_named():
    assert find_peak({3: torch.tensor([1.0, 5.0, 5.0]), 1: torch.tensor([2.0, 2.0, 5.0])}) == Peak(
        5.0, 2.0, 1, 2
    )


def test_the_ratio_is_finite_where_most_tokens_are_zero():
    silent = find_peak({0: torch.tensor([0.0, 0.0, 1.0])})
    assert silent.median == 0
    assert 8 < silent.ratio < float("inf")
    assert find_peak({0: torch.zeros(3)}).ratio == 0


def test_token_ids_start_at_the_first_real_token():
    batch = {
        "sample_index": torch.tensor([5, 6, 7]),
        "input_ids": torch.tensor([[0, 0, 11, 12], [21, 22, 23, 0], [0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]),
    }
    assert counted_tokens([batch]) == {5: [11, 12], 6: [21, 22, 23], 7: []}


def test_shapes_that_do_not_fit_and_sites_without_tokens_are_refused():
    peaks = TokenPeaks()
    with pytest.raises(InputError, match=r"\(2, 3\) came with 2 sample numbers"):
        peaks.update("site", torch.ones(2, 3), None, [0, 1])
    with pytest.raises(InputError, match=r"\(2, 3, 4\) came with 1 sample numbers"):
        peaks.update("site", torch.ones(2, 3, 4), None, [0])
    peaks.update("site", torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool), [0])
    assert peaks.sites == []
    with pytest.raises(InputError, match="no token has been observed"):
        peaks.ratio("site")
