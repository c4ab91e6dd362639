"""A method that changes weights: committed, kept from full precision, replayed, streamed, saved."""

from pathlib import Path

import pytest
import torch

from qvlm_lightning.artifact import load_artifact, save_artifact
from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.methods import JointSearch, MinMax
from qvlm_lightning.methods.base import Method
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.quant.scheme import Scheme

TOWERS = ["vision", "projector", "language"]
W3 = Scheme.parse("w3a8")


def logits(calibrator: Calibrator, quantized: bool) -> torch.Tensor:
    with torch.no_grad(), calibrator.structure.only(set(TOWERS) if quantized else set()):
        inputs = model_inputs(calibrator.batches[0], torch.device("cpu"))
        out: torch.Tensor = calibrator.model(**inputs).logits
        return out


def weights(calibrator: Calibrator) -> dict[str, torch.Tensor]:
    """Every tensor of the quantized model, by name."""
    calibrator.structure.enable(True)
    return {n: x.clone() for n, x in calibrator.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(x, other[n]) or (x.isnan().all() and other[n].isnan().all())
        for n, x in one.items()
    )


def test_the_decision_is_what_the_model_then_does(calibrated, gptq):
    calibrator = calibrated(W3)
    errors = []

    class Spy(gptq):
        def solve(self, block):
            decision = super().solve(block)
            errors.append((block, decision.scores["naive_gptq"]))
            return decision

    calibrator.search(["language"], Spy(), "a")
    with calibrator.structure.only({"language"}):
        for block, promised in errors:
            assert block.error() == promised  # nothing is given in: the model itself


def test_it_lowers_the_error_and_stays_on_the_grid(calibrated, gptq):
    calibrator = calibrated(W3)
    before = weights(calibrator)
    calibrator.search(TOWERS, gptq(), "a")
    gained = [o["minmax"] - o["naive_gptq"] for o in calibrator.state.objective]
    assert sum(gained) > 0
    after = weights(calibrator)
    linears = {n: m for n, m in calibrator.model.named_modules() if isinstance(m, QuantLinear)}
    for name, linear in linears.items():
        weight = after[f"{name}.weight"]
        assert not torch.equal(weight, before[f"{name}.weight"])
        quantizer = linear.weight_quantizer
        scale, zero_point = quantizer.qparams(weight)
        codes = quantizer.codes(weight)
        assert int(codes.min()) >= 0
        assert int(codes.max()) <= 7
        assert torch.allclose((codes - zero_point) * scale, weight, atol=1e-6)
        assert torch.equal(linear.quantized_weight(), (codes - zero_point) * scale)


def test_full_precision_stays_what_it_was(calibrated, gptq):
    calibrator = calibrated(W3)
    before = logits(calibrator, quantized=False)
    calibrator.search(TOWERS, gptq(), "a")
    assert torch.equal(logits(calibrator, quantized=False), before)
    assert not torch.equal(logits(calibrator, quantized=True), before)


def test_a_second_pass_decides_from_the_original_weights(calibrated, gptq):
    once, twice = calibrated(W3), calibrated(W3)
    once.search(TOWERS, gptq(), "a")
    twice.search(TOWERS, gptq(damp=0.5), "a")
    assert not same(weights(twice), weights(once))
    twice.state.searched.clear()
    for tower in TOWERS:  # one after another, as the first time
        twice.search([tower], gptq(), f"b {tower}")
    assert same(weights(twice), weights(once))
    assert once.state.objective == twice.state.objective


def test_another_method_finds_the_original_weights(calibrated, gptq):
    plain, changed = calibrated(W3), calibrated(W3)
    plain.search(TOWERS, MinMax(), "a")
    changed.search(TOWERS, gptq(), "a")
    changed.state.searched.clear()
    for tower in TOWERS:
        changed.search([tower], MinMax(), f"b {tower}")
    assert same(weights(plain), weights(changed))
    assert len(changed.structure.changes) == 0


@pytest.mark.parametrize("known", [0, 1, 4])
def test_stored_decisions_are_replayed(calibrated, gptq, tmp_path, known):
    first = calibrated(W3, folder=tmp_path)
    first.search(TOWERS, gptq(), "a")
    stored = sorted(tmp_path.glob("a-*.safetensors"))
    for path in stored[known:]:
        path.unlink()
    decided = []

    class Counted(gptq):
        def solve(self, block):
            decided.append(block)
            return super().solve(block)

    Counted.__name__ = gptq.__name__  # a key names the class
    second = calibrated(W3, folder=tmp_path)
    second.search(TOWERS, Counted(), "a")
    assert len(decided) == len(stored) - known
    assert same(weights(first), weights(second))
    assert first.state.objective == second.state.objective


def test_a_resumed_run_has_the_changed_weights_again(calibrated, gptq, tmp_path):
    first = calibrated(W3, folder=tmp_path)
    first.search(TOWERS, gptq(), "a")
    assert set(first.state.changed) == set(first.structure.changes)
    second = calibrated(W3, folder=tmp_path)
    second.state.update(first.state.to_dict())
    quantizers = {n: x for n, x in weights(first).items() if "_quantizer." in n}
    second.model.load_state_dict(quantizers, strict=False)
    second.blocks.restore_changes()
    assert same(weights(first), weights(second))
    full = logits(first, quantized=False)
    assert torch.equal(full, logits(second, quantized=False))
    (tmp_path / next(iter(first.state.changed.values()))).unlink()
    third = calibrated(W3, folder=tmp_path)
    third.state.update(first.state.to_dict())
    with pytest.raises(Exception, match="needs its whole folder"):
        third.blocks.restore_changes()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_streamed_model_decides_the_same(opened, folder, tmp_path, gptq, kept, dtype):
    whole, streamed = (opened(folder, s, W3, dtype) for s in (False, True))
    for calibrator in (whole, streamed):
        if kept:
            calibrator.blocks.decisions = Decisions(tmp_path / str(id(calibrator)))
        calibrator.collect([1.0] if calibrator is streamed else None)
        calibrator.search(TOWERS, gptq(), "a")
        calibrator.structure.enable(True)
    assert whole.state.percentiles == streamed.state.percentiles
    assert whole.state.objective == streamed.state.objective
    held = streamed.passes.weights
    for name in whole.structure.changes:
        decided = whole.model.get_parameter(name)
        assert torch.equal(held.read(name), decided)
        with streamed.structure.only(set()), whole.structure.only(set()):
            assert torch.equal(held.read(name), whole.model.get_parameter(name))
    assert all(p.is_meta for n, p in streamed.model.named_parameters() if "_quantizer." not in n)


class NoProcessor:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing to save."""


def saved(calibrator: Calibrator, folder: Path, method: Method) -> Path:
    calibrator.search(TOWERS, method, "a")
    calibrator.structure.enable(True)
    said = {
        "scheme": W3.to_dict(),
        "read_by": "tests.calibration.conftest.InFolder",
        "method": method.name,
    }
    weights = getattr(calibrator.passes, "weights", None)
    save_artifact(folder, calibrator.model, NoProcessor(), said, weights)
    return folder


def test_the_artifact_is_the_quantized_model(opened, folder, tmp_path, gptq, monkeypatch):
    from tests.calibration.conftest import InFolder

    monkeypatch.setattr(InFolder, "load_processor", lambda self: None)
    paths = []
    for streamed in (False, True):
        calibrator = opened(folder, streamed, W3)
        calibrator.collect([1.0] if streamed else None)
        paths.append(saved(calibrator, tmp_path / f"artifact-{streamed}", gptq()))
        if not streamed:
            expected = logits(calibrator, quantized=True)
    for name in ("weights.packed", "quantizers.safetensors"):
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()
    artifact = load_artifact(paths[0], InFolder)
    with torch.no_grad():
        inputs = model_inputs(calibrator.batches[0], torch.device("cpu"))
        assert torch.equal(artifact.model(**inputs).logits, expected)


def test_a_method_without_use_for_the_search_pairs_sees_all(calibrated, gptq):
    calibrator, seen = calibrated(W3), []

    class Spy(gptq):
        def solve(self, block):
            seen.append(len(block.x_q))
            return super().solve(block)

    calibrator.search(["language"], Spy(), "a")
    assert set(seen) == {3}
    seen.clear()
    Spy.pairs = "search"
    calibrator.search(["language"], Spy(), "b")
    assert set(seen) == {2}


def test_settings_name_every_argument_and_part():
    from qvlm_lightning.methods import ByKind

    settings = JointSearch([1.0, 0.99], token_weights=ByKind(answer=2.0)).settings()
    assert settings["class"] == "JointSearch"
    assert settings["percentiles"] == [1.0, 0.99]
    assert settings["token_weights"] == {
        "class": "ByKind", "vision": 1.0, "prompt": 1.0, "answer": 2.0,
    }  # fmt: skip


def test_settings_without_a_plain_form_are_refused():
    class Odd(MinMax):
        def __init__(self, table: object) -> None:
            super().__init__()
            self.table = table

    with pytest.raises(TypeError):
        Odd(torch.ones(2)).settings()

    class Forgetful(MinMax):
        def __init__(self, table: int) -> None:
            super().__init__()

    with pytest.raises(TypeError, match="'table'"):
        Forgetful(3).settings()
