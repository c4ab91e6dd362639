"""A massive first token leaves outputs alone; neither folded norms nor rotations take it back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.data import Sample
from qvlm_lightning.data.collate import collate
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Tiny
from qvlm_lightning.models.family import VLMFamily, model_inputs
from qvlm_lightning.models.tiny import generate
from qvlm_lightning.models.tiny.evaluate import answer_logits
from qvlm_lightning.models.tiny.sinks import SinkChannel, down_inputs, find_sink, inject_sink
from qvlm_lightning.nn.folding import folded
from qvlm_lightning.nn.parameters import made
from qvlm_lightning.nn.rotation import random_rotation, rotated, untie

TEST = generate("test", 40)
SCALE = 1000.0


@pytest.fixture(scope="module")
def plain() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def trained(plain: Tiny) -> nn.Module:
    """The embedded model as trained."""
    return plain.load_model()


@pytest.fixture(scope="module")
def inputs(plain: Tiny) -> dict[str, Tensor]:
    """What the channel is looked for on."""
    return plain._sink_inputs()


@pytest.fixture(scope="module")
def stressed() -> nn.Module:
    """The embedded model with a massive first token."""
    return Tiny(sink_scale=SCALE).load_model()


def difference(before: Tensor, after: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((after - before).abs().max() / before.abs().max())


def test_logits_stay(plain: Tiny, trained: nn.Module, stressed: nn.Module) -> None:
    processor = plain.load_processor()
    before = answer_logits(trained, processor, TEST)
    assert difference(before, answer_logits(stressed, processor, TEST)) <= 1e-4
    both = Tiny(outlier_scale=10, sink_scale=SCALE).load_model()
    assert difference(before, answer_logits(both, processor, TEST)) <= 1e-4


def small_batch(small: Any) -> tuple[VLMFamily, nn.Module, dict[str, Tensor]]:
    """A small model whose first tokens are alike, and a batch padded on the left."""

    family, model = small.family("in memory"), small.model()
    family._processor = small.processor
    asked = ("what color is the square ?", "what is blue ?", "a red circle and one")
    samples = [Sample(text, None, text) for text in asked]
    return family, model, model_inputs(collate(samples, small.processor, with_answer=False))


@pytest.mark.parametrize("kind", ["llava", "llava_siglip"])
def test_logits_stay_where_heads_share_values(make_small: Any, kind: str) -> None:
    """Two query heads read each of two value heads; Qwen's value projection has a bias."""
    small = make_small(kind)
    text = small.config.text_config
    text.num_attention_heads, text.num_key_value_heads = 4, 2
    family, model, batch = small_batch(small)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    layers = family.decoder_layers(model)
    sources = [family.sources(layer)["o_in"] for _, layer in layers]
    assert [source.repeats for source in sources] == [2, 2]
    assert [family.attention(layer).kv_heads for _, layer in layers] == [2, 2]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(**batch).logits
    sink = inject_sink(model, family, batch, SCALE)
    assert sink is not None
    real = batch["attention_mask"].bool()
    assert difference(before[real], model(**batch).logits[real]) <= 1e-4
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, weights[n])}
    parts = {"self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"}
    expected = {
        f"{name}.{part}.weight"
        for name, _ in layers
        for part in (parts if name != sink.layer else {"mlp.up_proj", "mlp.down_proj"})
    }
    assert {name for name in changed if name.endswith("weight")} == expected
    scales = {
        float(x)
        for name, layer in layers
        if name != sink.layer
        for x in (layer.mlp.up_proj.weight / weights[f"{name}.mlp.up_proj.weight"])[:, 0]
    }
    assert min(scales) == 1
    assert max(scales) == pytest.approx(10)


def test_the_channel_is_that_of_plain_loops(make_small: Any) -> None:
    family, model, batch = small_batch(make_small("llava"))
    found = find_sink(model, family, batch)
    best: tuple[float, str, int] = (0.0, "", -1)
    for name, x in down_inputs(model, family, batch).items():
        for channel in range(x.shape[2]):
            first, others = [], []
            for row, mask in zip(x[..., channel].tolist(), batch["attention_mask"], strict=True):
                sizes = [abs(v) for v, real in zip(row, mask.tolist(), strict=True) if real]
                first.append(sizes[0])
                others += sizes[1:]
            best = max(best, (min(first) / max(others), name, channel))
    assert best[0] > 1
    assert (found.layer, found.channel) == best[1:]


def sizes(
    model: nn.Module, batch: dict[str, Tensor], sink: SinkChannel
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest magnitude at the first token of each sample, at all others [B, T], and that of the
    other channels at every token [N].
    """
    x_BTC = down_inputs(model, Tiny(), batch)[sink.layer].abs()
    real_BT = batch["attention_mask"].bool()
    first_B = real_BT.int().argmax(dim=1)
    rows_B = torch.arange(len(first_B))
    largest_BT = x_BTC.amax(dim=2).where(real_BT, 0)
    peak_B = largest_BT[rows_B, first_B].clone()
    largest_BT[rows_B, first_B] = 0
    kept = [c for c in range(x_BTC.shape[2]) if c != sink.channel]
    return peak_B, largest_BT, x_BTC[..., kept].amax(dim=2)[real_BT]


def test_the_first_token_peaks_at_the_wanted_ratio(
    plain: Tiny, trained: nn.Module, stressed: nn.Module, inputs: dict[str, Tensor]
) -> None:
    sink = find_sink(trained, plain, inputs)
    before_B, _, rest_N = sizes(trained, inputs, sink)
    assert float(before_B.max() / rest_N.median()) < 10
    peak_B, largest_BT, rest_N = sizes(stressed, inputs, sink)
    assert float(peak_B.max() / rest_N.median()) == pytest.approx(SCALE, rel=0.05)
    assert float(largest_BT.max()) < 0.8 * float(peak_B.min())
    # questions that the channel was not looked for on: the median of another draw is another
    drawn = [s for s in generate("test", 200) if int(s.id[-6:]) % 9 == 0]
    samples = [Sample(s.id, s.image, s.question, s.choices, s.answer) for s in drawn]
    other = model_inputs(collate(samples, plain.load_processor(), with_answer=False))
    peak_B, largest_BT, rest_N = sizes(stressed, other, sink)
    assert float(peak_B.max() / rest_N.median()) == pytest.approx(SCALE, rel=0.25)
    assert float(largest_BT.max()) < 0.8 * float(peak_B.min())


def site_inputs(
    model: nn.Module, family: VLMFamily, batch: dict[str, Tensor], changed: dict[str, Tensor]
) -> dict[tuple[str, str], Tensor]:
    """Input of every site of the decoder, some weights replaced."""
    seen: dict[tuple[str, str], Tensor] = {}
    hooks = []
    for name, layer in family.decoder_layers(model):
        for site, readers in family.input_groups(layer).items():

            def keep(_: nn.Module, args: Any, place: tuple[str, str] = (name, site)) -> None:
                seen[place] = args[0]

            hooks.append(layer.get_submodule(readers[0]).register_forward_pre_hook(keep))
    with torch.no_grad():
        torch.func.functional_call(model, changed, (), batch)
    for hook in hooks:
        hook.remove()
    return seen


def norms_folded(model: nn.Module, family: VLMFamily) -> dict[str, Tensor]:
    """Tensors of a decoder whose norms have gains of 1 (or -1)."""
    changed: dict[str, Tensor] = {}
    for name, layer in family.decoder_layers(model):
        for source in family.sources(layer).values():
            if source.kind == "norm":
                gain = model.get_parameter(f"{name}.{source.name}.weight").abs()
                full = source.under(name)
                changed |= folded(model.get_submodule, model.get_parameter, full, gain)
    return changed


def residual_rotated(model: nn.Module, family: VLMFamily) -> dict[str, Tensor]:
    """Tensors of a model whose residual stream is rotated."""
    residual = family.residual(model)
    untie(model, residual)
    rotation = random_rotation(residual.width, seed=1)
    return made(rotated(model.get_submodule, model.get_parameter, residual, rotation))


@pytest.mark.parametrize("remedy", [norms_folded, residual_rotated])
def test_it_undoes_outliers_of_norms_and_no_sink(
    remedy: Any, plain: Tiny, trained: nn.Module, stressed: nn.Module, inputs: dict[str, Tensor]
) -> None:
    def seen(model: nn.Module, cured: bool) -> dict[tuple[str, str], Tensor]:
        return site_inputs(model, plain, inputs, remedy(model, plain) if cured else {})

    def distances(first: dict, second: dict, sites: tuple[str, ...]) -> list[float]:
        return [difference(x, second[p]) for p, x in first.items() if p[1] in sites]

    real = inputs["attention_mask"].bool()
    outliers = Tiny(outlier_scale=10).load_model()
    by_norms = ("attn_in", "mlp_in")
    assert min(distances(seen(trained, False), seen(outliers, False), by_norms)) > 1
    assert max(distances(seen(trained, True), seen(outliers, True), by_norms)) < 1e-3

    sink = find_sink(trained, plain, inputs)
    cured = seen(stressed, True)
    moved = distances(seen(trained, True), cured, ("o_in", "down_in"))
    assert sum(x > 0.1 for x in moved) >= len(moved) - 1  # all but the values of the sink's layer
    changed = distances(seen(trained, True), cured, ("o_in", "down_in"))
    assert (
        len([x for x in changed if x > 0.1]) >= len(changed) - 1
    )  # values of the sink's own layer
    massive_NC = cured[sink.layer, "down_in"][real].abs()
    rest_N = massive_NC.index_fill(1, torch.tensor([sink.channel]), 0).amax(dim=1)
    assert float(massive_NC.max() / rest_N.median()) == pytest.approx(SCALE, rel=0.05)


def test_scale_one_changes_no_bit_and_the_seed_decides_the_rest(
    plain: Tiny, trained: nn.Module, inputs: dict[str, Tensor]
) -> None:
    def made(scale: float, seed: int) -> dict[str, Tensor]:
        model = plain.load_model()
        inject_sink(model, plain, inputs, scale, seed=seed)
        return model.state_dict()

    def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
        return all(torch.equal(first[name], value) for name, value in second.items())

    assert same(trained.state_dict(), made(1, 0))
    assert same(made(50, 0), made(50, 0))
    assert not same(made(50, 0), made(50, 1))


def test_a_model_without_such_a_channel(make_small: Any) -> None:
    family, model, batch = small_batch(make_small("llava"))
    for _, layer in family.decoder_layers(model):
        layer.get_submodule("mlp.up_proj").get_parameter("weight").zero_()
    with pytest.raises(InputError, match="largest at the first token, and the model has none"):
        inject_sink(model, family, batch, 10)


def test_a_scale_below_what_the_model_has(make_small: Any) -> None:
    family, model, batch = small_batch(make_small("llava"))
    assert inject_sink(model, family, batch, 200) is not None
    with pytest.raises(InputError, match=r"sink_scale 100 is below what .* without it, 200; "):
        inject_sink(model, family, batch, 100)


@pytest.mark.parametrize("name", ["outlier_scale", "sink_scale"])
@pytest.mark.parametrize(
    ("scale", "words"),
    [(0.5, "0.5 is below 1"), (float("nan"), "nan is below 1"), (float("inf"), "is not finite")],
)
def test_bad_scales_are_named(name: str, scale: float, words: str) -> None:
    with pytest.raises(InputError, match=f"{name} .*{words}; allowed: 1 "):
        Tiny(**{name: scale})


@pytest.mark.parametrize("scale", [0.5, float("nan"), float("inf")])
def test_bad_scales_of_the_function_are_named(
    scale: float, plain: Tiny, trained: nn.Module, inputs: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=f"sink scale is {scale}; allowed are finite numbers"):
        inject_sink(trained, plain, inputs, scale)


def test_the_description_names_a_sink_only_where_there_is_one(trained: nn.Module) -> None:
    """Fingerprints of models without a sink are those of earlier versions."""
    assert Tiny(outlier_scale=10).describe() == {
        **{"family": "Tiny", "outlier_scale": 10.0, "dtype": "float32"}
    }
    assert Tiny(sink_scale=1000).describe()["sink_scale"] == 1000.0
    assert Tiny(sink_scale=50).fingerprint(trained) != Tiny().fingerprint(trained)
