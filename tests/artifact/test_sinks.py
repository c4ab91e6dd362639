"""An artifact holds its sink tokens, and says so where they are missing or a prompt lacks them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from qvlm_lightning.artifact import load_artifact, save_artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import MANIFEST, QUANTIZERS


@pytest.fixture(params=["prefix", "bypass"])
def stored_sinks(request, tmp_path, calibrate):
    """A model with sinks and its artifact."""
    scheme = Scheme.parse("w4a4", sink=request.param)
    model, structure = calibrate(scheme)
    given = {"method": "rtn", "scheme": scheme.to_dict(), "sinks": structure.sinks.to_dict()}
    save_artifact(tmp_path / "artifact", model, AutoProcessor.from_pretrained(WEIGHTS), given)
    return model, structure, tmp_path / "artifact"


def test_a_loaded_model_knows_its_sinks(stored_sinks, questions):
    model, structure, folder = stored_sinks
    loaded = load_artifact(folder)
    assert loaded.structure.sinks.to_dict() == structure.sinks.to_dict()
    with torch.no_grad():
        logits = model(**questions).logits
        assert torch.equal(loaded.model(**questions).logits, logits)
        structure.sinks.prefix = structure.sinks.tokens = ()
        for module in model.modules():
            if isinstance(module, SinkOutput):
                module.value = None
        assert not torch.equal(model(**questions).logits, logits), "sinks change what is computed"


def test_keys_and_values_are_those_of_the_first_tokens_alone(stored_sinks, calibrate):
    model, structure, _ = stored_sinks
    ids = torch.tensor([structure.sinks.prefix])
    held = {n: m.value for n, m in model.named_modules() if isinstance(m, SinkOutput)}
    layers = structure.towers["language"].units
    assert len(held) == (2 * len(layers) if structure.sinks.stored else 0)
    seen = {}
    for name in held:
        linear = model.get_submodule(name.rpartition(".")[0])
        linear.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out[0]}))
    with torch.no_grad(), structure.only(set()):
        model(input_ids=ids)
    for name, value in held.items():
        assert name.endswith(("k_proj.sink_output", "v_proj.sink_output"))
        torch.testing.assert_close(value, seen[name], rtol=1e-4, atol=1e-5)


def test_missing_names_of_sinks_are_noticed(stored_sinks):
    _, _, folder = stored_sinks
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sinks"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is broken: sinks is None"):
        load_artifact(folder)


@pytest.mark.parametrize("stored_sinks", ["prefix"], indirect=True)
def test_missing_keys_are_noticed(stored_sinks, restore):
    _, _, folder = stored_sinks
    tensors = load_file(folder / QUANTIZERS)
    del tensors[next(n for n in tensors if "sink_output" in n)]
    restore(tensors, folder / QUANTIZERS)
    with pytest.raises(InputError, match=r"does not fit its own config.*sink_output"):
        load_artifact(folder)


@pytest.mark.parametrize("stored_sinks", ["prefix"], indirect=True)
def test_a_prompt_of_another_template_is_refused(stored_sinks):
    _, structure, folder = stored_sinks
    model = load_artifact(folder).model
    other = torch.tensor([[structure.sinks.prefix[0] + 1, 5, 6]])
    with pytest.raises(InputError, match="at place 0; use the chat template"):
        model(input_ids=other)
