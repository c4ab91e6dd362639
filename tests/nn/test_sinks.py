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
        count, own = 0, []
        for token, counts in zip(row, real[len(real) - len(row) :], strict=True):
            place = len(prefix) if token in tokens else -1
            if counts:
                if past == 0 and count < len(prefix):
                    place = count
                count += 1
            own.append(place)
        found.append(own)
    return found


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("left", [False, True])
def test_places_are_those_of_a_loop(left, past):
    ids = [[1, 7, 4, 9, 0, 0], [1, 7, 9, 3, 1, 7]]
    mask = [[1] * 4 + [0] * 2, [1] * 6]
    if left:
        ids[0], mask[0] = ids[0][4:] + ids[0][:4], mask[0][::-1]
    mask = [[1] * past + row for row in mask]
    sinks = SinkTokens(PREFIX, (OTHER,))
    places = sinks.places(torch.tensor(ids), torch.tensor(mask), past)
    assert places.tolist() == looped(ids, mask, PREFIX, (OTHER,), past)


def test_without_a_mask_every_token_is_real():
    assert SinkTokens(PREFIX).places(torch.tensor([[1, 7, 1, 7]])).tolist() == [[0, 1, -1, -1]]


@pytest.mark.parametrize("ids", [[1, 8, 4], [7, 1, 4], [1]])
def test_stored_keys_refuse_a_prompt_that_begins_otherwise(ids):
    with pytest.raises(InputError, match=r"first tokens \[1, 7\], a prompt begins with \["):
        SinkTokens(PREFIX, stored=True).places(torch.tensor([[1, 7, 4][: len(ids)], ids]))


def test_stored_keys_refuse_a_prompt_in_pieces():
    with pytest.raises(InputError, match="1 of the 2 first tokens"):
        SinkTokens(PREFIX, stored=True).places(torch.tensor([[7]]), None, past=1)


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


def test_a_pass_is_noted_from_the_arguments_of_the_model():
    class Cache:
        def get_seq_length(self) -> int:
            return 2

    class Model(nn.Module):
        def forward(self, input_ids, attention_mask=None, past_key_values=None):
            return input_ids

    model, sinks = Model(), SinkTokens(PREFIX)
    sinks.watch(model)
    ids, mask = torch.tensor([[0, 1, 7, 9]]), torch.tensor([[0, 1, 1, 1]])
    model(ids, attention_mask=mask)
    assert sinks.place.tolist() == [[-1, 0, 1, -1]]
    model(input_ids=ids)
    assert sinks.place.tolist() == [[0, 1, -1, -1]]
    model(input_ids=ids[:, 1:], past_key_values=Cache())
    assert sinks.place.tolist() == [[-1, -1, -1]]
    with pytest.raises(InputError, match="give input_ids"):
        model(input_ids=None)


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
