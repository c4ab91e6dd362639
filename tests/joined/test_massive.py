"""Massive sites of the really pretrained model, where ``make joined`` has built it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.calibration.massive import massive_report
from qvlm_lightning.calibration.token_peaks import counted_tokens
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import generate
from qvlm_lightning.quant.scheme import Scheme

FOLDER = Path(__file__).parents[2] / "runs" / "joined"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="runs/joined is missing; make joined builds it"),
]


@pytest.fixture(scope="module")
def family() -> Llava:
    return Llava(str(FOLDER))


def batch_of(family: Llava, split: str, count: int) -> dict[str, Tensor]:
    made = generate(split, 40)[::3][:count]
    samples = [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]
    return collate(samples, family.load_processor(), with_answer=True)


def calibrated(family: Llava, overrides: dict) -> Calibrator:
    batch = batch_of(family, "calibration", 8)
    scheme = Scheme.parse("w8a8", overrides=overrides)
    made = Calibrator(family.load_model(), family, scheme, [batch], [batch])
    made.collect()
    return made


@torch.no_grad()
def divergence(model: nn.Module, made: Calibrator, batch: dict[str, Tensor]) -> float:
    """Return KL(full precision || quantized) over all tokens, nats."""
    inputs, logs = model_inputs(batch), []
    for on in (False, True):
        made.structure.enable(on)
        logs.append(F.log_softmax(model(**inputs).logits.double(), dim=-1))
    exact, quantized = logs
    per_token = (exact.exp() * (exact - quantized)).sum(dim=-1)
    return float(per_token[batch["attention_mask"].bool()].mean())


def test_the_down_projections_are_massive_at_the_first_token_and_overrides_help(family, capsys):
    plain = calibrated(family, {})
    assert "layers.11.down_in (2," in capsys.readouterr().out, "the site of the largest activation"
    decode = family.load_processor().tokenizer.decode
    told = massive_report(
        plain.structure,
        plain.scheme,
        plain.statistics.peaks,
        counted_tokens(plain.batches),
        [str(index) for index in range(8)],
        lambda token: str(decode([token])),
    )
    down = {name for name in told["sites"] if name.endswith("down_in")}
    assert {f"model.language_model.layers.{i}.down_in" for i in (1, 2, 9, 11, 28)} <= down
    worst = told["sites"]["model.language_model.layers.11.down_in"]
    assert worst["worst"] > 1000 * worst["median"] > 1000 * 1.0
    assert (worst["position"], worst["token"]) == (0, "<|im_start|>")
    assert worst["recurring"]["0"] == 8, "in every sample"
    rest = calibrated(family, told["proposed_overrides"])
    assert "largest token exceeds" not in capsys.readouterr().out
    for site in rest.structure.sites:
        assert site.quantizer.num_bits == (16 if site.name in told["sites"] else 8)
    batch = batch_of(family, "test", 8)
    before, after = (divergence(made.model, made, batch) for made in (plain, rest))
    assert after < before / 3
