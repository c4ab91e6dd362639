"""Weights of another tool, on the embedded model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qvlm_lightning.data.tiny import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.foreign_weights import (
    ForeignEvaluation,
    ForeignWeights,
    put_weights,
)
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.models import Tiny
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.results.variant import Variant

SCHEMES = [
    Scheme.parse("w4a4", activation_mode="dynamic_token", weight_symmetric=True),
    Scheme.parse("vision-w16a16_projector-w16a16_language-w4a16", group_size=32),
]


@pytest.fixture(scope="module")
def data() -> TinyVQA:
    return TinyVQA(Tiny(), calibration_pairs=4, search_pairs=2, batch_size=4, evaluation_count=4)


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_weights_rounded_as_ours_answer_as_ours(scheme, data, tmp_path):
    family = Tiny()
    ours = family.load_model()
    structure = quantize_model(ours, family, scheme)
    structure.enable(True)
    linears = {n: x for site in structure.sites for n, x in site.linears.items()}
    rounded = {n: x.quantized_weight().clone() for n, x in linears.items()}
    save_file(rounded, tmp_path / "weights.safetensors")
    variant = Variant("tiny", "tool", scheme.name, scheme.activation_mode, seed=0)
    given = ForeignWeights(tmp_path / "weights.safetensors", variant, scheme, "tool 1")
    module = ForeignEvaluation(VQAEvaluation(family, max_new_tokens=4), given)
    module.build(data)
    (batch,) = data.calibration_batches()
    inputs = model_inputs(batch)
    mine, theirs = ours(**inputs).logits, module.model(**inputs).logits
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)
    assert not torch.allclose(family.load_model()(**inputs).logits, mine, atol=1e-2)
    assert (module.variant, module.search["program"]) == (variant, "tool 1")
    assert module.base == family.fingerprint(family.load_model())


def test_other_weights_are_another_source(data, tmp_path):
    sources = set()
    for place, scheme in enumerate([SCHEMES[0], SCHEMES[0], SCHEMES[1]]):
        path = tmp_path / f"{place}.safetensors"
        save_file({"lm_head": torch.full((134, 8), float(place))}, path)
        given = ForeignWeights(path, Variant("tiny"), scheme, "")
        module = ForeignEvaluation(VQAEvaluation(Tiny()), given)
        with pytest.raises(InputError, match="does not fit: the model has one of shape"):
            module.build(data)
        save_file({}, path)
        module.build(data)
        sources.add(module.source)
    assert len(sources) == 2, "empty files of one scheme are equal"


def test_what_does_not_fit_leaves_the_model_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    before = [p.clone() for p in model.parameters()]
    good = torch.ones(2, 3)
    with pytest.raises(InputError, match=r"'5', shape .2, 3., does not fit: the model has no such"):
        put_weights(model, {"0": good, "5": good})
    with pytest.raises(InputError, match="NaN or infinite values in 0"):
        put_weights(model, {"0": good / 0})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    put_weights(model, {"0": good})
    assert torch.equal(model[0].weight, good)


def test_a_file_that_cannot_be_read_is_one_sentence(data, tmp_path: Path):
    (tmp_path / "weights.safetensors").write_text("x")
    given = ForeignWeights(tmp_path / "weights.safetensors", Variant("tiny"), SCHEMES[0], "")
    with pytest.raises(InputError, match=r"cannot be read .*; remove its folder"):
        ForeignEvaluation(VQAEvaluation(Tiny()), given).build(data)
