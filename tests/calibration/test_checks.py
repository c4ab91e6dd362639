"""What a calibration refuses before it starts, and numbers that are none while it runs."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qvlm_lightning.calibration.checkpoint import check_checkpoint
from qvlm_lightning.calibration.checks import check_before, check_context
from qvlm_lightning.calibration.decisions import Decided, Decisions, decide
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.samples import fingerprints
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.vision.tower_loss import LossWeights, TowerLoss

NAN, INF = float("nan"), float("inf")


def batch(lengths: list[int], first: int) -> dict[str, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    places = torch.arange(first, first + len(lengths))
    return {"attention_mask": mask.long(), "sample_index": places}


def test_the_longest_of_samples_beyond_the_positions_is_named() -> None:
    batches = [batch([3, 9], 0), batch([12, 4], 2)]
    ids = list("abcd")
    check_context(batches, 12, ids)
    check_context(batches, None, ids)
    with pytest.raises(InputError, match=r"^1 calibration samples .* positions, 11, such as 'c' w"):
        check_context(batches, 11, ids)
    with pytest.raises(InputError, match=r"^2 calibration samples .* such as 'c' with 12; leave"):
        check_context(batches, 8, ids)


def test_only_what_will_be_exported_must_be_saved(family_class) -> None:
    class Family(family_class):
        """One whose processor nobody can save, of a model for four tokens."""

        def load_processor(self) -> object:
            return object()

        def positions(self, model: Any) -> int:
            return 4

    model = Family().load_model()
    told = {"family": Family(), "method": None, "scheme": Scheme()}
    kept, exported = (SimpleNamespace(exports=x, **told) for x in (False, True))
    batches = [batch([2], 0)]
    check_before(kept, model, batches, ["a"])
    with pytest.raises(
        InputError, match=r"^the processor of the model cannot be saved, which an a"
    ):
        check_before(exported, model, batches, ["a"])
    with pytest.raises(InputError, match="such as 'a' with 5"):
        check_before(kept, model, [batch([5], 0)], ["a"])


def block() -> Any:
    units = [SimpleNamespace(name=f"layers.{place}") for place in (3, 4)]
    return SimpleNamespace(units=units, cost=SimpleNamespace(layer_forwards=1, site_forwards=1))


def method(decision: Decision | Exception) -> Any:
    def solve(_: Any) -> Decision:
        if isinstance(decision, Exception):
            raise decision
        return decision

    return SimpleNamespace(solve=solve)


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (Decision({}, {"minmax": 1.0, "own": NAN}), "the objective of 'own' is nan"),
        (Decision({}, {"minmax": INF}), "the objective of 'minmax' is inf"),
        (Decision({"a.low": torch.tensor([1.0, NAN])}, {"own": 1.0}), "values in a.low"),
        (FloatingPointError("the search objective is not finite: [nan]"), "is not finite"),
    ],
)
def test_a_decision_of_numbers_that_are_none_is_not_taken(decision: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^the search of layers.3 to layers.4.*{words}"):
        decide(block(), method(decision), 0.0)


def test_a_decision_of_numbers_is_taken() -> None:
    given = Decision({"a.low": torch.tensor([1.0])}, {"own": 1.0})
    assert decide(block(), method(given), 0.0).decision is given


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_loss_that_is_none_ends_the_optimisation(value: float) -> None:
    loss = object.__new__(TowerLoss)  # of which the terms need nothing without entropies
    sums = {"nll": torch.tensor([2.0, 4.0]), "error": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    terms = loss.terms(sums, LossWeights(), {})
    assert math.isclose(float(terms["reg"]), 0.5)
    with pytest.raises(
        InputError, match=r"^the loss is not finite \(reg .*; try a smaller model.lr"
    ):
        loss.terms(sums | {"nll": torch.tensor([value, 4.0])}, LossWeights(), {})


def test_other_pixels_are_another_calibration() -> None:
    """A run is not resumed with other pictures under the same names."""
    given = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3, 2, 2)}
    before = fingerprints([given])
    changed = given["pixel_values"].clone()
    changed[0, 2, 1, 1] = 1e-3
    after = fingerprints([given | {"pixel_values": changed}])
    assert before["calibration_tokens"] == after["calibration_tokens"]
    assert before["calibration_images"] != after["calibration_images"]
    assert fingerprints([given | {"pixel_values": changed.bfloat16()}]) != after
    stored = {"calibration": {"identity": before}, "state_dict": {}}
    with pytest.raises(InputError, match=r"^the checkpoint has calibration_images '"):
        check_checkpoint(stored, after, [])


def test_a_bound_of_a_checkpoint_that_is_none_is_named(calibrated) -> None:
    calibrator = calibrated()
    site = calibrator.structure.sites[3]
    site.quantizer.high.fill_(NAN)  # as a checkpoint brings it
    with pytest.raises(InputError, match=r"^the calibration has NaN or infinite values in .*high"):
        calibrator.collect()


def test_a_stored_decision_of_numbers_that_are_none_is_taken_again(tmp_path) -> None:
    decisions = Decisions(tmp_path)
    for place, value in enumerate((1.0, NAN)):
        given = Decision({"a.low": torch.tensor([value])}, {"own": 1.0})
        decisions.write("name", "key", place, Decided(given, {"seconds": 1.0}))
    assert decisions.read("name", "key", 0) is not None
    assert decisions.read("name", "key", 1) is None
