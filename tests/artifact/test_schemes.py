"""Artifacts of schemes that a newer version would refuse, or whose defaults have changed since."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qvlm_lightning.artifact import load_artifact, save_artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

PER_CHANNEL = Scheme.parse("w3a16")
INPUTS = {"input_ids": torch.tensor([[1, 5, 6, 7]])}


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    """What the embedded model says with a weight scale per output channel."""
    family = Llava(str(WEIGHTS))
    model = family.load_model()
    quantize_model(model, family, PER_CHANNEL).enable(True)
    with torch.no_grad():
        return model(**INPUTS).logits


def stored(folder: Path, **scheme: Any) -> Path:
    """Write an artifact and change what its manifest says of the scheme; None drops a key."""
    family = Llava(str(WEIGHTS))
    model = family.load_model()
    quantize_model(model, family, PER_CHANNEL)
    save_artifact(folder, model, family.load_processor(), {"scheme": PER_CHANNEL.to_dict()})
    path = folder / "quantization.json"
    manifest = json.loads(path.read_text())
    written = manifest["scheme"] | scheme
    manifest["scheme"] = {name: x for name, x in written.items() if x is not None}
    path.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "scheme",
    [
        {"group_fallback": "error"},  # the default of the first artifacts
        {"group_fallback": None},
        {"group_size": 7, "group_fallback": "channel"},  # groups nowhere
    ],
    ids=["error", "not named", "no group"],
)
def test_scales_per_channel_stay_so(tmp_path, logits, scheme):
    artifact = load_artifact(stored(tmp_path / "artifact", **scheme))
    with torch.no_grad():
        assert torch.equal(artifact.model(**INPUTS).logits, logits)


def test_groups_stay_groups_where_they_divide(tmp_path, logits):
    """128 divides the inputs of the tower's layers and of ``down_proj`` only."""
    scheme = replace(PER_CHANNEL, group_size=128, group_fallback="channel")
    family = Llava(str(WEIGHTS))
    model = family.load_model()
    structure = quantize_model(model, family, scheme)
    structure.enable(True)
    folder = tmp_path / "artifact"
    save_artifact(folder, model, family.load_processor(), {"scheme": scheme.to_dict()})
    artifact = load_artifact(folder)
    with torch.no_grad():
        found = artifact.model(**INPUTS).logits
        assert torch.equal(found, model(**INPUTS).logits)
        assert not torch.equal(found, logits)
    linears = [x for site in artifact.structure.sites for x in site.linears.values()]
    assert all(
        x.weight_quantizer.group_size == (None if x.in_features % 128 else 128) for x in linears
    )
    assert {x.weight_quantizer.group_size for x in linears} == {None, 128}


def test_a_fallback_that_was_refused_is_still_refused(tmp_path):
    folder = stored(tmp_path / "artifact", group_size=128, group_fallback="error")
    with pytest.raises(InputError, match=r"is broken: .* group_size 128 does not divide 192"):
        load_artifact(folder)
