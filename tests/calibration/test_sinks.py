"""Finding sink tokens, and keeping the keys and values of the first ones."""

import pytest
import torch

from qvlm_lightning.calibration import sinks as module
from qvlm_lightning.calibration.sinks import (
    FirstKeysAndValues,
    constant_prefix,
    massive_positions,
    prefix_length,
    recurring_tokens,
)
from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.sinks import SinkTokens
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.vision.parts import parts_of_process


def test_massive_positions_are_those_of_a_loop():
    torch.manual_seed(0)
    peaks = {n: torch.rand(5 + n) * 20 ** (torch.arange(5 + n) % 3 == 0) for n in range(4)}
    places = {2: torch.arange(7) + 3}
    median = sorted(torch.cat(list(peaks.values())).tolist())[
        (sum(map(len, peaks.values())) - 1) // 2
    ]
    expected = {
        n: {i + (3 if n == 2 else 0) for i, x in enumerate(row.tolist()) if x > 8 * median}
        for n, row in peaks.items()
    }
    assert massive_positions(peaks, places) == expected
    assert any(expected.values())
    assert massive_positions({}, {}) == {}


@pytest.mark.parametrize(
    ("massive", "longest", "expected"),
    [
        ({0: set(), 1: set()}, 3, 1),
        ({0: {0, 1}, 1: {0, 1}}, 3, 2),
        ({0: {0, 1}, 1: {0}, 2: {0}}, 3, 1),
        ({0: {0, 4}, 1: {0, 4}}, 3, 1),
    ],
)
def test_the_prefix_ends_behind_the_last_token_that_is_often_massive(massive, longest, expected):
    assert prefix_length(massive, longest) == expected


def test_recurring_tokens_are_massive_in_most_samples_that_have_them():
    ids = {0: [1, 8, 9], 1: [1, 9, 8], 2: [1, 9, 7], 3: [1, 9, 7]}
    massive = {0: {0, 1}, 1: {0, 2}, 2: {0, 1}, 3: {0}}
    # 8 in both of its samples, 9 in one of four, 1 only as the first
    assert recurring_tokens(massive, ids, {1, 7, 8, 9}) == (8,)
    assert recurring_tokens(massive, ids, {1, 7, 9}) == ()
    assert recurring_tokens({0: {1}}, ids, {8}) == (), "once is no pattern"
    # 9 is massive in both samples that have it behind the first two tokens
    late = {0: [1, 9, 9], 1: [1, 9, 9], 2: [1, 9, 7], 3: [1, 9, 7], 4: [1, 9, 7]}
    assert recurring_tokens({0: {1, 2}, 1: {2}, 2: {1}, 3: set(), 4: set()}, late, {9}, 2) == (9,)


def test_the_constant_prefix_ends_at_the_first_image_and_the_first_difference(toy_family, make):
    batch = make(0)
    assert constant_prefix(toy_family, [batch]) == (1,)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    same = torch.cat([ids[:, :1], torch.full_like(ids[:, :2], 5), ids[:, 1:]], dim=1)
    longer = torch.cat([mask[:, :2], mask], dim=1)
    labels = torch.full_like(same, -100)
    given = {"input_ids": same, "attention_mask": longer, "labels": labels}
    assert constant_prefix(toy_family, [given]) == (1, 5, 5)
    same[3, 2] = 6
    assert constant_prefix(toy_family, [given, given]) == (1, 5)


@pytest.fixture
def first_keys(calibrated):
    made = calibrated(Scheme.parse("w4a4", sink="prefix"))
    site = next(s for s in made.structure.towers["language"].sites if "attn_in" in s.name)
    return FirstKeysAndValues(made.structure), site, made.batches[0]


def test_keys_that_differ_between_samples_are_refused(first_keys):
    keys, site, batch = first_keys
    x = torch.ones(*batch["input_ids"].shape, site.leader.in_features)
    keys.update(site, x, batch)
    x[2, 0, 3] += 1
    with pytest.raises(
        InputError, match=r"samples 0 and 2 differ by .*: the first tokens see later"
    ):
        keys.update(site, x, batch)


@pytest.fixture
def stored(first_keys):
    """Keys and values as two processes found them, in rounding apart."""
    keys, _, _ = first_keys
    values = {
        name: linear.sink_output.value.clone()
        for site in keys.structure.sites
        for name, linear in site.linears.items()
        if linear.sink_output is not None
    }
    return keys, values, {name: value * (1 + 1e-6) for name, value in values.items()}


@pytest.mark.parametrize(("mine", "theirs"), [(4, 2), (2, 4)])
def test_every_process_stores_the_keys_of_the_first_sample(stored, monkeypatch, mine, theirs):
    keys, own, others = stored
    keys.values = {name: (mine, value) for name, value in own.items()}
    monkeypatch.setattr(
        module, "gather_objects", lambda x: [x, {n: (theirs, v) for n, v in others.items()}]
    )
    keys.store()
    expected = own if mine < theirs else others
    for site in keys.structure.sites:
        for name, linear in site.linears.items():
            if linear.sink_output is not None:
                assert torch.equal(linear.sink_output.value, expected[name])
    assert any(not torch.equal(own[name], others[name]) for name in own)


def test_keys_that_differ_between_processes_are_refused(stored, monkeypatch):
    keys, own, others = stored
    keys.values = {name: (4, value) for name, value in own.items()}
    monkeypatch.setattr(
        module, "gather_objects", lambda x: [x, {n: (6, v + 1) for n, v in others.items()}]
    )
    with pytest.raises(InputError, match="samples 4 and 6 differ"):
        keys.store()


def test_parts_of_a_process_say_their_sinks(toy_family, make):
    class Data:
        def rank_batches(self, rank, size):
            return [make(0)]

    model = toy_family.load_model()
    sinks = SinkTokens(prefix=(1,))
    ((part,),) = parts_of_process(Data(), toy_family, model, 1, sinks)
    assert part["sink"][:, 0].all()
    assert not part["sink"][:, 1:].any()
    ((plain,),) = parts_of_process(Data(), toy_family, model, 1)
    assert "sink" not in plain
