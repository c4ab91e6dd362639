"""Places of sink tokens in a pass, and stored rows in place of computed ones."""

import pytest
import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.routing import Route
from qvlm_lightning.nn.sinks import SinkOutput, SinkTokens

PREFIX, OTHER = (1, 7), 9


def looped(ids, mask, prefix, tokens, past):
    """Return the places of a pass by going through it token by token."""
    found = []
    for row, real in zip(ids, mask, strict=True):
        count, own = sum(real[:past]), []
        for token, counts in zip(row, real[past:], strict=True):
            place = len(prefix) if token in tokens else -1
            if counts:
                if count < len(prefix) and (count == 0 or token == prefix[count]):
                    place = count
                count += 1
            own.append(place)
        found.append(own)
    return found


@pytest.mark.parametrize("past", [0, 1, 3])
@pytest.mark.parametrize("left", [False, True])
def test_places_are_those_of_a_loop(left, past):
    ids = [[1, 7, 4, 9, 0, 0], [5, 8, 9, 3, 1, 7]]
    mask = [[1] * 4 + [0] * 2, [1] * 6]
    if left:
        ids[0], mask[0] = ids[0][4:] + ids[0][:4], mask[0][::-1]
    sinks = SinkTokens(PREFIX, (OTHER,))
    places = sinks.places(torch.tensor([r[past:] for r in ids]), torch.tensor(mask), past)
    assert places.tolist() == looped([r[past:] for r in ids], mask, PREFIX, (OTHER,), past)


def test_without_a_mask_or_with_one_of_the_pass_alone_every_earlier_token_is_real():
    ids = torch.tensor([[7, 1]])
    for mask in (None, torch.tensor([[1, 1]])):
        assert SinkTokens(PREFIX).places(ids, mask, past=1).tolist() == [[1, -1]]


def test_without_a_mask_every_token_is_real():
    assert SinkTokens(PREFIX).places(torch.tensor([[1, 7, 1, 7]])).tolist() == [[0, 1, -1, -1]]


@pytest.mark.parametrize(("ids", "place"), [([1, 8, 4], 1), ([7, 1, 4], 0)])
def test_stored_keys_refuse_a_prompt_that_begins_otherwise(ids, place):
    sentence = rf"first tokens \[1, 7\], a prompt has {ids[place]} at place {place}; use the chat"
    with pytest.raises(InputError, match=sentence):
        SinkTokens(PREFIX, stored=True).places(torch.tensor([[1, 7, 4], ids]))


def test_a_prompt_may_come_in_pieces():
    sinks = SinkTokens(PREFIX, stored=True)
    assert sinks.places(torch.tensor([[1]])).tolist() == [[0]]
    assert sinks.places(torch.tensor([[7, 1]]), None, past=1).tolist() == [[1, -1]]
    with pytest.raises(InputError, match="a prompt has 8 at place 1"):
        sinks.places(torch.tensor([[8]]), None, past=1)


def test_the_first_token_is_out_whatever_it_is_where_nothing_is_stored():
    assert SinkTokens((-1,)).places(torch.tensor([[5, 1]])).tolist() == [[0, -1]]


def test_rows_follow_stacked_copies_flat_tokens_and_experts():
    sinks = SinkTokens(PREFIX, place=torch.tensor([[0, 1, -1], [0, -1, 2]]))
    twice = [[0, 1, -1], [0, -1, 2]] * 2
    assert sinks.rows(torch.Size([4, 3, 8])).tolist() == twice
    assert sinks.rows(torch.Size([12, 8])).tolist() == [place for row in twice for place in row]
    experts = nn.Module()
    experts.tokens = {1: torch.tensor([[2, 0], [2, -1], [1, -1], [0, 2]])}
    rows = sinks.rows(torch.Size([4, 2, 8]), Route(experts, 1, "experts", "down"))
    assert rows.tolist() == [[-1, 0], [2, -1], [1, -1], [0, 2]]


def test_an_activation_of_another_pass_is_refused():
    with pytest.raises(InputError, match="call the model as a whole"):
        SinkTokens(PREFIX).rows(torch.Size([2, 3, 8]))
    sinks = SinkTokens(PREFIX, place=torch.tensor([[0, 1, -1, -1]]))
    for shape in ((1, 3, 8), (2, 2, 8)):
        with pytest.raises(InputError, match="does not belong"):
            sinks.rows(torch.Size(shape))


def test_a_place_lasts_as_long_as_its_block():
    sinks = SinkTokens(PREFIX, place=torch.tensor([[0]]))
    with sinks.at(torch.tensor([[1]])):
        assert sinks.place.tolist() == [[1]]
    assert sinks.place.tolist() == [[0]]


class Noting(nn.Module):
    """A model that keeps the places of its last pass."""

    def __init__(self, sinks):
        super().__init__()
        self.sinks, self.seen = sinks, None

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **more):
        self.seen = self.sinks.place
        return input_ids


class Cache:
    def get_seq_length(self) -> int:
        return 2


def test_a_pass_is_noted_from_the_arguments_of_the_model():
    sinks = SinkTokens(PREFIX)
    model = Noting(sinks)
    sinks.watch(model)
    ids, mask = torch.tensor([[0, 1, 7, 9]]), torch.tensor([[0, 1, 1, 1]])
    for args, given in (((ids, mask), {}), ((ids,), {"attention_mask": mask}), ((), {})):
        model(*args, **given, **({} if args else {"input_ids": ids, "attention_mask": mask}))
        assert model.seen.tolist() == [[-1, 0, 1, -1]]
    model(input_ids=ids)
    assert model.seen.tolist() == [[0, -1, -1, -1]]
    model(ids[:, 1:], None, Cache())
    assert model.seen.tolist() == [[-1, -1, -1]]
    with pytest.raises(InputError, match="give input_ids"):
        model(attention_mask=mask)
    with pytest.raises(InputError, match="use the default cache"):
        model(ids, attention_mask=mask[:, None, None])


def test_a_place_ends_with_its_pass_unless_a_backward_pass_may_follow():
    sinks = SinkTokens(PREFIX)
    model = Noting(sinks)
    sinks.watch(model)
    ids = torch.tensor([[1, 7, 9]])
    model(ids)
    assert sinks.place.tolist() == [[0, 1, -1]]
    with torch.no_grad():
        model(ids)
    assert sinks.place is None


def test_sinks_pass_a_quantizer_as_they_are():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)
    quantizer, plain = (ActivationQuantizer(4, "static_tensor", (), 1) for _ in range(2))
    for one in (quantizer, plain):
        one.set_range(torch.tensor(-0.5), torch.tensor(0.5), 1.0)
        one.enabled = True
    quantizer.sinks = SinkTokens(PREFIX, (OTHER,), place=torch.tensor([[0, 1, -1], [0, -1, 2]]))
    given, expected = quantizer(x), plain(x)
    for row, place in ((0, 0), (0, 1), (1, 0), (1, 2)):
        expected[row, place] = x[row, place]
    assert torch.equal(given, expected)
    assert not torch.equal(given, x)


def test_stored_rows_take_the_place_of_the_first_tokens_only():
    sinks = SinkTokens(PREFIX, place=torch.tensor([[-1, 0, 1, -1], [0, 1, -1, 2]]))
    stored = SinkOutput(sinks)
    output = torch.arange(16.0).reshape(2, 4, 2)
    assert stored(output) is output
    stored.value = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    expected = output.clone()
    expected[0, 1:3] = expected[1, :2] = stored.value
    assert torch.equal(stored(output), expected)
    fresh = SinkOutput(sinks)
    fresh.load_state_dict(stored.state_dict())
    assert torch.equal(fresh.value, stored.value)


@pytest.mark.parametrize("values", [None, {}, {"prefix": [1]}, {"prefix": [True], "tokens": []}])
def test_names_of_sinks_that_cannot_be_read_are_refused(values):
    with pytest.raises(InputError, match="lists of ids"):
        SinkTokens().update(values)


def test_names_of_sinks_go_through_plain_values():
    sinks = SinkTokens()
    sinks.update(SinkTokens(PREFIX, (OTHER,)).to_dict())
    assert (sinks.prefix, sinks.tokens) == (PREFIX, (OTHER,))


def test_a_line_names_the_sinks():
    assert SinkTokens(PREFIX, stored=True).describe() == (
        "sink tokens (keys and values are stored): the first 2, ids 1, 7"
    )
    assert SinkTokens((-1,), (OTHER, 4)).describe() == (
        "sink tokens (not quantized, a simulation only): the first 1, ids any; wherever they "
        "stand: 9, 4"
    )
