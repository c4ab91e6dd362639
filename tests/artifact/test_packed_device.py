"""A packed model on another device than the CPU."""

import copy
import pickle

import pytest
import torch

import qvlm_lightning
from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.kernels import pack_model
from qvlm_lightning.quant.scheme import Scheme

SCHEMES = {
    "w4a4": Scheme.parse("w4a4"),
    "w8a8": Scheme.parse("w8a8", activation_mode="dynamic_token"),
    "w3a16": Scheme.parse("w3a16", group_size=32),
}


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path, device):
    with pytest.raises(InputError, match=f"device '{device}' is not .*allowed: cpu"):
        qvlm_lightning.load(tmp_path / "nothing", device=device)


def test_all_that_a_packed_layer_holds_is_where_its_weight_is(calibrate):
    """Without values, on torch's device without storage, no GPU is needed to see it."""
    model, structure = calibrate(Scheme.parse("w8a8"))
    site = structure.towers["language"].sites[0]
    size = site.leader.in_features // 4
    site.put_transform(torch.eye(4), torch.eye(size))
    packed = pack_model(model, structure, device="meta")
    assert any(layer.bias is not None for layer in packed.layers.values())
    for layer in packed.layers.values():
        held = [*layer.buffers(), *layer.parameters()]
        held += [] if layer.site is None else list(layer.site.buffers())
        assert {tensor.device.type for tensor in held} == {"meta"}


def test_a_packed_model_can_be_copied(calibrate, questions):
    """Whatever built its kernels."""
    model, structure = calibrate(SCHEMES["w8a8"])
    pack_model(model, structure)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model.model.language_model.layers[0])))
    assert isinstance(copied, torch.nn.Module)
    layer = model.model.language_model.layers[0].mlp.down_proj
    x = torch.randn(2, layer.in_features)
    assert torch.equal(copied.mlp.down_proj(x), layer(x))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCHEMES)
def test_a_gpu_answers_as_the_cpu(tmp_path, questions, name, calibrate, export):
    model, _ = calibrate(SCHEMES[name])
    folder = export(tmp_path / "artifact", model, SCHEMES[name])
    there, here = (load_artifact(folder, packed=True, device=x) for x in ("cuda", "cpu"))
    assert not there.packed.refused
    given = {name: tensor.cuda() for name, tensor in questions.items()}
    with torch.no_grad():
        found = there.model(**given).logits.cpu().float()
        expected = here.model(**questions).logits.float()
    assert float((found - expected).norm() / expected.norm()) < 0.03
