"""What tests of commands share."""

import pytest

from qvlm_lightning.data import TinyVQA


@pytest.fixture(autouse=True)
def _quick_guesser(monkeypatch) -> None:
    """Let the blind guesser learn from few questions: thousands take seconds."""
    monkeypatch.setattr(TinyVQA, "blind_samples", lambda self: self.calibration)
