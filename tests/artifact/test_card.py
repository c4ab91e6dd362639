"""The model card of an artifact."""

import pytest
import yaml

from qvlm_lightning.artifact.card import CARD, license_of, model_card, put_results, with_results

MANIFEST = {
    "method": "sequential",
    "settings": {"class": "SequentialSearch", "per": "site"},
    "objective": "normalized",
    "candidates": [1.0, 0.99],
    "scheme": {"language": {"weight_bits": 4}},
    "scheme_name": "w4a8+prefix",
    "activation_mode": "static_tensor",
    "calibration_ids": ["a.jsonl:1", "a.jsonl:2"],
    "seed": 3,
    "versions": {"torch": "2.13"},
}


def test_a_card_says_what_was_done():
    card = model_card(MANIFEST, "owner/name", "mit")
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "mit"
    assert head["base_model"] == "owner/name"
    assert head["tags"] == ["quantized", "w4a8"]
    for said in (
        '"per": "site"',
        "| seed | `3` |",
        "2 samples, the first `a.jsonl:1`",
        "qvlm_lightning.load",
    ):
        assert said in card


def test_a_folder_is_no_base_model_of_the_hub(tmp_path):
    head = yaml.safe_load(model_card(MANIFEST, str(tmp_path), None).split("---")[1])
    assert "base_model" not in head
    assert "license" not in head


@pytest.mark.parametrize("value", ["a|b", "`x`", "a\nb", "\x1b[2J", "<script>", "x" * 9000])
def test_names_from_files_do_not_break_the_card(value):
    card = model_card(MANIFEST | {"method": value, "calibration_ids": [value]}, value, None)
    assert "\x1b" not in card
    assert "# <script>" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(rows) == 12
    assert max(map(len, card.splitlines())) < 1000
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: apache-2.0\ntags: []\n---\n# x", "apache-2.0"),
        ("---\ntags: []\nlicense: 'mit'\n---\n", "mit"),
        ("license: mit\n", None),
        ("---\nlicense: mit and something else\n---\n", None),
    ],
)
def test_the_license_is_that_of_the_base_model(tmp_path, text, found):
    assert license_of(tmp_path) is None
    (tmp_path / CARD).write_text(text)
    assert license_of(tmp_path) == found


def test_results_take_the_place_of_earlier_ones():
    card = model_card(MANIFEST, "owner/name", None)
    once = with_results(card, "| a |\n")
    assert "| a |" in once
    assert "Not evaluated" not in once
    assert with_results(once, "| b |") == with_results(card, "| b |")
    assert with_results("someone's own card", "| b |") == "someone's own card"


def test_results_are_put_into_the_card_of_an_artifact(tmp_path):
    put_results(tmp_path, "| a |")  # an artifact of an earlier version has no card
    assert not list(tmp_path.iterdir())
    (tmp_path / CARD).write_text(model_card(MANIFEST, "owner/name", None))
    put_results(tmp_path, "| a |")
    assert "| a |" in (tmp_path / CARD).read_text()
    assert [file.name for file in tmp_path.iterdir()] == [CARD]
