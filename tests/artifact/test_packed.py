"""An artifact loaded in packed form answers as the fake-quantized model."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoProcessor

import qvlm_lightning
from qvlm_lightning.artifact import load_artifact, save_artifact, split_state
from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.sizes import part_sizes
from qvlm_lightning.kernels import pack_model
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packed_input import PackedInput
from qvlm_lightning.nn.packed_linear import PackedLinear
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from qvlm_lightning.weights.exported import sha256_of

SCHEMES = {
    "w4a4": Scheme.parse("w4a4"),
    "w8a8 per token": Scheme.parse("w8a8", activation_mode="dynamic_token"),
    "w3a8 in groups": Scheme.parse("w3a8", group_size=32, weight_symmetric=True),
    "w4a16 in groups": Scheme.parse("w4a16", group_size=32),
    "parts": Scheme(vision=PartScheme(16, 16), language=PartScheme(6, 6), ignore=("o_proj",)),
}


def noise(found: Tensor, expected: Tensor) -> float:
    """Return the share of a difference; a value at the border of two codes takes the other one
    after rounding, and what follows differs by steps.
    """
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("name", SCHEMES)
def test_every_layer_answers_the_same_to_the_same_input(
    tmp_path, questions, name, calibrate, export
):
    """Equal codes and sums: what differs is rounding of float32."""
    model, _ = calibrate(SCHEMES[name])
    folder = export(tmp_path / "artifact", model, SCHEMES[name])
    layers = load_artifact(folder, packed=True).packed.layers
    worst: dict[str, float] = {}

    def compare(layer: str, args: tuple[Tensor, ...], output: Tensor) -> None:
        found = layers[layer](args[0])
        worst[layer] = float((found - output).abs().max() / output.abs().max())

    for layer in layers:
        module = model.get_submodule(layer)
        module.register_forward_hook(lambda m, args, out, layer=layer: compare(layer, args, out))
    with torch.no_grad():
        model(**questions)
    assert worst.keys() == layers.keys()
    assert max(worst.values()) < 1e-5


@pytest.mark.parametrize("name", SCHEMES)
def test_packed_logits_are_those_of_the_simulation(tmp_path, questions, name, calibrate, export):
    model, structure = calibrate(SCHEMES[name])
    folder = export(tmp_path / "artifact", model, SCHEMES[name])
    artifact = load_artifact(folder, packed=True)
    with torch.no_grad():
        expected, logits = model(**questions).logits, artifact.model(**questions).logits
    assert noise(logits, expected) < 0.03
    quantized = [n for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    assert set(artifact.packed.layers) == set(quantized)
    assert not artifact.packed.simulated
    assert sum(artifact.packed.used().values()) == len(quantized)
    sites = [m for m in artifact.model.modules() if isinstance(m, PackedInput)]
    assert all((site.faster is not None) == (extension() is not None) for site in sites)
    held = [*artifact.model.parameters(), *artifact.model.buffers()]
    assert not any(tensor.is_meta for tensor in held)
    planned = sum(part.codes + part.scales for part in part_sizes(model, structure).values())
    whole = sum(part.quantized for part in part_sizes(model, structure).values())
    files = [folder / "weights.packed", folder / "quantizers.safetensors"]
    assert sum(file.stat().st_size for file in files) <= 1.03 * whole
    biases = [x.bias.nbytes for x in artifact.packed.layers.values() if x.bias is not None]
    assert artifact.packed.nbytes() - sum(biases) <= 1.03 * planned


def test_packed_logits_hold_in_half_precision(tmp_path, questions, calibrate, export):
    scheme = Scheme.parse("w8a16", group_size=32)
    model, _ = calibrate(scheme, Llava(str(WEIGHTS), dtype="bfloat16"))
    loaded, _ = qvlm_lightning.load(export(tmp_path / "artifact", model, scheme))
    with torch.no_grad():
        expected, logits = model(**questions).logits, loaded(**questions).logits
    assert noise(logits, expected) < 0.02
    types = {m.scale.dtype for m in loaded.modules() if isinstance(m, PackedLinear)}
    assert types == {torch.bfloat16}


def test_one_range_per_channel_stays_simulated_and_says_so(tmp_path, questions, calibrate, export):
    scheme = Scheme.parse("w4a4", activation_mode="static_channel")
    model, _ = calibrate(scheme)
    artifact = load_artifact(export(tmp_path / "artifact", model, scheme), packed=True)
    (note,) = artifact.packed.notes()
    assert note.startswith(
        f"{len(artifact.packed.simulated)} layers stay simulated: static_channel"
    )
    assert not artifact.packed.layers
    with torch.no_grad():
        assert torch.equal(artifact.model(**questions).logits, model(**questions).logits)


@pytest.mark.parametrize("sink", ["prefix", "bypass"])
def test_stored_sinks_are_packed_and_passing_ones_simulated(tmp_path, questions, calibrate, sink):
    scheme = Scheme.parse("w4a4", sink=sink)
    model, structure = calibrate(scheme)
    given = {"method": "rtn", "scheme": scheme.to_dict(), "sinks": structure.sinks.to_dict()}
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    save_artifact(tmp_path / "artifact", model, processor, given)
    artifact = load_artifact(tmp_path / "artifact", packed=True)
    passing = [n for n in artifact.packed.simulated if "language" in n]
    assert bool(passing) == (sink == "bypass" or bool(structure.sinks.tokens))
    with torch.no_grad():
        expected, logits = (
            model(**questions).logits[:, -1],
            artifact.model(**questions).logits[:, -1],
        )
    assert noise(logits, expected) < 0.03


def test_a_transform_of_the_input_runs_in_front_of_packed_layers(
    tmp_path, questions, calibrate, export
):
    scheme = Scheme.parse("w8a8")
    model, structure = calibrate(scheme)
    site = structure.towers["language"].sites[0]
    size = site.leader.in_features // 4
    rotation = torch.linalg.qr(torch.randn(size, size))[0]
    site.put_transform(torch.eye(4), rotation)
    with torch.no_grad():
        for linear in site.linears.values():
            linear.weight.copy_(site.transform.of_weight(linear.weight))
            linear.forget()
        expected = model(**questions).logits
    artifact = load_artifact(export(tmp_path / "artifact", model, scheme), packed=True)
    with torch.no_grad():
        logits = artifact.model(**questions).logits
    assert noise(logits, expected) < 0.03


def test_layers_of_a_site_answer_few_rows_together(calibrate):
    """q, k and v behind a transform, gate and up: as each of them alone, to the bit."""
    if extension() is None:
        pytest.skip("no extension here")
    model, structure = calibrate(SCHEMES["w4a4"])
    site = structure.towers["language"].sites[0]
    size = site.leader.in_features // 4
    site.put_transform(torch.eye(4), torch.linalg.qr(torch.randn(size, size))[0])
    layers = pack_model(model, structure).layers
    shared = {id(layer.shared): layer.shared for layer in layers.values() if layer.shared}
    calls: list[int] = []
    for product in shared.values():
        own = product.together
        product.together = lambda w, given, own=own: calls.append(len(w)) or own(w, given)
    decoder = model.model.language_model
    x = torch.randn(1, 3, decoder.config.hidden_size)
    with torch.no_grad():
        found = decoder(inputs_embeds=x).last_hidden_state
        for layer in layers.values():
            layer.shared = None
        expected = decoder(inputs_embeds=x).last_hidden_state
    assert torch.equal(found, expected)
    assert calls == [3, 2] * len(decoder.layers)
    assert all("extension" in x.used for n, x in layers.items() if "language_model.layers" in n)


def test_a_packed_model_is_ready_to_be_used(folder, questions, tmp_path):
    model, _ = qvlm_lightning.load(folder)
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) > 50
    assert not any(p.requires_grad for p in model.parameters())
    prompt = {k: v[:1] for k, v in questions.items()}
    new = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert new.shape[1] > prompt["input_ids"].shape[1]
    model.save_pretrained(tmp_path / "copy")
    names = sorted(f.name for f in folder.iterdir())
    assert sorted(f.name for f in (tmp_path / "copy").iterdir()) == names
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(InputError, match=r"load\(path, simulate=True\)"):
        model.to(torch.bfloat16)


def test_the_head_can_be_rounded_when_a_model_is_loaded(folder):
    heads = {
        simulate: qvlm_lightning.load(folder, simulate=simulate, head_bits=4)[0].lm_head
        for simulate in (True, False)
    }
    assert isinstance(heads[False], PackedLinear)
    assert heads[False].bits == 4
    assert max(len(row.unique()) for row in heads[True].weight) <= 16
    with pytest.raises(InputError, match="1 bits was asked for"):
        qvlm_lightning.load("nowhere", head_bits=1)


def test_weights_are_packed_one_after_another(tmp_path, monkeypatch, calibrate, export):
    """When a layer of format 3 is packed, those before it have let their full-precision weight
    go.
    """
    from qvlm_lightning.artifact import filling

    model, _ = calibrate(SCHEMES["w4a16 in groups"])
    folder = export(tmp_path / "artifact", model, SCHEMES["w4a16 in groups"])
    (folder / "weights.packed").unlink()
    quantizers, weights = split_state(model)
    save_file(weights, folder / "weights.simulated")
    save_file(quantizers, folder / "quantizers.safetensors")
    names = ("weights.simulated", "quantizers.safetensors")
    files = {name: sha256_of(folder / name) for name in names}
    manifest = json.loads((folder / "quantization.json").read_text())
    (folder / "quantization.json").write_text(json.dumps(manifest | {"format": 3, "files": files}))

    alive: list[int] = []
    kept: list[object] = []
    pack = filling.packed_weight

    def counted(quantizer: nn.Module, weight: Tensor):
        import weakref

        kept.append(weakref.ref(weight))
        alive.append(sum(w() is not None for w in kept))
        return pack(quantizer, weight)

    monkeypatch.setattr(filling, "packed_weight", counted)
    load_artifact(folder, packed=True)
    assert len(alive) > 50
    assert max(alive) == 1
