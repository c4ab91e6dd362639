"""Experts are calibrated each on the tokens that reach it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    OlmoeConfig,
    PhiConfig,
    Qwen2MoeConfig,
    StableLmConfig,
)

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.few_tokens import FEW_TOKENS
from qvlm_lightning.calibration.statistics import model_inputs
from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch
from qvlm_lightning.models.experts import find_experts, unfuse_experts
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.moe_llava import MoeLlava
from qvlm_lightning.models.moe_llava_model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.replay import run_unit
from qvlm_lightning.nn.shards import Shards
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

IMAGE, PAD = 3, 0
TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
MOE: dict[str, Any] = {"moe_layers": [0], "num_experts": [4]}


def qwen2_moe() -> Qwen2MoeConfig:
    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20}
    return Qwen2MoeConfig(**TEXT, **sizes, num_experts=4, num_experts_per_tok=2)


KINDS: dict[str, Any] = {
    "qwen2_moe": lambda: (LlavaConfig, qwen2_moe(), {}),
    "mixtral": lambda: (
        LlavaConfig,
        MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2),
        {},
    ),
    "olmoe": lambda: (LlavaConfig, OlmoeConfig(**TEXT, num_experts=4, num_experts_per_tok=2), {}),
    "moe_llava_stablelm": lambda: (MoeLlavaConfig, StableLmConfig(**TEXT, use_qkv_bias=True), MOE),
    "moe_llava_phi": lambda: (MoeLlavaConfig, PhiConfig(**TEXT), MOE),
}


def in_memory(kind: type[Llava]) -> type[Llava]:
    class InMemory(kind):  # type: ignore[misc,valid-type]
        """Without a folder: only names are asked of it."""

        def __init__(self) -> None:
            super().__init__("in memory")

        def _image_token_id(self) -> int:
            return IMAGE

    return InMemory


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Llava]:
    torch.manual_seed(0)
    config_class, text, more = KINDS[name]()
    config = config_class(
        vision_config=CLIPVisionConfig(**TOWER), text_config=text, image_token_index=IMAGE, **more
    )
    mixed = config_class is MoeLlavaConfig
    kind: Any = MoeLlavaForConditionalGeneration if mixed else LlavaForConditionalGeneration
    model = kind(config).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    unfuse_experts(model)
    return model.eval().requires_grad_(False), in_memory(MoeLlava if mixed else Llava)()


def batches(count: int = 2, words: int = 20) -> list[dict[str, Tensor]]:
    made = []
    for first in range(0, 4 * count, 4):
        generator = torch.Generator().manual_seed(first)
        rows = []
        for row in range(4):
            length = words - row % 3
            text = torch.randint(4, 40, (length,), generator=generator).tolist()
            rows.append([1, *([IMAGE] * 4 if row != 1 else []), *text, 2])
        width = max(map(len, rows))
        ids = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
        made.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": ids.masked_fill(mask == 0, -100),
                "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
                "has_image": torch.tensor([row != 1 for row in range(4)]),
                "sample_index": torch.arange(first, first + 4),
            }
        )
    return made


def calibrator(name: str, scheme: Scheme | None = None, **options: Any) -> Calibrator:
    model, family = make(name)
    data = batches(**options)
    made = Calibrator(model, family, scheme or Scheme.parse("w4a4"), data, data[:1])
    made.collect()
    return made


def reached(model: Any, name: str, data: list[dict[str, Tensor]]) -> dict[int, list[Tensor]]:
    """Return expert -> inputs of the tokens that the router of a layer sends there, by loops."""
    block = model.get_submodule(name)
    router = block.router if hasattr(block, "router") else block.gate
    found: dict[int, list[Tensor]] = {}
    for batch in data:
        seen = []
        handle = block.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        model(**model_inputs(batch, torch.device("cpu")))
        handle.remove()
        for row in range(4):
            for place in range(seen[0].shape[1]):
                if batch["attention_mask"][row, place]:
                    x = seen[0][row, place]
                    rates = (router.weight @ x).tolist()
                    for expert in sorted(range(4), key=lambda e: -rates[e])[:2]:
                        found.setdefault(expert, []).append(x)
    return found


# --- what is quantized ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_experts_are_quantized_routers_are_named(name: str) -> None:
    model, family = make(name)
    plain = {n for n, x in model.named_modules() if type(x) is nn.Linear}
    structure = quantize_model(model, family, Scheme.parse("w4a4"))
    layers = 1 if name.startswith("moe_llava") else 2
    routers = {n: why for n, why in structure.ignored.items() if "router" in why}
    assert len(routers) == layers * (2 if name == "qwen2_moe" else 1)
    assert not set(routers) & set(structure.quantized)
    parts = ["gate_proj", "up_proj", "down_proj"]
    if name == "moe_llava_phi":
        parts = ["fc1", "fc2"]
    holder = "model.language_model.layers"
    experts = {
        f"{holder}.{layer}.mlp.experts.{e}.{p}"
        for layer in range(layers)
        for e in range(4)
        for p in parts
    }
    assert experts <= set(structure.quantized)
    outside = set(structure.ignored) & plain
    assert set(structure.quantized) == plain - outside
    assert all(type(model.get_submodule(n)) is QuantLinear for n in experts)
    routes = [site for site in structure.sites if site.route is not None]
    assert len(routes) == layers * 4 * 2
    assert {s.route.role for s in routes if s.route} == {"mlp_in", "down_in"}
    first = structure.towers["language"].units[0].sites[0].name
    assert first == f"{holder}.0.attn_in", "the first site stands for the layer"


@pytest.mark.parametrize("name", KINDS)
def test_off_is_exact_and_w4a4_differs(name: str) -> None:
    plain, _ = make(name)
    inputs = model_inputs(batches()[0], torch.device("cpu"))
    exact = plain(**inputs).logits
    made = calibrator(name)
    assert torch.equal(made.model(**inputs).logits, exact)
    made.structure.enable(True)
    noisy = made.model(**inputs).logits
    assert noisy.isfinite().all()
    assert (noisy - exact).abs().max() > 1e-3


def test_phi_reads_one_norm_with_attention_and_mlp() -> None:
    model, family = make("moe_llava_phi")
    dense = family.input_groups(model.model.language_model.layers[1])
    assert dense == {
        "attn_in": [*(f"self_attn.{x}_proj" for x in "qkv"), "mlp.fc1"],
        "o_in": ["self_attn.dense"],
        "down_in": ["mlp.fc2"],
    }


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_moe", "moe_llava_stablelm"])
def test_every_expert_has_the_range_of_its_own_tokens(name: str, monkeypatch) -> None:
    monkeypatch.setattr("qvlm_lightning.calibration.few_tokens.FEW_TOKENS", 1)
    scheme = Scheme.parse("w4a4", activation_mode="static_channel")
    made = calibrator(name, scheme)
    plain, _ = make(name)
    layer = "model.language_model.layers.0.mlp"
    wanted = reached(plain, layer, batches())
    counts = {}
    for site in made.structure.sites:
        if site.route is None or site.route.role != "mlp_in" or not site.name.startswith(layer):
            continue
        tokens = torch.stack(wanted[site.route.index])
        counts[site.route.index] = len(tokens)
        observer = made.statistics.observers[site.name]
        assert observer.tokens == len(tokens)
        assert torch.allclose(site.quantizer.low, tokens.amin(0), atol=1e-6)
        assert torch.allclose(site.quantizer.high, tokens.amax(0), atol=1e-6)
    total = sum(int(b["attention_mask"].sum()) for b in batches())
    assert sum(counts.values()) == 2 * total
    assert len(counts) == 4
    assert made.structure.notes == []


def test_statistics_do_not_depend_on_the_batches() -> None:
    whole = calibrator("qwen2_moe")
    model, family = make("qwen2_moe")
    single = []
    for batch in batches():
        images = iter(batch["pixel_values"])
        for row in range(4):
            length = int(batch["attention_mask"][row].sum())
            one = {n: batch[n][row : row + 1] for n in ("has_image", "sample_index")}
            names = ("input_ids", "attention_mask", "labels")
            one |= {n: batch[n][row : row + 1, :length] for n in names}
            if batch["has_image"][row]:
                one["pixel_values"] = next(images)[None]
            single.append(one)
    alone = Calibrator(model, family, Scheme.parse("w4a4"), single, single[:1])
    alone.collect()
    for site in whole.structure.sites:
        mine, theirs = (c.statistics.observers[site.name] for c in (whole, alone))
        assert mine.tokens == theirs.tokens
        for left, right in zip(mine.ranges([1.0, 0.98]), theirs.ranges([1.0, 0.98]), strict=True):
            assert torch.allclose(left, right, atol=1e-5)


def test_an_expert_with_few_tokens_takes_over_the_range_of_its_layer() -> None:
    made = calibrator("qwen2_moe", words=6)
    plain, _ = make("qwen2_moe")
    layer = "model.language_model.layers.1.mlp"
    counts = {e: len(x) for e, x in reached(plain, layer, batches(words=6)).items()}
    few = [e for e in range(4) if counts.get(e, 0) < FEW_TOKENS]
    assert few, "the test is about such experts"
    noted = [n for n in made.structure.notes if n.startswith(layer)]
    assert [n.partition(":")[0] for n in noted] == [f"{layer}.experts.{e}" for e in few]
    for note, expert in zip(noted, few, strict=True):
        assert f"saw {counts.get(expert, 0)} calibration tokens, fewer than {FEW_TOKENS}" in note
    sites = [
        s
        for s in made.structure.sites
        if s.route is not None and s.route.role == "down_in" and s.name.startswith(layer)
    ]
    lows = {float(s.quantizer.low) for s in sites if s.route and s.route.index in few}
    assert len(lows) == 1
    assert lows.pop() == min(float(s.quantizer.low) for s in sites)
    made.collect()
    assert len(made.structure.notes) == len(set(made.structure.notes)), "named once"


def test_an_expert_that_no_token_reaches_is_calibrated_too() -> None:
    model, family = make("moe_llava_stablelm")
    layer = model.model.language_model.layers[0]
    layer.post_attention_layernorm.bias[0] = 100  # whatever the token
    layer.mlp.router.weight[3] = 0
    layer.mlp.router.weight[3, 0] = -10
    made = Calibrator(model, family, Scheme.parse("w4a4"), batches(), batches()[:1])
    made.collect()
    name = "model.language_model.layers.0.mlp.experts.3"
    (note,) = [n for n in made.structure.notes if n.startswith(f"{name}:")]
    assert "saw 0 calibration tokens" in note
    made.structure.enable(True)
    made.search(["vision", "projector", "language"], SequentialSearch(), "final")
    assert made.state.percentiles[f"{name}.mlp_in"] == 1.0, "nothing to choose by"


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral", "olmoe"])
def test_experts_are_found_one_by_one_in_their_checkpoint(name: str, tmp_path) -> None:
    _, text, _ = KINDS[name]()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER), text_config=text, image_token_index=IMAGE
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    family = Llava(str(tmp_path))
    wanted = family.load_model().state_dict()
    _, places = family.streamed()
    stored = Shards(places)
    assert set(places) == set(wanted)
    assert all(torch.equal(stored.read(n), t) for n, t in wanted.items())


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_moe", "moe_llava_stablelm"])
@pytest.mark.parametrize(
    ("method", "mode"),
    [
        (MinMax, "static_tensor"),
        (JointSearch, "static_tensor"),
        (SequentialSearch, "static_tensor"),
        (SequentialSearch, "static_channel"),
        (SequentialSearch, "dynamic_token"),
    ],
)
def test_every_method_decides_every_site(name: str, method: Any, mode: Any) -> None:
    made = calibrator(name, Scheme.parse("w4a4", activation_mode=mode), count=1, words=8)
    made.structure.enable(True)
    chosen = method(low=0.99, step=0.01) if method is not MinMax else method()
    made.search(["vision", "projector", "language"], chosen, "final")
    assert set(made.state.percentiles) == {s.name for s in made.structure.sites}
    for objective in made.state.objective:
        values = [objective[n] for n in ("minmax", "sequential", "joint") if n in objective]
        assert values
        assert torch.tensor(values).isfinite().all()
        if "joint" in objective:
            assert objective["joint"] <= min(objective["minmax"], objective["sequential"])


def test_candidates_stacked_in_the_batch_are_run_as_if_alone() -> None:
    made = calibrator("qwen2_moe", count=1)
    made.structure.enable(True)
    tower = made.structure.towers["language"]
    (call,) = made._calls(tower, set())
    unit = tower.units[0]
    stacked = torch.cat([call.hidden, 2 * call.hidden, -call.hidden])
    whole = run_unit(unit, stacked, call, copies=3)
    parts = [run_unit(unit, f * call.hidden, call) for f in (1, 2, -1)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_one_site_of_an_expert_is_scored_on_tokens_that_both_chains_send_there() -> None:
    made = calibrator("mixtral", count=1)
    made.structure.enable(True)
    tower = made.structure.towers["language"]
    exact, quantized = made._calls(tower, set()), made._calls(tower, {"vision"})
    block = made._block(tower, 0, 0, exact, quantized, [1.0])
    unit = block.units[0]
    full = block.full_precision_site_inputs(0, [c.hidden for c in exact])[0]
    for column, site in enumerate(unit.sites):
        none = torch.zeros(len(unit.sites), dtype=torch.int64)
        (seen,) = block.quantized_site_input(0, [c.hidden for c in quantized], none, column)
        mask = seen.shared_mask(full[column])
        assert mask is not None
        if site.route is None:
            assert torch.equal(mask, quantized[0].mask)
            continue
        both = seen.mask & full[column].mask
        assert torch.equal(mask, both)
        assert seen.hidden.shape == (*quantized[0].hidden.shape[:2], site.leader.in_features)
        assert (seen.hidden[~seen.mask & quantized[0].mask] == 0).all()


def test_weights_of_experts_are_quantized_one_by_one() -> None:
    made = calibrator("qwen2_moe", count=1)
    made.structure.enable(True)
    for experts in find_experts(made.model).values():
        for expert in experts:
            row = expert.gate_proj.quantized_weight()[0]
            assert len(row.unique()) <= 16
            assert not torch.equal(row, expert.gate_proj.weight[0])
