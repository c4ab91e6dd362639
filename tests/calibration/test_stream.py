"""A streamed calibration decides what one in memory decides, to the bit."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from qvlm_lightning.artifact import copy_weights, stored_tensors
from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch
from qvlm_lightning.methods.proxies import ConditionalEntropy, QuantizationError
from qvlm_lightning.nn.linear import output_sqnr
from qvlm_lightning.quant.scheme import Scheme


def decisions(calibrator: Calibrator) -> dict[str, Any]:
    state = calibrator.state.to_dict()
    for search in state["passes"]:
        search.pop("seconds")
    return state


def quantizers(calibrator: Calibrator) -> dict[str, Tensor]:
    state = calibrator.model.state_dict()
    return {n: x for n, x in state.items() if "_quantizer." in n or "sink_output" in n}


def assert_equal(streamed: Calibrator, whole: Calibrator) -> None:
    assert decisions(streamed) == decisions(whole)
    assert streamed.fingerprint == whole.fingerprint
    ours, theirs = quantizers(streamed), quantizers(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    seen, wanted = streamed.statistics.peaks, whole.statistics.peaks
    assert set(seen.sites) == set(wanted.sites) == {s.name for s in whole.structure.sites}
    assert all(seen.peak(site) == wanted.peak(site) for site in wanted.sites)


@pytest.mark.parametrize(
    "mode",
    ["static_tensor", pytest.param("static_channel", marks=pytest.mark.slow), "dynamic_token"],
)
def test_partition_percentiles_and_objectives_are_those_in_memory(calibrate, folder, mode):
    scheme = Scheme.parse("w4a4", activation_mode=mode)
    options = {"scheme": scheme, "proxy": ConditionalEntropy()}
    whole = calibrate(folder, False, **options)
    assert_equal(calibrate(folder, True, **options), whole)
    assert any(len(set(block)) > 1 for block in whole.state.partition["language"])
    if mode != "dynamic_token":
        assert len(set(whole.state.percentiles.values())) > 1


@pytest.mark.parametrize("method", [MinMax(), SequentialSearch(), JointSearch(per="layer")])
def test_any_method_without_a_partition(calibrate, folder, method):
    runs = [calibrate(folder, on, method) for on in (True, False)]
    assert_equal(*runs)


def test_sink_tokens_and_their_keys(calibrate, folder):
    scheme = Scheme.parse("w4a4", sink="prefix")
    streamed, whole = (
        calibrate(folder, on, SequentialSearch(), scheme=scheme) for on in (True, False)
    )
    assert_equal(streamed, whole)
    assert sum("sink_output" in name for name in quantizers(whole)) == 8, "4 layers"
    assert streamed.structure.sinks.to_dict() == whole.structure.sinks.to_dict() != {}


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision(calibrate, folder, dtype):
    """Weights are cast tensor by tensor, as loading the model does."""
    options = {"dtype": dtype, "proxy": ConditionalEntropy()}
    runs = [calibrate(folder, on, **options) for on in (True, False)]
    assert_equal(*runs)
    assert {e.dtype for e in runs[0].passes.weights.shards.entries.values()} == {torch.float32}


def test_costly_proxies_hold_the_pair_they_run(calibrate, folder):
    runs = [calibrate(folder, on, proxy=QuantizationError()) for on in (True, False)]
    assert_equal(*runs)


def test_a_single_file_and_tied_embeddings(calibrate, make, build, tmp_path):
    model = build()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    runs = [calibrate(tmp_path, on, MinMax()) for on in (True, False)]
    assert_equal(*runs)


def test_parts_at_sixteen_bits_are_run_all_the_same(calibrate, folder):
    scheme = Scheme.parse("vision-w16a16_projector-w16a16_language-w4a4")
    runs = [calibrate(folder, on, scheme=scheme) for on in (True, False)]
    assert_equal(*runs)


def test_hidden_states_on_disk_change_nothing_and_leave_nothing(calibrate, folder, tmp_path):
    spill = tmp_path / "run" / "hidden"
    spilled = calibrate(folder, True, spill=spill)
    assert_equal(spilled, calibrate(folder, False))
    assert spill.is_dir()
    assert list(spill.iterdir()) == []


def test_noise_of_every_layer_is_that_in_memory(calibrate, folder, toy_batches):
    found = []
    for on in (True, False):
        calibrator = calibrate(folder, on, MinMax())
        sites = calibrator.structure.sites
        linears = {name: x for site in sites for name, x in site.linears.items()}
        with output_sqnr(linears) as ratios:
            calibrator.passes.watch(
                {0: toy_batches[0]}, {}, set(calibrator.structure.towers), lambda *_: None
            )
        found.append(ratios)
    assert found[0] == found[1]
    assert len(found[0]) == len(linears)


@pytest.mark.parametrize("lost", ["nothing", "encoder.layers.2."])  # cannot reach the output
def test_the_exported_weights_are_the_same_file(calibrate, build, tmp_path, lost):
    from safetensors.torch import save_file

    model, folder = build(), tmp_path / "model"
    kept = {name: x for name, x in model.state_dict().items() if lost not in name}
    model.save_pretrained(folder, state_dict=kept)
    streamed, whole = (calibrate(folder, on, MinMax()) for on in (True, False))
    kept = stored_tensors(whole.model)
    weights = {name: kept.read(name) for name in kept.kinds}
    save_file(weights, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    path = tmp_path / "streamed.safetensors"
    copied, _ = copy_weights(path, streamed.model, streamed.passes.weights, {})
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert streamed.fingerprint == whole.fingerprint
    state = whole.model.state_dict()
    zeros = [name for name, x in state.items() if name.endswith(".weight") and x.eq(0).all()]
    assert len(zeros) == (0 if lost == "nothing" else 8)
    assert copied.keys() == kept.quantizers.keys()
    assert all(torch.equal(copied[name], x) for name, x in kept.quantizers.items())


@pytest.mark.parametrize("kind", ["Qwen2Moe", "Mixtral"])
def test_fused_experts_are_read_one_by_one(calibrate, tmp_path, kind):
    """A checkpoint keeps every expert apart, and so does the model once it is un-fused."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text = getattr(transformers, f"{kind}Config")(
        **shape, vocab_size=40, hidden_size=24, intermediate_size=32, num_experts_per_tok=2
    )
    vision = transformers.CLIPVisionConfig(
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_size=16,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    text.num_experts = text.num_local_experts = 4
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(tmp_path)
    runs = [calibrate(tmp_path, on, SequentialSearch()) for on in (True, False)]
    assert_equal(*runs)
    assert runs[0].structure.notes == runs[1].structure.notes
    assert sum(".experts.3." in name for name in runs[0].structure.quantized) == 2 * 3
