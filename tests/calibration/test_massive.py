"""Sites at which single tokens are far larger than the others: report, proposals, warning."""

import re
from dataclasses import replace

import pytest
import torch

from qvlm_lightning.calibration.massive import (
    MASSIVE,
    massive_report,
    massive_sites,
    proposed_overrides,
    warning_lines,
)
from qvlm_lightning.calibration.token_peaks import TokenPeaks, counted_tokens
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

LAYERS = "model.language_model.layers"
TOWER = "model.vision_tower.encoder.layers"
PROJECTOR = "model.multi_modal_projector"
DOWN = [f"{LAYERS}.{i}.down_in" for i in (0, 2, 3)]
SITES = [*DOWN, f"{LAYERS}.1.attn_in", f"{TOWER}.0.mlp_in", f"{PROJECTOR}.second_in"]


def peaks_of(sites, factor: float = 100.0) -> TokenPeaks:
    """Two samples of 4 tokens; at these sites token 2 of the second one is that much larger."""
    peaks = TokenPeaks()
    for site in [*sites, "quiet"]:
        x = torch.ones(2, 4, 3)
        if site != "quiet":
            x[1, 2, 0] = -factor
        peaks.update(site, x, None, [0, 1])
    return peaks


def test_a_site_is_massive_above_the_threshold_only():
    for factor, massive in ((MASSIVE, []), (MASSIVE + 0.5, ["a"])):
        assert massive_sites(peaks_of(["a"], factor), ["a", "quiet", "never reached"]) == massive


def linears_by_bits(structure) -> dict[str, int]:
    return {name: s.quantizer.num_bits for s in structure.sites for name in s.linears}


@pytest.mark.parametrize(("scheme", "more"), [("w4a4", 8), ("w6a6", 8), ("w8a8", 16)])
@pytest.mark.parametrize(
    "sites", [SITES, DOWN, [SITES[3]], [f"{LAYERS}.{i}.down_in" for i in range(4)], SITES[4:]]
)
def test_what_is_proposed_takes_these_sites_out_and_no_others(
    build, toy_family, sites, scheme, more
):
    structure = quantize_model(build(), toy_family, Scheme.parse(scheme))
    before = linears_by_bits(structure)
    wanted = {name for s in structure.sites if s.name in sites for name in s.linears}
    proposed = proposed_overrides(structure, Scheme.parse(scheme), sites)
    after = linears_by_bits(
        quantize_model(build(), toy_family, Scheme.parse(scheme, overrides=proposed))
    )
    assert after == {name: more if name in wanted else bits for name, bits in before.items()}
    kinds = {re.sub(r"\d+", "*", site) for site in sites}
    assert len(proposed) == len(kinds), "sites that differ in their layer's number share a pattern"


def test_patterns_are_short_but_tell_tower_and_decoder_apart(build, toy_family):
    scheme = Scheme.parse("w4a4")
    structure = quantize_model(build(), toy_family, scheme)
    more = {"activation_bits": 8}
    assert proposed_overrides(structure, scheme, SITES) == {
        "layers[.]0[.]mlp[.]fc1": more,
        "multi_modal_projector[.]linear_2": more,
        "layers[.](0|2|3)[.]mlp[.]down_proj": more,
        "language_model[.]layers[.]1[.]self_attn[.](q_proj|k_proj|v_proj)": more,
    }


def test_what_has_more_bits_already_is_not_proposed_again(build, toy_family):
    for bits in (6, 8, 16):
        given = {r"layers\.(0|2)\.mlp\.down_proj": {"activation_bits": bits}}
        scheme = Scheme.parse("w4a4", overrides=given)
        structure = quantize_model(build(), toy_family, scheme)
        left = proposed_overrides(structure, scheme, DOWN)
        assert left == {"layers[.]3[.]mlp[.]down_proj": {"activation_bits": 8}}
        (line, _) = warning_lines(structure, scheme, peaks_of(DOWN))
        assert re.findall(r"layers\.(\d)\.", line) == ["3"]
    off = Scheme.parse("w4a16")
    structure = quantize_model(build(), toy_family, off)
    assert proposed_overrides(structure, off, SITES) == {}
    assert warning_lines(structure, off, peaks_of(SITES)) == []


def test_a_layer_switched_on_in_a_part_that_is_off_is_warned_about(build, toy_family):
    scheme = Scheme.parse("fp", overrides={"down_proj": {"activation_bits": 8}})
    structure = quantize_model(build(), toy_family, scheme)
    assert len(warning_lines(structure, scheme, peaks_of(DOWN))) == 2
    assert proposed_overrides(structure, scheme, DOWN[:1]) == {
        "layers[.]0[.]mlp[.]down_proj": {"activation_bits": 16}
    }


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel", "dynamic_token"])
def test_a_warning_names_the_five_worst_sites_and_what_helps(build, toy_family, mode):
    scheme = Scheme.parse("w4a4", activation_mode=mode)
    structure = quantize_model(build(), toy_family, scheme)
    peaks = TokenPeaks()
    factors = dict(zip(SITES, (9, 1000, 20, 30, 40, 50), strict=True))
    for site, factor in factors.items():
        peaks.update(site, torch.tensor([[[1.0], [1.0], [float(factor)]]]), None, [0])
    lines = warning_lines(structure, scheme, peaks)
    if mode == "dynamic_token":
        assert lines == []
        return
    assert len(lines) == 2
    named = re.findall(r"(model\S+) \(([\d,]+) times\)", lines[0])
    worst = sorted(SITES, key=lambda site: -factors[site])[:5]
    assert named == [(site, f"{factors[site]:,}") for site in worst]
    assert "at 6 sites" in lines[0]
    assert "and 1 more" in lines[0]
    helps = ("scheme.sink: prefix", "scheme.overrides", "activation_mode: dynamic_token")
    for what in ("may clip these tokens", *helps):
        assert what in lines[1]
    assert "sink" not in warning_lines(structure, replace(scheme, sink="bypass"), peaks)[1]
    assert warning_lines(structure, scheme, peaks_of(SITES, 7.0)) == []


def test_a_run_warns_once_of_what_its_calibration_set_holds(calibrated, capsys, toy_batches):
    """One channel of a layer is made large, and with it the tokens that use it."""
    made = calibrated()
    lines = capsys.readouterr().out.splitlines()
    assert sum("the largest token exceeds" in line for line in lines) <= 1
    made.model.model.language_model.layers[2].mlp.up_proj.weight.data[0] *= 3000
    made.collect()
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "largest token exceeds" in x]
    ratios = {s: made.statistics.peaks.ratio(s) for s in made.statistics.peaks.sites}
    loud = [s for s in ratios if ratios[s] > MASSIVE]
    assert f"{LAYERS}.2.down_in" in loud
    assert f"at {len(loud)} sites" in line
    dynamic = calibrated(Scheme.parse("w4a4", activation_mode="dynamic_token"))
    capsys.readouterr()
    dynamic.model.model.language_model.layers[2].mlp.up_proj.weight.data[0] *= 3000
    dynamic.collect()
    assert "largest token" not in capsys.readouterr().out


def test_the_report_names_token_position_and_sample(build, toy_family, toy_batches):
    scheme = Scheme.parse("w4a4")
    structure = quantize_model(build(), toy_family, scheme)
    tokens = counted_tokens(toy_batches)
    ids = [f"sample {i}" for i in range(12)]
    told = massive_report(
        structure, scheme, peaks_of(SITES), tokens, ids, lambda token: f"<{token}>"
    )
    assert told["threshold"] == MASSIVE
    assert set(told["sites"]) == set(SITES)
    for name, site in told["sites"].items():
        assert (site["ratio"], site["worst"], site["median"]) == (100.0, 100.0, 1.0)
        assert (site["sample"], site["position"]) == ("sample 1", 2)
        assert site["recurring"] == {"2": 1}
        assert site["activation_bits"] == 4
        if name.startswith(LAYERS):
            assert site["token_id"] == int(toy_batches[0]["input_ids"][1, 2])
            assert site["token"] == f"<{site['token_id']}>"
        else:
            assert site["token"] is site["token_id"] is None
    assert told["proposed_overrides"] == proposed_overrides(structure, scheme, SITES)
