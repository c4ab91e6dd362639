"""The toy model and its batches in float64, beside a plain copy that the package never touches."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import nn

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.conftest import ToyFamily, build_toy, make_batch, started  # noqa: F401
from tests.wiring.plain import Batch, Plain, double, left_padded


class DoubleToy(ToyFamily):
    """The toy LLaVA in float64."""

    def load_model(self) -> nn.Module:
        return build_toy(self.seed).double()


@pytest.fixture
def family_class() -> type[ToyFamily]:
    return DoubleToy


@pytest.fixture
def toy_batches() -> list[Batch]:
    """Batches of different length, much of it padding, on the right or on the left; some samples
    see no image, of the third batch none does. The search uses the first two.
    """
    batches = [
        make_batch(0, text=4),
        left_padded(make_batch(4, text=9, blind=(2,))),
        make_batch(8, text=5, blind=(0, 1, 2, 3)),
        make_batch(12, text=7, blind=(0, 2)),
    ]
    return [double(batch) for batch in batches]


@pytest.fixture
def plain() -> Callable[..., Plain]:
    """The plain model of a seed."""

    def make(seed: int = 0, mode: str = "static_tensor") -> Plain:
        return Plain(build_toy(seed).double(), mode)

    return make


@pytest.fixture
def calibrated(toy_batches: list[Batch]) -> Any:
    """A calibrator with statistics, W4A4 static_tensor; the search uses the first two batches."""

    def start(
        seed: int = 0,
        batches: Sequence[Batch] | None = None,
        scheme: Scheme | None = None,
        draw: int = 0,
    ) -> Calibrator:
        family, batches = DoubleToy(seed), toy_batches if batches is None else batches
        calibrator = Calibrator(
            family.load_model(),
            family,
            scheme or Scheme.parse("w4a4"),
            batches,
            batches[:2],
            seed=draw,
        )
        calibrator.collect()
        return calibrator

    return start
