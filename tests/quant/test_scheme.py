import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant import PartScheme, Scheme
from qvlm_lightning.quant.scheme import PARTS, WIDTHS

parts = st.builds(PartScheme, st.sampled_from(WIDTHS), st.sampled_from(WIDTHS))
schemes = st.builds(
    Scheme,
    parts,
    parts,
    parts,
    activation_mode=st.sampled_from(["static_tensor", "static_channel", "dynamic_token"]),
    weight_symmetric=st.booleans(),
    group_size=st.sampled_from([None, 32, 128]),
    group_fallback=st.sampled_from(["error", "channel"]),
    ignore=st.sampled_from([(), ("lm_head",), (r"layers\.0\.", "q_proj$")]),
)


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits"), [("w4a4", 4, 4), ("w4a16", 4, 16), ("w8a8", 8, 8)]
)
def test_parse_gives_all_parts_the_same_widths(name, weight_bits, activation_bits):
    scheme = Scheme.parse(name)
    assert {scheme.part(p) for p in PARTS} == {PartScheme(weight_bits, activation_bits)}
    assert scheme.name == name


def test_name_tells_parts_apart_and_full_precision():
    scheme = Scheme(PartScheme(8, 8), PartScheme(8, 8), PartScheme(4, 4))
    assert scheme.name == "vision-w8a8_projector-w8a8_language-w4a4"
    assert Scheme.parse("fp").name == "fp"
    assert Scheme.parse("w16a16").name == "fp"
    assert Scheme.parse("w4a4", group_size=32).group_size == 32


@settings(max_examples=60, deadline=None, derandomize=True)
@given(schemes)
def test_q12_scheme_survives_json_and_its_name(scheme):
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme
    options = {f.name: getattr(scheme, f.name) for f in dataclasses.fields(Scheme)}
    others = {name: value for name, value in options.items() if name not in PARTS}
    assert Scheme.parse(scheme.name, **others) == scheme
    assert hash(scheme) == hash(Scheme.from_dict(scheme.to_dict()))


def test_weight_groups():
    assert Scheme().weight_groups(96) is None
    assert Scheme(group_size=32).weight_groups(96) == 32
    assert Scheme(group_size=64).weight_groups(96) is None
    with pytest.raises(
        InputError, match=r"group_size 64 does not divide 96 .*group_fallback: channel"
    ):
        Scheme(group_size=64, group_fallback="error").weight_groups(96)


def test_a_stored_scheme_names_its_fallback():
    """The default was ``error`` once: a manifest's meaning is not the default's of the day."""
    assert Scheme().to_dict()["group_fallback"] == "channel"
    stored = Scheme(group_size=64, group_fallback="error").to_dict()
    with pytest.raises(InputError, match="group_size 64 does not divide 96"):
        Scheme.from_dict(stored).weight_groups(96)


@pytest.mark.parametrize("bits", [0, 1, 9, 15, 17, 32, -4, True, 4.5, "4"])
def test_width_outside_2_to_8_and_16(bits):
    with pytest.raises(InputError, match=r"weight_bits .* is not allowed; 2 to 8, or 16"):
        PartScheme(bits, 4)
    with pytest.raises(InputError, match=r"activation_bits .* is not allowed; 2 to 8, or 16"):
        PartScheme(4, bits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheme.parse("int4"), "scheme 'int4' cannot be read; allowed: 'w4a4'"),
        (lambda: Scheme.parse("w9a4"), "weight_bits 9 is not allowed"),
        (lambda: Scheme.parse("vision-w4a4"), "cannot be read"),
        (lambda: Scheme.parse("vision-w4a4_projector-x_language-w4a4"), "cannot be read"),
        (
            lambda: Scheme(activation_mode="dynamic"),
            "activation_mode 'dynamic' is not known; allowed: 's",
        ),
        (lambda: Scheme(group_fallback="skip"), "group_fallback 'skip' is not known"),
        (lambda: Scheme(group_size=0), "group_size 0 is not allowed; a positive integer"),
        (lambda: Scheme(group_size=True), "group_size True is not allowed"),
        (lambda: Scheme(ignore=("(",)), r"ignore pattern '\(' is no regular expression"),
        (lambda: Scheme(ignore="lm_head"), "ignore 'lm_head' is one string; allowed is a list"),
        (
            lambda: Scheme().part("audio"),
            "part 'audio' is not known; allowed: 'vision', 'projector'",
        ),
        (lambda: Scheme.from_dict({"bits": 4}), "scheme key 'bits' is not known"),
        (lambda: Scheme.from_dict({"vision": {"bits": 4}}), "key of vision 'bits' is not known"),
    ],
)
def test_faults_name_what_was_given_and_what_is_allowed(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("sink", ["none", "bypass", "prefix"])
@pytest.mark.parametrize("overrides", [{}, {"down_proj": {"activation_bits": 16}}])
def test_a_name_with_sinks_is_read_again(sink, overrides):
    scheme = Scheme.parse("w8a8", sink=sink, overrides=overrides)
    assert scheme.name.endswith("" if sink == "none" else f"+{sink}")
    assert Scheme.parse(scheme.name, overrides=overrides) == scheme
    assert Scheme.from_dict(scheme.to_dict()) == scheme


def test_sinks_that_contradict_a_name_are_refused():
    with pytest.raises(InputError, match=r"'w8a8\+prefix' comes with sink 'bypass'"):
        Scheme.parse("w8a8+prefix", sink="bypass")
    with pytest.raises(InputError, match="sink 'both' is not known; allowed: 'none', 'bypass'"):
        Scheme(sink="both")


def test_a_scheme_without_sinks_is_stored_as_before_there_were_any():
    assert "sink" not in Scheme().to_dict()
    assert Scheme(sink="prefix").to_dict()["sink"] == "prefix"
