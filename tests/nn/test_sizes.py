"""Bytes of quantized models against counts by hand from the numbers of their configurations."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from qvlm_lightning.estimate.sizes import PartSize, part_sizes
from qvlm_lightning.models.find import family_for
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

SHAPES = Path(__file__).parents[2] / "configs" / "models" / "shapes"


def sizes(name: str, scheme: Scheme, dtype: str = "float16") -> dict[str, PartSize]:
    folder = SHAPES / name
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    family = family_for(kind)(str(folder), dtype)
    model = family.weightless()
    assert all(p.is_meta for p in model.parameters()), "a plan needs no weights"
    return part_sizes(model, quantize_model(model, family, scheme, torch.device("cpu")))


def llava_by_hand(name: str) -> dict[str, Any]:
    """Return the numbers of parameters of LLaVA-1.5, from its configuration alone."""
    config = json.loads((SHAPES / name / "config.json").read_text(encoding="utf-8"))
    text, vision = config["text_config"], config["vision_config"]
    d, i, layers = (text[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    v, m, depth = (vision[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    decoder_linears = layers * (4 * d * d + 3 * d * i)
    tower_layer = 4 * v * v + 2 * v * m
    tower_biases = 4 * v + m + v
    return {
        "decoder_linears": decoder_linears,
        "decoder_outputs": layers * (4 * d + 2 * i + d),
        "language": decoder_linears + layers * 2 * d + d,  # two norms each, and the last one
        "embeddings": text["vocab_size"] * d,
        "head": text["vocab_size"] * d,
        "projector": v * d + d + d * d + d,
        "projector_linears": v * d + d * d,
        "tower_linears": (depth - 1) * tower_layer,  # the last layer cannot reach the output
        "vision": depth * (tower_layer + tower_biases + 4 * v)  # two norms with biases
        + 3 * vision["patch_size"] ** 2 * v
        + v  # class token
        + (patches + 1) * v
        + 2 * 2 * v,  # norms before and after
    }


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_llava_equals_a_count_by_hand(name: str, bits: int) -> None:
    found = sizes(name, Scheme.parse(f"w{bits}a{bits}"))
    hand = llava_by_hand(name)
    for part in ("vision", "projector", "language", "embeddings", "head"):
        assert found[part].parameters == hand[part], part
        assert found[part].full == 2 * hand[part], part
    assert set(found) == {"vision", "projector", "language", "embeddings", "head"}
    for part, linears in (("vision", "tower"), ("projector", "projector"), ("language", "decoder")):
        assert found[part].codes == hand[f"{linears}_linears"] * bits // 8
        assert found[part].left == 2 * (hand[part] - hand[f"{linears}_linears"])
    # a 16-bit scale and a zero point of as many bits as a code, per output channel
    assert found["language"].scales == hand["decoder_outputs"] * (16 + bits) // 8
    assert found["head"].quantized == found["head"].full


def test_the_number_of_parameters_is_the_published_one() -> None:
    off = Scheme.parse("w16a8")
    totals = {n: sum(p.parameters for p in sizes(n, off).values()) for n in ("llava-1.5-7b",)}
    assert totals == {"llava-1.5-7b": 7_063_427_072}
    assert sum(p.parameters for p in sizes("qwen2.5-vl-7b", off).values()) == 8_292_166_656


def test_the_table_of_the_document() -> None:
    """Columns: fp16; 8, 6 and 4 bits without the tower; the same with it."""
    text = (SHAPES.parents[2] / "docs" / "large_models.md").read_text(encoding="utf-8")
    rows = {n: row.split("|") for n, row in re.findall(r"^\| (llava[\w.-]+) \|(.*)\|$", text, re.M)}
    for name, row in rows.items():
        alone = [f"vision-w16a16_projector-w16a16_language-w{b}a{b}" for b in (8, 6, 4)]
        found = [sizes(name, Scheme.parse(s)) for s in [*alone, "w8a8", "w6a6", "w4a4"]]
        totals = [sum(parts.values(), PartSize()) for parts in found]
        gib = [totals[0].full, *(total.quantized for total in totals)]
        assert [f"{n / 1024**3:.2f}" for n in gib] == [cell.strip() for cell in row], name
    assert set(rows) == {"llava-1.5-7b", "llava-1.5-13b"}


def test_only_the_language_model() -> None:
    found = sizes("llava-1.5-7b", Scheme.parse("vision-w16a16_projector-w16a16_language-w4a16"))
    assert found["vision"].codes == found["projector"].codes == 0
    assert found["vision"].quantized == found["vision"].full
    assert found["language"].codes > 0
    assert found["language"].ranges == 0, "16-bit activations have no stored range"


def test_groups_have_a_scale_each_and_fall_back_per_channel() -> None:
    scheme = Scheme.parse("w4a4", group_size=128, weight_symmetric=True)
    found = sizes("qwen2.5-vl-7b", scheme)["vision"]
    layer = 3840 * 10 + 1280 * 10 + 2 * 3420 * 10 + 1280  # 3420 inputs: one scale per channel
    assert found.scales == 32 * layer * 2


def test_stored_ranges_are_two_floats_per_number() -> None:
    tensor = sizes("llava-1.5-7b", Scheme.parse("w4a4"))
    channel = sizes("llava-1.5-7b", Scheme.parse("w4a4", activation_mode="static_channel"))
    dynamic = sizes("llava-1.5-7b", Scheme.parse("w4a4", activation_mode="dynamic_token"))
    assert tensor["language"].ranges == 32 * 4 * 8
    assert channel["language"].ranges == 32 * (3 * 4096 + 11008) * 8
    assert channel["vision"].ranges == 23 * 4 * 577 * 8, "per position in the tower"
    assert dynamic["language"].ranges == 0


def test_tied_weights_count_once(build_tied) -> None:
    model, structure = build_tied
    found = part_sizes(model, structure)
    assert "head" not in found
    assert found["embeddings"].parameters == 40 * 24
    total = sum(size.parameters for size in found.values())
    learned = ("clip_ratio", "low_ratio", "high_ratio")
    own = (p for n, p in model.named_parameters() if not n.endswith(learned))
    assert total == sum(p.numel() for p in own)


@pytest.fixture
def build_tied() -> Any:
    """A small LLaVA whose head is its embedding."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Model

    both = {"intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(hidden_size=16, image_size=16, patch_size=8, **both)
    text = LlamaConfig(hidden_size=24, vocab_size=40, tie_word_embeddings=True, **both)
    config = LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)
    model = Model(config).eval()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    return model, quantize_model(model, family_for("llava")("toy"), Scheme.parse("w4a4"))
