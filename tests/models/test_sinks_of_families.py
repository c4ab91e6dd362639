"""Sink tokens in every family: keys and values of the first tokens, or one sentence why not."""

import pytest
import torch

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.generate import generate
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.quant.scheme import Scheme

IMAGE_FIRST = ("paligemma",)
"""Families whose prompts begin with the image."""


def calibrated(small, family, batches, sink):
    model = small.model().requires_grad_(False).eval()
    made = Calibrator(model, family, Scheme.parse("w4a4", sink=sink), batches, batches)
    made.collect()
    made.structure.enable(True)
    return made


def test_bypass_works_in_every_family(small, family, batches):
    made = calibrated(small, family, batches, "bypass")
    for batch in batches:
        logits = made.model(**model_inputs(batch), use_cache=False).logits
        assert logits[batch["attention_mask"].bool()].isfinite().all()


def test_prefix_stores_what_the_first_tokens_give_or_says_why_not(small, family, batches, kind):
    if kind in IMAGE_FIRST:
        with pytest.raises(InputError, match="sink 'prefix'"):
            calibrated(small, family, batches, "prefix")
        return
    made = calibrated(small, family, batches, "prefix")
    first = made.structure.sinks.prefix
    held = {n: m.value for n, m in made.model.named_modules() if isinstance(m, SinkOutput)}
    assert len(held) == 2 * len(made.structure.towers["language"].units)
    seen = {}
    for name in held:
        linear = made.model.get_submodule(name.rpartition(".")[0])
        linear.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out[0]}))
    with torch.no_grad(), made.structure.only(set()):
        made.model(input_ids=torch.tensor([first]), attention_mask=torch.ones(1, len(first)).long())
    for name, value in held.items():
        torch.testing.assert_close(value, seen[name], rtol=1e-3, atol=1e-4)
    prompts = {n: x for n, x in batches[0].items() if n != "labels"}
    assert all(generate(made.model, prompts, {-1}, 3).rows())
