"""What every family says about its wiring: what a scale can be folded into, where the heads are,
and what the residual stream touches. Each claim is tried on the model, whose logits must stay."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.models.family import Source
from qvlm_lightning.nn.folding import folded
from qvlm_lightning.nn.parameters import made
from qvlm_lightning.nn.rotation import random_rotation, rotated, untie
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of the largest logit

CLIP = {"attn_in": "layer_norm1", "o_in": "self_attn.v_proj", "mlp_in": "layer_norm2"}
QWEN_TOWER = {"attn_in": "norm1", "o_in": "attn.qkv", "mlp_in": "norm2"}
DECODER = {
    "attn_in": "input_layernorm",
    "o_in": "self_attn.v_proj",
    "mlp_in": "post_attention_layernorm",
    "down_in": "mlp.up_proj",
}
EXPERTS = {"attn_in": "input_layernorm", "o_in": "self_attn.v_proj"} | {
    f"mlp.experts.{i}.{site}": source
    for i in range(4)
    for site, source in (
        ("mlp_in", "post_attention_layernorm"),
        ("down_in", f"mlp.experts.{i}.up_proj"),
    )
}
# kind -> source by site of a tower's layer, of the last projector and of the first decoder layer,
# written down from the modelling code of transformers
SOURCES: dict[str, tuple[dict[str, str], ...]] = {
    "llava": (CLIP, {}, DECODER),
    "moe_llava": (CLIP, {}, EXPERTS),
    "llava_siglip": (CLIP, {}, DECODER),
    "llava_dinov2": (
        {"attn_in": "norm1", "o_in": "attention.v_proj", "mlp_in": "norm2"},
        {},
        DECODER,
    ),
    "llava_next": (CLIP, {}, DECODER),
    "llava_onevision": (CLIP, {}, DECODER),
    "qwen2_vl": (QWEN_TOWER, {"first_in": "ln_q"}, DECODER),
    "qwen2_5_vl": (QWEN_TOWER | {"down_in": "mlp.up_proj"}, {"first_in": "ln_q"}, DECODER),
    "qwen3_vl": (QWEN_TOWER, {"first_in": "norm"}, DECODER),
    "internvl": (
        {"attn_in": "layernorm_before", "o_in": "attention.v_proj", "mlp_in": "layernorm_after"},
        {"first_in": "layer_norm"},
        DECODER,
    ),
    "idefics3": (CLIP, {}, DECODER),
    "smolvlm": (CLIP, {}, DECODER),
    "paligemma": (CLIP, {}, DECODER),
    "gemma3": (CLIP, {}, DECODER | {"mlp_in": "pre_feedforward_layernorm"}),
}

# kind -> why its residual cannot be rotated
REFUSED = {"gemma3": r"layers\.0\.post_attention_layernorm scales every channel of what is added"}


@pytest.fixture
def model(small: Any) -> nn.Module:
    """The small model with gains, biases and lone vectors that are not 1 and 0."""
    made = small.model()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture
def inputs(batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    return model_inputs(batches[0], CPU)


def logits(model: nn.Module, changed: dict[str, Tensor], inputs: dict[str, Any]) -> Tensor:
    """Run the model with some tensors replaced."""
    with torch.no_grad():
        return torch.func.functional_call(model, changed, (), inputs).logits


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((a - b).abs().max() / a.abs().max())


def layers_of(family: Any, model: nn.Module) -> list[tuple[str, nn.Module]]:
    projectors = family.projectors(model).values()
    return [*family.vision_layers(model), *projectors, *family.decoder_layers(model)]


def sources_of(family: Any, model: nn.Module) -> list[Source]:
    """Every source of the model with full names, one per site."""
    return [
        source.under(name)
        for name, layer in layers_of(family, model)
        for source in family.sources(layer).values()
    ]


def random_factor(model: nn.Module, source: Source, generator: torch.Generator) -> Tensor:
    """Positive factors over more than a decade, one per channel of the source."""
    columns = model.get_submodule(source.readers[0]).weight.shape[1]
    return (torch.randn(columns // source.repeats, generator=generator) * 0.7).exp()


def test_sources_are_those_of_the_modelling_code(kind: str, family: Any, model: nn.Module) -> None:
    parts = (
        family.vision_layers(model)[0],
        family.projector(model),
        family.decoder_layers(model)[0],
    )
    found = tuple({s: x.name for s, x in family.sources(m).items()} for _, m in parts)
    assert found == SOURCES[kind]


def test_a_quantized_model_is_wired_the_same(kind: str, family: Any, model: nn.Module) -> None:
    def said() -> list[Any]:
        layers = layers_of(family, model)
        found = [(name, family.sources(x), family.attention(x)) for name, x in layers]
        return [*found, None if kind in REFUSED else family.residual(model)]

    before = said()
    quantize_model(model, family, Scheme.parse("w4a4"))
    assert said() == before


def test_24_scale_folds_leave_the_logits(
    family: Any, model: nn.Module, inputs: dict[str, Any]
) -> None:
    before = logits(model, {}, inputs)
    sources = sources_of(family, model)
    generator = torch.Generator().manual_seed(11)
    once = torch.randperm(len(sources), generator=generator)[:24]
    again = torch.randint(len(sources), (24 - len(once),), generator=generator)
    changed: dict[str, Tensor] = {}

    def current(name: str) -> Tensor:
        return changed[name] if name in changed else model.get_parameter(name)

    for index in [*once.tolist(), *again.tolist()]:
        factor = random_factor(model, sources[index], generator)
        changed.update(folded(model.get_submodule, current, sources[index], factor))
    for part in (family.vision_layers(model), family.decoder_layers(model)):
        assert any(name.startswith(f"{part[0][0]}.") for name in changed)
    assert all(not torch.equal(x, model.get_parameter(n)) for n, x in changed.items())
    assert torch.equal(logits(model, {}, inputs), before)
    assert distance(before, logits(model, changed, inputs)) < TOLERANCE


def test_a_fold_that_forgets_a_tensor_shows(
    family: Any, model: nn.Module, inputs: dict[str, Any]
) -> None:
    """Every name in every source is needed: without its new value the logits move."""
    before = logits(model, {}, inputs)
    generator = torch.Generator().manual_seed(12)
    for source in dict.fromkeys(sources_of(family, model)):
        factor = random_factor(model, source, generator)
        whole = folded(model.get_submodule, model.get_parameter, source, factor)
        assert whole.keys() >= {f"{name}.weight" for name in (source.name, *source.readers)}
        for name in whole:
            rest = {other: value for other, value in whole.items() if other != name}
            assert distance(before, logits(model, rest, inputs)) > 10 * TOLERANCE, (name, source)


def test_heads_are_where_attention_says(
    kind: str, family: Any, model: nn.Module, inputs: dict[str, Any]
) -> None:
    """A rotation of every value head that the output undoes, and scales of every key head that its
    queries undo, leave the logits."""
    before = logits(model, {}, inputs)
    generator = torch.Generator().manual_seed(13)
    changed: dict[str, Tensor] = {}
    halves: dict[str, Tensor] = {}
    layers = [*family.vision_layers(model), *family.decoder_layers(model)]
    for name, layer in layers:
        attention = family.attention(layer)
        wide, narrow = attention.heads, attention.kv_heads
        assert (wide, narrow) == ((2, 1) if name.startswith(family.decoder) else (2, 2))
        dim, group = attention.head_dim, wide // narrow

        def take(own: str, name: str = name) -> Tensor:
            full = f"{name}.{own}"
            return changed.setdefault(full, model.get_parameter(full).clone())

        for head in range(narrow):
            turn = random_rotation(dim, seed=100 + head).float()
            scale = float(torch.rand((), generator=generator)) + 0.5
            start = (attention.v.rows or (0, 0))[0] + head * dim
            for own in ("weight", "bias"):
                if getattr(layer.get_submodule(attention.v.name), own) is None:
                    continue
                value = take(f"{attention.v.name}.{own}")
                value[start : start + dim] = turn @ value[start : start + dim]
                key = take(f"{attention.k.name}.{own}")
                first = (attention.k.rows or (0, 0))[0] + head * dim
                key[first : first + dim] /= scale
                query = take(f"{attention.q.name}.{own}")
                first = (attention.q.rows or (0, 0))[0] + head * group * dim
                query[first : first + group * dim] *= scale
            for copy in range(head * group, (head + 1) * group):
                columns = slice(copy * dim, (copy + 1) * dim)
                out = take(f"{attention.o}.weight")
                out[:, columns] = out[:, columns] @ turn.T
        halves |= {n: x for n, x in changed.items() if n != f"{name}.{attention.o}.weight"}
    assert distance(before, logits(model, changed, inputs)) < TOLERANCE
    assert distance(before, logits(model, halves, inputs)) > 100 * TOLERANCE


def test_a_rotation_of_the_residual_leaves_the_logits(
    kind: str, family: Any, model: nn.Module, inputs: dict[str, Any]
) -> None:
    assert len(REFUSED) <= 3
    if kind in REFUSED:
        with pytest.raises(InputError, match=REFUSED[kind]):
            family.residual(model)
        return
    residual = family.residual(model)
    first = family.decoder_layers(model)[0][1]
    streams: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    before = logits(model, {}, inputs)
    untie(model, residual)
    rotation = random_rotation(residual.width, seed=5, keeps_mean=residual.centred)
    changed = made(rotated(model.get_submodule, model.get_parameter, residual, rotation))
    assert distance(before, logits(model, changed, inputs)) < TOLERANCE
    plain, turned = (x.double() for x in streams)
    assert torch.allclose(turned, plain @ rotation.T, atol=1e-4)
    assert distance(plain, turned) > 0.1


def test_a_rotation_that_forgets_a_tensor_shows(
    kind: str, family: Any, model: nn.Module, inputs: dict[str, Any]
) -> None:
    """Every writer, norm, reader and lone vector is needed, biases included."""
    if kind in REFUSED:
        return
    residual = family.residual(model)
    untie(model, residual)
    before = logits(model, {}, inputs)
    rotation = random_rotation(residual.width, seed=5, keeps_mean=residual.centred)
    changed = made(rotated(model.get_submodule, model.get_parameter, residual, rotation))
    last = family.projector(model)[0]
    biases = [n for n, _ in model.named_parameters() if n.startswith(last) and n.endswith("bias")]
    assert not biases or biases[-1] in changed
    for name in changed:
        rest = {other: value for other, value in changed.items() if other != name}
        assert distance(before, logits(model, rest, inputs)) > 10 * TOLERANCE, name


@pytest.mark.parametrize("small", ["internvl", "paligemma"], indirect=True)
def test_an_untied_model_is_saved_as_such(
    small: Any, family: Any, model: Any, inputs: dict[str, Any], tmp_path: Any
) -> None:
    residual = family.residual(model)
    assert residual.tied
    rotation = random_rotation(residual.width, seed=5)
    with pytest.raises(InputError, match="untie"):
        rotated(model.get_submodule, model.get_parameter, residual, rotation)
    before = logits(model, {}, inputs)
    untie(model, residual)
    assert not family.residual(model).tied
    changed = made(rotated(model.get_submodule, model.get_parameter, residual, rotation))
    model.load_state_dict(changed, strict=False)
    model.save_pretrained(tmp_path)
    reloaded = small.family(str(tmp_path)).load_model()
    assert distance(before, logits(reloaded, {}, inputs)) < TOLERANCE
