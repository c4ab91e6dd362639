"""Made-up answers, small enough to score by hand: two colours, two multiple choices; and
the embedded model with its questions.
"""

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Trainer

from qvlm_lightning.data import TinyVQA
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.variant import Variant

LOGITS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
QUANTIZED = ("w4a4", "static_tensor", 1.0, 0)


@pytest.fixture
def variants() -> dict[str, Variant]:
    """Full precision, round-to-nearest and Q-VLM."""
    methods = {name: Variant("tiny", name, *QUANTIZED) for name in ("rtn", "qvlm")}
    return {"fp": Variant("tiny"), **methods}


@pytest.fixture
def answered(variants) -> Callable[..., Predictions]:
    """Make answers of a method; the expected ones are red, blue, A, B."""

    def make(method: str, *texts: str, shift: float = 0.0, **other) -> Predictions:
        logits = LOGITS.clone()
        logits[:, 0] += shift
        fields = {
            "variant": variants[method],
            "source": method,
            "base": "weights",
            "seconds": 1.5,
            "ids": ["q0", "q1", "q2", "q3"],
            "texts": list(texts) or ["red", "blue", "A", "B"],
            "answers": ["red", "blue", "A", "B"],
            "choices": [0, 0, 3, 3],
            "families": ["color", "color", "pick", "pick"],
            "log_probs": logits.log_softmax(-1),
        }
        return Predictions(**(fields | other))

    return make


@pytest.fixture
def known() -> Callable[..., dict[str, Predictions]]:
    """Put predictions under their names."""
    return lambda *predictions: {p.name: p for p in predictions}


@pytest.fixture(autouse=True)
def _quick_guesser(monkeypatch) -> None:
    """Let the blind guesser learn from few questions: thousands take seconds."""
    monkeypatch.setattr(TinyVQA, "blind_samples", lambda self: self.calibration)


@pytest.fixture
def family():
    return Llava(str(WEIGHTS))


@pytest.fixture
def data(family):
    return TinyVQA(family, evaluation_count=20, evaluation_batch_size=8)


@pytest.fixture
def trainer(tmp_path):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )


@pytest.fixture
def names(tmp_path):
    """Names of the answers that are stored in the run folder."""
    return lambda: sorted(p.stem for p in (tmp_path / "predictions").glob("*.json"))
