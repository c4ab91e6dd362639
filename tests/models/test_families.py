"""What every family promises, on a random model of two decoder layers: names that are right, inputs
that reach every layer, and a calibration that can be saved, reloaded and used."""

import re
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import qvlm_lightning
from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.stream_run import open_model
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.forward.samples import by_sample, model_inputs, with_image_rows
from qvlm_lightning.methods import JointSearch
from qvlm_lightning.methods.proxies import ConditionalEntropy
from qvlm_lightning.models.family import ANSWER, VISION
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.replay import catch_calls, run_candidates, run_unit
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.vision.soft_edges import SoftEdges, forward_outputs
from qvlm_lightning.vision.tower_loss import LossWeights, TowerLoss

W4A4 = Scheme.parse("w4a4")
CPU = torch.device("cpu")

CLIP_LAYER = r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$"
GATED_LAYER = r"layers\.\d\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"
ENCODER = r"^model\.vision_tower\.encoder\.layers\.{}\." + CLIP_LAYER
DECODER = r"^model\.language_model\." + GATED_LAYER
TWO_LAYERS = r"^model\.multi_modal_projector\.linear_[12]$"
QKV = r"attn\.(qkv|proj)"

# kind -> (tower, projector, decoder): names that must be quantized, written down from the modelling
# code of transformers; of the three tower layers of LLaVA the second last is read.
NAMES = {
    "llava": (ENCODER.format("[01]"), TWO_LAYERS, DECODER),
    "moe_llava": (
        ENCODER.format("[01]"),
        TWO_LAYERS,
        r"^model\.language_model\.layers\.\d\."
        r"(self_attn\.[qkvo]_proj|mlp\.(experts\.\d\.)?(gate|up|down)_proj)$",
    ),
    "llava_siglip": (ENCODER.format("[01]"), TWO_LAYERS, DECODER),
    "llava_dinov2": (
        r"^model\.vision_tower\.encoder\.layer\.\d\.(attention\.[qkvo]_proj|mlp\.fc[12])$",
        TWO_LAYERS,
        DECODER,
    ),
    "llava_next": (ENCODER.format("[01]"), TWO_LAYERS, DECODER),
    "llava_onevision": (ENCODER.format("[01]"), TWO_LAYERS, DECODER),
    "qwen2_vl": (
        rf"^model\.visual\.blocks\.\d\.({QKV}|mlp\.fc[12])$",
        r"^model\.visual\.merger\.mlp\.[02]$",
        DECODER,
    ),
    "qwen2_5_vl": (
        rf"^model\.visual\.blocks\.\d\.({QKV}|mlp\.(gate|up|down)_proj)$",
        r"^model\.visual\.merger\.mlp\.[02]$",
        DECODER,
    ),
    "qwen3_vl": (
        rf"^model\.visual\.blocks\.\d\.({QKV}|mlp\.linear_fc[12])$",
        r"^model\.visual\.(merger|deepstack_merger_list\.0)\.linear_fc[12]$",
        DECODER,
    ),
    "internvl": (
        r"^model\.vision_tower\.encoder\.layer\.\d\."
        r"(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])$",
        TWO_LAYERS,
        DECODER,
    ),
    "idefics3": (
        r"^model\.vision_model\.encoder\.layers\.\d\." + CLIP_LAYER,
        r"^model\.connector\.modality_projection\.proj$",
        r"^model\.text_model\." + GATED_LAYER,
    ),
    "smolvlm": (
        r"^model\.vision_model\.encoder\.layers\.\d\." + CLIP_LAYER,
        r"^model\.connector\.modality_projection\.proj$",
        r"^model\.text_model\." + GATED_LAYER,
    ),
    "paligemma": (ENCODER.format(r"\d"), r"^model\.multi_modal_projector\.linear$", DECODER),
    "gemma3": (ENCODER.format(r"\d"), "^$", DECODER),
}

# kind -> (quantized, ignored) Linear layers of the small model, as docs/models.md has them
COUNTS = {
    "llava": (28, 7),
    "moe_llava": (37, 8),
    "llava_siglip": (28, 10),
    "llava_dinov2": (34, 1),
    "llava_next": (28, 7),
    "llava_onevision": (28, 1),
    "qwen2_vl": (24, 1),
    "qwen2_5_vl": (26, 1),
    "qwen3_vl": (30, 1),
    "internvl": (28, 1),
    "idefics3": (27, 1),
    "smolvlm": (27, 1),
    "paligemma": (27, 1),
    "gemma3": (26, 1),
}


def linears(model: nn.Module) -> set[str]:
    return {name for name, x in model.named_modules() if isinstance(x, nn.Linear)}


def test_what_is_quantized_and_what_is_not(small: Any, kind: str, family: Any) -> None:
    with torch.device("meta"):
        plain = small.plain()
    expected = {
        name: part
        for part, pattern in zip(("vision", "projector", "language"), NAMES[kind], strict=True)
        for name in linears(plain)
        if re.search(pattern, name)
    }
    model = small.model()
    structure = quantize_model(model, family, W4A4)
    assert structure.quantized == expected
    assert {n for n, x in model.named_modules() if type(x) is QuantLinear} == set(expected)
    left = linears(plain) - set(expected)
    assert left <= set(structure.ignored)
    assert (len(expected), len(left)) == COUNTS[kind]


def test_a_site_is_what_reads_one_tensor(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    model = small.model()
    structure = quantize_model(model, family, W4A4)
    read: dict[str, Tensor] = {}
    for site in structure.sites:
        for name, linear in site.linears.items():
            linear.register_forward_pre_hook(
                lambda _, args, name=name: read.__setitem__(name, args[0])
            )
    with torch.no_grad():
        model(**model_inputs(batches[0], CPU))
    shared: dict[int, set[str]] = {}
    for name, x in read.items():
        shared.setdefault(id(x), set()).add(name)
    by_tensor = sorted(map(sorted, shared.values()))
    assert by_tensor == sorted(sorted(site.linears) for site in structure.sites)


def test_full_precision_is_untouched_and_quantization_is_not(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    model, inputs = small.model(), model_inputs(batches[0], CPU)
    with torch.no_grad():
        before = model(**inputs).logits
        calibrator = Calibrator(model, family, W4A4, batches, batches)
        called = set()
        for name, module in model.named_modules():
            if isinstance(module, QuantLinear):
                module.register_forward_hook(lambda *_, name=name: called.add(name))
        assert torch.equal(model(**inputs).logits, before)
        assert called == set(calibrator.structure.quantized)
        calibrator.collect()
        calibrator.structure.enable(True)
        after = model(**inputs).logits
    assert after.isfinite().all()
    assert not torch.allclose(after, before, atol=1e-3)


def test_what_is_called_unreachable_is(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    model, inputs = small.model(), model_inputs(batches[0], CPU)
    lost = [module for _, module, _ in family.unreachable_layers(model)]
    reached = [module for _, module in family.vision_layers(model)]

    def scrambled(module: nn.Module) -> Tensor:
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        for parameter in module.parameters():
            parameter.normal_()
        logits = model(**inputs).logits
        module.load_state_dict(kept)
        return logits

    with torch.no_grad():
        before = model(**inputs).logits
        assert all(torch.equal(scrambled(module), before) for module in lost)
        assert not any(torch.equal(scrambled(module), before) for module in reached)


def test_image_tokens_and_answers_are_named(
    small: Any, family: Any, samples: list[Sample], batches: list[dict[str, Tensor]]
) -> None:
    """A user turn and an assistant turn: of the two, only the answer and its end are counted."""
    batch, tok = batches[0], small.processor.tokenizer
    kind = family.token_kind(batch)
    for row, sample in enumerate(samples[:3]):
        answer = batch["input_ids"][row][kind[row] == ANSWER]
        assert tok.decode(answer).strip() == f"{sample.answer}{tok.eos_token}"
        assert torch.equal(batch["labels"][row][kind[row] == ANSWER], answer)
        content: Any = [{"type": "text", "text": sample.question}]
        turns = [
            {"role": "user", "content": [{"type": "image"}] * bool(sample.image) + content},
            {"role": "assistant", "content": sample.answer},
        ]
        template = small.processor.apply_chat_template
        written, asked = (
            template(turns[:n], tokenize=False, add_generation_prompt=n == 1) for n in (2, 1)
        )
        assert written.startswith(asked)
        assert written[len(asked) :].strip() == f"{sample.answer}{tok.eos_token}"
    config_id = small.model().config.image_token_id
    assert torch.equal(kind == VISION, batch["input_ids"] == config_id)
    assert ((kind == VISION).any(dim=1) == batch["has_image"]).all()


def test_answers_of_a_dialogue_are_named(small: Any, family: Any, samples: list[Sample]) -> None:
    """Of user, assistant, user, assistant only the answers and their ends are counted."""
    tok, said = small.processor.tokenizer, ("what is the circle ?", "a blue one")
    talks = [replace(sample, further=(said,)) for sample in samples[:2]]
    batch = collate([*talks, samples[2]], small.processor, with_answer=True)
    kind = family.token_kind(batch)
    for row, sample in enumerate(talks):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        answers = (ids != labels).logical_not().long()
        starts = (answers.diff(prepend=answers.new_zeros(1)) == 1).nonzero()[:, 0].tolist()
        runs = [run[run != -100] for run in labels.tensor_split(starts)[1:]]
        texts = [tok.decode(run).strip() for run in runs]
        assert texts == [f"{answer}{tok.eos_token}" for answer in (sample.answer, said[1])]
        assert said[0] in tok.decode(ids[starts[0] : starts[1]][len(runs[0]) :])
        assert torch.equal(kind[row] == ANSWER, labels != -100)
    image = batch["input_ids"] == small.model().config.image_token_id
    assert image.any(dim=1).tolist() == [True, False, True]
    assert torch.equal(kind == VISION, image)
    assert (batch["labels"][image] == -100).all()


def test_rows_of_the_tower_belong_to_samples(
    small: Any, family: Any, samples: list[Sample], batches: list[dict[str, Tensor]]
) -> None:
    model = small.model()
    first = family.vision_layers(model)[0][1]
    batch = with_image_rows(family, model, batches[0])
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**model_inputs(batch, CPU))
        together, mask = by_sample("vision", seen.pop(), batch)
        for row, index in enumerate((0, 2)):  # each image again, alone
            alone = collate([samples[index]], small.processor, with_answer=True)
            model(**model_inputs(alone, CPU))
            own = seen.pop().reshape(-1, together.shape[-1])
            mine = together[row] if mask is None else together[row][mask[row]]
            assert torch.allclose(mine, own, atol=1e-5)


def run_and_keep(layers: list[nn.Module], model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the output of every layer."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return outputs


def test_layers_run_alone_as_in_the_model(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    """Masks, positions and what is added on the way reach every replayed layer."""
    model = small.model()
    structure = quantize_model(model, family, W4A4)
    inputs = model_inputs(batches[0], CPU)
    for tower in structure.towers.values():
        outputs = run_and_keep([unit.module for unit in tower.units], model, inputs)
        call = catch_calls(model, tower.units, inputs)
        assert call is not None
        hidden = call.hidden
        for unit, output in zip(tower.units, outputs, strict=True):
            with torch.no_grad():
                hidden = run_unit(unit, hidden, call)
            assert torch.equal(hidden, output)


def test_stacked_candidates_equal_single_ones(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    model = small.model()
    calibrator = Calibrator(model, family, W4A4, batches, batches)
    calibrator.collect()
    for tower in (t for t in calibrator.structure.towers.values() if t.sites):
        unit = tower.units[-1]
        call = catch_calls(model, tower.units, model_inputs(batches[0], CPU))
        tables = [calibrator.statistics.ranges(site, [1.0, 0.9]) for site in unit.sites]
        choices = torch.tensor([[0] * len(unit.sites), [1] * len(unit.sites)])
        with torch.no_grad(), calibrator.structure.only({tower.name}):
            stacked = torch.cat([call.hidden, call.hidden])
            both = run_candidates(unit, stacked, call, tables, choices).chunk(2)
            for choice, one in zip(choices, both, strict=True):
                single = run_candidates(unit, call.hidden, call, tables, choice[None])
                assert torch.allclose(one, single, atol=1e-5)


def test_the_search_improves_on_min_max(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    scheme = Scheme.parse("w4a4", activation_mode="static_channel")
    calibrator = Calibrator(small.model(), family, scheme, batches, batches)
    calibrator.collect()
    towers = list(calibrator.structure.towers)
    calibrator.repartition(towers, ConditionalEntropy(), max_depth=2, samples=256)
    calibrator.search(towers, JointSearch([1.0, 0.98]), "epoch0")
    assert all(o["joint"] <= o["minmax"] for o in calibrator.state.objective)
    assert set(calibrator.state.percentiles) == {s.name for s in calibrator.structure.sites}
    fixed = family.vision_positions(calibrator.model)
    noted = any("dynamic resolution" in note for note in calibrator.structure.notes)
    assert noted == (fixed is None)
    site = calibrator.structure.towers["vision"].sites[0]
    assert site.quantizer.low.shape == (() if fixed is None else (fixed, 1))


def gradients_of_a_step(calibrator: Calibrator) -> list[float]:
    """Take a step of visual-encoder optimisation on every batch."""
    structure = calibrator.structure
    structure.enable(True)
    learned = [site.quantizer.high_ratio.requires_grad_() for site in structure.sites]
    edges = SoftEdges(structure, calibrator.statistics.channel_range, 0.25, 128)
    parts = [[batch] for batch in calibrator.batches]
    loss = TowerLoss(calibrator.passes, edges, calibrator.batches, parts)
    jacobian, weights = loss.jacobian(), LossWeights(1.0, 1.0, 1.0)
    for index in range(len(parts)):
        sums = loss.sums(index, 0, 7, torch.zeros(()))
        loss.terms(sums, weights, jacobian)["total"].backward()
    assert all(p.grad is not None for p in learned)
    return [float(p.grad.double().sum()) for p in learned if p.grad is not None]


def test_a_streamed_calibration_decides_the_same(
    small: Any, samples: list[Sample], tmp_path: Any
) -> None:
    small.model().save_pretrained(tmp_path, max_shard_size="40KB")
    found = []
    for streamed in (False, True):
        family = small.family(str(tmp_path))
        family._processor = small.processor
        model, weights = open_model(family, CPU) if streamed else (family.load_model(), None)
        batches = [
            collate(samples[:3], small.processor, with_answer=True),
            collate(samples[3:], small.processor, with_answer=True, first_index=3),
        ]
        calibrator = Calibrator(model, family, W4A4, batches, batches, weights=weights)
        search = JointSearch([1.0, 0.98])
        calibrator.collect(search.candidates("static_tensor") if streamed else None)
        calibrator.search(list(calibrator.structure.towers), search, "epoch0")
        sites = {site.name: site.quantizer for site in calibrator.structure.sites}
        bounds = {name: [x.item() for x in (q.low, q.high)] for name, q in sites.items()}
        gradients = gradients_of_a_step(calibrator)
        found.append((calibrator.state.percentiles, calibrator.state.objective, bounds, gradients))
    assert found[0] == found[1]


def test_shares_of_a_batch_add_up(
    small: Any, family: Any, samples: list[Sample], batches: list[dict[str, Tensor]]
) -> None:
    """Two processes with half a batch each see the triples that one sees with the whole."""
    calibrator = Calibrator(small.model(), family, W4A4, batches, batches)
    calibrator.collect()
    structure, model = calibrator.structure, calibrator.model
    edges = SoftEdges(structure, calibrator.statistics.channel_range, 0.25, 128)
    whole = calibrator.batches[0]
    shares = [whole]
    for rank in range(2):
        share = collate(samples[:3][rank::2], small.processor, with_answer=True)
        share["sample_index"] = rank + 2 * share["sample_index"]
        shares.append(with_image_rows(family, model, share))
    found = []
    for share in shares:
        with torch.no_grad():
            seen = forward_outputs(model, structure, model_inputs(share, CPU), units=True)
            found.append(edges.counts(seen, share, whole, 7))
    together, first, second = found
    assert set(together) == {"vision", "language"}
    for tower, joints in together.items():
        both = first[tower] + second[tower]
        assert torch.allclose(joints / edges.samples, both / edges.samples, atol=1e-4)


def test_layers_that_run_again_give_the_same_gradients(
    small: Any, family: Any, batches: list[dict[str, Tensor]]
) -> None:
    """Image features that enter the decoder at several depths keep theirs too."""
    calibrator = Calibrator(small.model(), family, W4A4, batches, batches)
    calibrator.collect()
    structure, passes = calibrator.structure, calibrator.passes
    structure.enable(True)
    learned = [site.quantizer.high_ratio for site in structure.towers["vision"].sites]
    found = []
    for activation_checkpointing in (False, True):
        passes.activation_checkpointing = activation_checkpointing
        for parameter in learned:
            parameter.requires_grad_(True)
        with passes.differentiable():
            seen = forward_outputs(calibrator.model, structure, model_inputs(batches[0], CPU), True)
        units = [x for tower in seen.units.values() for x in tower]
        loss = seen.logits.square().mean() + torch.stack([x.square().mean() for x in units]).sum()
        found.append(torch.autograd.grad(loss, learned))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert all(bool(gradient.abs().sum() > 0) for gradient in found[0])


def test_calibrated_saved_reloaded_and_used(
    small: Any, samples: list[Sample], tmp_path: Any
) -> None:
    model = qvlm_lightning.quantize(
        small.model(), small.processor, samples, epochs=1, search_pairs=4, batch_size=2,
        output=tmp_path,
    )  # fmt: skip
    again, processor = qvlm_lightning.load(tmp_path / "artifact", simulate=True)
    batch = collate(samples[:3], processor, with_answer=False)
    inputs = model_inputs(batch, CPU)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        written = again.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert written.shape == (3, batch["input_ids"].shape[1] + 3)


def test_a_photograph_passes_the_processor(small: Any, test_data: Any, tmp_path: Any) -> None:
    """Saved and loaded by the family, the processor makes the same of a real photograph."""
    found = sorted(p for p in test_data.rglob("*") if p.suffix in (".jpg", ".jpeg", ".png"))
    sample = Sample("a", Image.open(found[0]).convert("RGB"), "what is it ?", answer="one")
    model = small.model()
    model.save_pretrained(tmp_path)
    small.processor.save_pretrained(tmp_path)
    family = small.family(str(tmp_path))
    batches = [collate([sample], p, True) for p in (small.processor, family.load_processor())]
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    with torch.no_grad():
        reloaded = family.load_model()
        logits = [m(**model_inputs(batches[0], CPU)).logits for m in (model, reloaded)]
    assert torch.equal(*logits)
    assert reloaded.config.model_type == small.model_type
