"""A streamed calibration decides what one in memory decides, to the bit, holding one block."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from qvlm_lightning.artifact import copy_weights, split_state
from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.stream import StreamedModel
from qvlm_lightning.calibration.stream_plan import StreamPlan
from qvlm_lightning.calibration.stream_run import open_model
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.proxies import ConditionalEntropy, Proxy, QuantizationError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.block import Block
from qvlm_lightning.nn.linear import QuantLinear, output_sqnr
from qvlm_lightning.nn.replay import run_unit
from qvlm_lightning.quant.scheme import Scheme

TOWERS = ["vision", "projector", "language"]
CPU = torch.device("cpu")
IMAGE = 3


class InFolder(Llava):
    """A LLaVA in a folder without a processor."""

    def load_processor(self) -> Any:
        raise AssertionError("there is no processor")

    def _image_token_id(self) -> int:
        return IMAGE


@pytest.fixture
def folder(build, tmp_path) -> Path:
    """The random model, saved in four shards."""
    build().save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 4
    return tmp_path / "model"


def calibrate(
    folder: Path,
    batches: list[dict[str, Tensor]],
    streamed: bool,
    method: Method | None = None,
    scheme: Scheme | None = None,
    proxy: Proxy | None = None,
    dtype: str = "float32",
    spill: Path | None = None,
) -> Calibrator:
    family, method = InFolder(str(folder), dtype), method or JointSearch()
    model: nn.Module
    model, weights = open_model(family, CPU) if streamed else (family.load_model(), None)
    scheme = scheme or Scheme.parse("w4a4")
    calibrator = Calibrator(model, family, scheme, batches, batches[:2], weights=weights)
    if isinstance(calibrator.passes, StreamedModel):
        calibrator.passes.spill = spill
    calibrator.collect(method.percentiles if streamed else None)
    if proxy is not None:
        calibrator.repartition(TOWERS, proxy)
    calibrator.search(TOWERS, method, "first")
    return calibrator


def decisions(calibrator: Calibrator) -> dict[str, Any]:
    state = calibrator.state.to_dict()
    for search in state["passes"]:
        search.pop("seconds")
    return state


def quantizers(calibrator: Calibrator) -> dict[str, Tensor]:
    state = calibrator.model.state_dict()
    return {n: x for n, x in state.items() if "input_quantizer." in n or "clip_ratio" in n}


def assert_equal(streamed: Calibrator, whole: Calibrator) -> None:
    assert decisions(streamed) == decisions(whole)
    assert streamed.fingerprint == whole.fingerprint
    ours, theirs = quantizers(streamed), quantizers(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- the same to the bit --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel", "dynamic_token"])
def test_partition_percentiles_and_objectives_are_those_in_memory(folder, toy_batches, mode):
    scheme = Scheme.parse("w4a4", activation_mode=mode)
    options = {"scheme": scheme, "proxy": ConditionalEntropy()}
    whole = calibrate(folder, toy_batches, False, **options)
    assert_equal(calibrate(folder, toy_batches, True, **options), whole)
    assert any(len(set(block)) > 1 for block in whole.state.partition["language"])
    if mode != "dynamic_token":
        assert len(set(whole.state.percentiles.values())) > 1


@pytest.mark.parametrize("method", [MinMax(), SequentialSearch(), JointSearch(per="layer")])
def test_any_method_without_a_partition(folder, toy_batches, method):
    runs = [calibrate(folder, toy_batches, on, method) for on in (True, False)]
    assert_equal(*runs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(folder, toy_batches, dtype):
    """Weights are cast tensor by tensor, as loading the model does."""
    options = {"dtype": dtype, "proxy": ConditionalEntropy()}
    runs = [calibrate(folder, toy_batches, on, **options) for on in (True, False)]
    assert_equal(*runs)
    assert {e.dtype for e in runs[0].passes.weights.shards.entries.values()} == {torch.float32}


def test_costly_proxies_hold_the_pair_they_run(folder, toy_batches):
    runs = [calibrate(folder, toy_batches, on, proxy=QuantizationError()) for on in (True, False)]
    assert_equal(*runs)


def test_a_single_file_and_tied_embeddings(make, build, toy_batches, tmp_path):
    model = build()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    runs = [calibrate(tmp_path, toy_batches, on, MinMax()) for on in (True, False)]
    assert_equal(*runs)


def test_parts_at_sixteen_bits_are_run_all_the_same(folder, toy_batches):
    scheme = Scheme.parse("vision-w16a16_projector-w16a16_language-w4a4")
    runs = [calibrate(folder, toy_batches, on, scheme=scheme) for on in (True, False)]
    assert_equal(*runs)


def test_hidden_states_on_disk_change_nothing_and_leave_nothing(folder, toy_batches, tmp_path):
    spill = tmp_path / "run" / "hidden"
    spilled = calibrate(folder, toy_batches, True, spill=spill)
    assert_equal(spilled, calibrate(folder, toy_batches, False))
    assert spill.is_dir()
    assert list(spill.iterdir()) == []


def test_noise_of_every_layer_is_that_in_memory(folder, toy_batches):
    found = []
    for on in (True, False):
        calibrator = calibrate(folder, toy_batches, on, MinMax())
        sites = calibrator.structure.sites
        linears = {name: x for site in sites for name, x in site.linears.items()}
        with output_sqnr(linears) as ratios:
            calibrator.passes.watch({0: toy_batches[0]}, {}, set(TOWERS), lambda *_: None)
        found.append(ratios)
    assert found[0] == found[1]
    assert len(found[0]) == len(linears)


@pytest.mark.parametrize("lost", ["nothing", "encoder.layers.2."])  # cannot reach the output
def test_the_exported_weights_are_the_same_file(build, toy_batches, tmp_path, lost):
    from safetensors.torch import save_file

    model, folder = build(), tmp_path / "model"
    kept = {name: x for name, x in model.state_dict().items() if lost not in name}
    model.save_pretrained(folder, state_dict=kept)
    streamed, whole = (calibrate(folder, toy_batches, on, MinMax()) for on in (True, False))
    tensors, weights = split_state(whole.model)
    save_file(weights, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    path = tmp_path / "streamed.safetensors"
    copied = copy_weights(path, streamed.model, streamed.passes.weights)
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert streamed.fingerprint == whole.fingerprint
    zeros = [name for name, x in weights.items() if name.endswith(".weight") and x.eq(0).all()]
    assert len(zeros) == (0 if lost == "nothing" else 8)
    assert copied.keys() == tensors.keys()
    assert all(torch.equal(copied[name], tensors[name]) for name in tensors)


# --- one block at a time --------------------------------------------------------------------------


def in_place(calibrator: Calibrator) -> set[str]:
    """Return the units that have weights just now."""
    units = [unit for tower in calibrator.structure.towers.values() for unit in tower.units]
    return {
        unit.name
        for unit in units
        if any(not p.is_meta for n, p in unit.module.named_parameters() if n.endswith(".weight"))
    }


def test_only_the_block_that_is_searched_has_weights(folder, toy_batches):
    seen: list[set[str]] = []
    run: list[set[str]] = []

    class Spy(JointSearch):
        def solve(self, block: Block) -> Any:
            seen.append(in_place(calibrator))
            run.append({unit.name for unit in block.units})
            return super().solve(block)

    family = InFolder(str(folder))
    model, weights = open_model(family, CPU)
    scheme = Scheme.parse("w4a4")
    calibrator = Calibrator(model, family, scheme, toy_batches, toy_batches[:2], weights=weights)
    calibrator.collect([1.0, 0.995, 0.99, 0.985, 0.98])
    assert in_place(calibrator) == set()
    calibrator.repartition(["language"], ConditionalEntropy())
    calibrator.search(TOWERS, Spy(), "first")
    assert seen == run
    assert in_place(calibrator) == set()
    assert all(p.is_meta for n, p in model.named_parameters() if not quantizer_tensor(n))
    linears = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert linears
    assert all(linear._weight_cache is None for linear in linears)


def quantizer_tensor(name: str) -> bool:
    return "input_quantizer." in name or "clip_ratio" in name


def test_reservoirs_are_let_go(folder, toy_batches):
    statistics = calibrate(folder, toy_batches, True).statistics
    assert statistics.observers == {}
    assert len(statistics.tables) == len(statistics.structure.sites)
    with pytest.raises(InputError, match=r"percentile 0\.9 was not kept.*allowed: 1\.0, 0\.995"):
        statistics.ranges(statistics.structure.sites[0], [0.9])


def test_a_layer_without_its_weights_cannot_be_run(folder, toy_batches):
    """On a CPU, a Linear layer without a weight returns whatever lies in memory."""
    passes = calibrate(folder, toy_batches, True, MinMax()).passes
    first = passes.structure.towers["language"].units[0]
    (call,) = passes.calls(passes.structure.towers["language"], toy_batches[:1], [set()])[0]
    with pytest.raises(
        RuntimeError, match=r"layers\.0 was run while its weights were not in place"
    ):
        run_unit(first, call.hidden, call)
    with passes.held([first]):
        assert run_unit(first, call.hidden, call).isfinite().all()


def test_an_infinite_activation_names_its_layer(folder, toy_batches):
    family = InFolder(str(folder))
    model, weights = open_model(family, CPU)
    read = weights.read

    def spoilt(name: str) -> Tensor:
        value = read(name)
        return value * float("inf") if "language_model.layers.1.mlp.up" in name else value

    weights.read = spoilt
    scheme = Scheme.parse("w4a4")
    calibrator = Calibrator(model, family, scheme, toy_batches, toy_batches, weights=weights)
    with pytest.raises(
        InputError, match=r"activations at model\.language_model\.layers\.1\.down_in"
    ):
        calibrator.collect([1.0])


# --- what is said before it starts ----------------------------------------------------------------


def test_the_plan_says_what_is_held_where(folder, toy_batches):
    family = InFolder(str(folder))
    model, weights = open_model(family, CPU)
    scheme = Scheme.parse("w4a4")
    calibrator = Calibrator(model, family, scheme, toy_batches, toy_batches[:2], weights=weights)
    plan = StreamPlan(calibrator, calibrator.passes, 3, True, JointSearch())
    text = "\n".join(plan.lines())
    total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    stated = float(text.split("streaming ")[1].split(" MB")[0])
    assert stated == pytest.approx(total / 1e6, abs=0.06)  # less the headers
    # by hand: a decoder layer has 4 * 24 * 24 + 3 * 24 * 48 weights and two norms of 24, float32
    assert f"a block of up to 3 layers, {3 * 4 * (4 * 576 + 3 * 1152 + 48) / 1e6:.1f} MB" in text
    sentence = plan.estimate(reading=1.0, running=2.0)
    # 4 layers, two sweeps of 3 s each
    assert "of 4 decoder layers: 1.0 s to read, 2.0 s for all" in sentence
    assert "about 24 s for statistics and dependency" in sentence


@pytest.mark.parametrize("kind", ["Qwen2Moe", "Mixtral"])
def test_fused_experts_are_read_one_by_one(toy_batches, tmp_path, kind):
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
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(tmp_path)
    runs = [calibrate(tmp_path, toy_batches, on, SequentialSearch()) for on in (True, False)]
    assert_equal(*runs)
    assert runs[0].structure.notes == runs[1].structure.notes
    assert sum(".experts.3." in name for name in runs[0].structure.quantized) == 2 * 3
