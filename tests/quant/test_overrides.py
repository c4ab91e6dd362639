"""Widths of single layers in a scheme: what is allowed, how it is named and stored."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.scheme import PARTS, WIDTHS, PartScheme, Scheme

NAMES = [f"layers.{i}.{leaf}" for i in (1, 2, 11) for leaf in ("q_proj", "down_proj")]
bits = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(WIDTHS) for key in ("weight_bits", "activation_bits")}
).filter(bool)
overrides = st.dictionaries(
    st.sampled_from(["down_proj", r"layers\.1\.", "q_proj$", r"layers\.(1|11)\.q", "nothing"]), bits
)


@given(overrides, st.sampled_from(["w4a4", "w8a8", "vision-w8a4_projector-w16a16_language-w3a6"]))
def test_the_last_pattern_that_gives_a_width_decides(given_to, name):
    scheme = Scheme.parse(name, overrides=given_to)
    for part in PARTS:
        for layer in NAMES:
            widths = {
                "weight_bits": scheme.part(part).weight_bits,
                "activation_bits": scheme.part(part).activation_bits,
            }
            for pattern, told in given_to.items():
                for key, width in told.items():
                    if re.search(pattern, layer) is not None:
                        widths[key] = width
            assert scheme.widths(part, layer) == PartScheme(**widths)


@given(overrides, overrides)
def test_names_and_stored_values_tell_schemes_apart(first, second):
    one, other = Scheme.parse("w8a8", overrides=first), Scheme.parse("w8a8", overrides=second)
    stored = json.loads(json.dumps(one.to_dict()))
    back = Scheme.from_dict(stored)
    assert back == one
    assert list(back.overrides) == list(first)
    assert hash(back) == hash(one)
    same = list(first.items()) == list(second.items())
    assert (one.identity() == other.identity()) == same
    assert (one.name == other.name) == same
    assert one.name.partition("+")[0] == "w8a8"
    assert Scheme.parse(one.name, overrides=first) == one
    if first:
        with pytest.raises(InputError, match="has overrides that its name does not say"):
            Scheme.parse(one.name)


def test_the_order_counts_where_two_runs_are_compared():
    """Equal as objects, sorted or not, but another pattern decides."""
    narrow, wide = {"down": {"activation_bits": 8}}, {"mlp": {"activation_bits": 16}}
    one, other = Scheme(overrides=narrow | wide), Scheme(overrides=wide | narrow)
    assert one.widths("language", "mlp.down") != other.widths("language", "mlp.down")
    assert one.to_dict() == other.to_dict()
    dumped = [json.dumps(s.identity(), sort_keys=True) for s in (one, other)]
    assert dumped[0] != dumped[1]
    assert one.name != other.name


def test_a_scheme_without_overrides_is_stored_as_before_there_were_any():
    """Old checkpoints and decisions compare equal, old artifacts load."""
    assert "overrides" not in Scheme().to_dict()
    assert Scheme().identity() == Scheme().to_dict()
    assert Scheme.from_dict(Scheme().to_dict()).overrides == {}
    assert Scheme.parse("w4a4").name == "w4a4"


def test_the_name_says_which_widths_there_are():
    given_to = {"down": {"activation_bits": 16}, "q": {"weight_bits": 8, "activation_bits": 8}}
    assert re.fullmatch(r"w4a4\+a8a16w8_[0-9a-f]{4}", Scheme(overrides=given_to).name)
    assert Scheme.parse("fp", overrides=given_to).name.startswith("fp+a8a16w8_")


def test_what_was_given_can_change_without_changing_the_scheme():
    given_to = {"down": {"activation_bits": 8}}
    scheme = Scheme(overrides=given_to)
    given_to["down"]["activation_bits"] = 4
    assert scheme.overrides == {"down": {"activation_bits": 8}}


@pytest.mark.parametrize(
    ("given_to", "message"),
    [
        ({"down": {"bits": 8}}, r"pattern 'down' has the key 'bits'; allowed are weight_bits and"),
        ({"down": {"activation_bits": 9}}, r"'down' has activation_bits 9, .* 2 to 8, or 16"),
        ({"down": {"weight_bits": True}}, r"'down' has weight_bits True, which is not allowed"),
        ({"down": {"weight_bits": 4.5}}, r"'down' has weight_bits 4\.5, which is not allowed"),
        ({"down": {}}, r"'down' has \{\}; allowed are weight_bits and activation_bits"),
        ({"down": 8}, r"'down' has 8; allowed are weight_bits and activation_bits"),
        ({"(": {"weight_bits": 8}}, r"overrides pattern '\(' is no regular expression"),
        ({3: {"weight_bits": 8}}, r"overrides pattern 3 is no regular expression"),
        (["down"], r"overrides is \['down'\]; allowed is an object of regular expressions"),
        (None, r"overrides is None; allowed is an object of regular expressions"),
    ],
)
def test_faults_name_what_was_given_and_what_is_allowed(given_to, message):
    for make in (lambda: Scheme(overrides=given_to), lambda: from_stored(given_to)):
        with pytest.raises(InputError, match=message) as fault:
            make()
        assert "\n" not in str(fault.value)


def from_stored(given_to):
    return Scheme.from_dict({"overrides": given_to})
