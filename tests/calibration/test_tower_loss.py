"""One optimiser step of visual-encoder optimisation, whatever of the model is in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.methods import SequentialSearch
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.vision.soft_edges import SoftEdges
from qvlm_lightning.vision.tower_loss import LossWeights, TowerLoss

CPU = torch.device("cpu")
WEIGHTS = LossWeights(0.1, 1.0, 1.0)


@pytest.fixture
def prepare(opened, folder, toy_batches):
    """A calibrated model, in memory or streamed, and the loss of its batches."""

    def run(
        streamed: bool, dtype: str = "float32", path: Path = folder
    ) -> tuple[Calibrator, TowerLoss]:
        calibrator, search = opened(path, streamed, dtype=dtype), SequentialSearch()
        calibrator.collect(search.candidates("static_tensor") if streamed else None)
        calibrator.search(["vision", "projector", "language"], search, "first")
        calibrator.structure.enable(True)
        for parameter in learned(calibrator):
            parameter.requires_grad_(True)
        edges = SoftEdges(calibrator.structure, calibrator.statistics.channel_range, 0.25, 512)
        parts = [[batch] for batch in toy_batches]
        return calibrator, TowerLoss(calibrator.passes, edges, toy_batches, parts)

    return run


def learned(calibrator: Calibrator) -> list[torch.nn.Parameter]:
    towers = calibrator.structure.towers
    sites = [*towers["vision"].sites, *towers["projector"].sites]
    return [
        *(site.quantizer.high_ratio for site in sites),
        *(linear.weight_quantizer.clip_ratio for site in sites for linear in site.linears.values()),
    ]


def step(calibrator: Calibrator, loss: TowerLoss) -> tuple[Any, dict[str, float], list[Tensor]]:
    """Return Jacobian weights, terms and gradients of the first batch."""
    jacobian = loss.jacobian()
    with torch.enable_grad():
        terms = loss.terms(loss.sums(0, 0, 7, torch.zeros(())), WEIGHTS, jacobian)
        terms["total"].backward()
    gradients = [p.grad for p in learned(calibrator)]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    return jacobian, {n: x.item() for n, x in terms.items()}, gradients


def count_reads(calibrator: Calibrator, monkeypatch: Any) -> list[str]:
    """Return a list that grows by the name of every weight that is read."""
    weights = calibrator.passes.weights
    read, names = weights.read, []

    def count(name: str) -> Tensor:
        names.append(name)
        return read(name)

    monkeypatch.setattr(weights, "read", count)
    return names


def assert_same(one: Any, other: Any) -> None:
    assert one[:2] == other[:2]
    assert all(torch.equal(*pair) for pair in zip(one[2], other[2], strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_streamed_step_is_that_in_memory(prepare, dtype):
    whole, streamed = (step(*prepare(on, dtype)) for on in (False, True))
    assert_same(streamed, whole)
    assert whole[1]["ent"] > 0
    assert sum(float(g.abs().sum()) for g in whole[2]) > 0


def test_a_streamed_step_reads_tied_embeddings_once(prepare, build, tmp_path, monkeypatch):
    model = build()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    calibrator, loss = prepare(True, path=tmp_path / "tied")
    names = count_reads(calibrator, monkeypatch)
    with torch.enable_grad():
        loss.sums(0, 0, 7, torch.zeros(()))
    embedding = calibrator.model.get_input_embeddings()
    tied = [
        n
        for n, p in calibrator.model.named_parameters(remove_duplicate=False)
        if p is embedding.weight
    ]
    assert len(tied) == 2
    assert sum(names.count(n) for n in tied) == 1
    whole, streamed = (step(*prepare(on, path=tmp_path / "tied")) for on in (False, True))
    assert_same(streamed, whole)


def test_layers_that_run_again_change_nothing(prepare):
    calibrator, loss = prepare(False)
    calibrator.passes.activation_checkpointing = True
    assert_same(step(calibrator, loss), step(*prepare(False)))


class Saved:
    """Sums up the tensors that autograd keeps, each once, but for weights."""

    def __init__(self, calibrator: Calibrator) -> None:
        linears = [m for m in calibrator.model.modules() if isinstance(m, QuantLinear)]
        weights = [x for m in linears for x in (m.weight, m.quantized_weight())]
        self.weights = {x.untyped_storage()._cdata for x in weights}
        self.kept: dict[int, Any] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.kept[storage._cdata] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self.kept.values())


def test_layers_that_run_again_keep_little(prepare):
    found = []
    for activation_checkpointing in (False, True):
        calibrator, loss = prepare(False)
        calibrator.passes.activation_checkpointing = activation_checkpointing
        loss.edges.samples = 8  # the soft assignments are not in layers
        saved = Saved(calibrator)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
            loss.sums(0, 0, 7, torch.zeros(()))
        found.append(saved.nbytes)
    assert found[1] < found[0] / 2


def test_of_a_layer_that_has_run_no_quantized_weight_is_kept(prepare):
    calibrator, loss = prepare(False)
    linears = [m for m in calibrator.model.modules() if isinstance(m, QuantLinear)]
    calibrator.passes.activation_checkpointing = True
    step(calibrator, loss)
    assert all(linear._weight_cache is None for linear in linears)
    calibrator.passes.activation_checkpointing = False
    step(calibrator, loss)
    assert any(linear._weight_cache is not None for linear in linears)


def test_streaming_holds_one_layer_on_both_ways(prepare, monkeypatch):
    calibrator, loss = prepare(True)
    passes: Passes = calibrator.passes
    order: list[str] = []
    now: set[str] = set()
    held = type(passes).held

    def spy(self: Any, units: Any) -> Any:
        order.extend(unit.name for unit in units)
        context = held(self, units)
        enter, leave = context.__enter__, context.__exit__

        class Spied:
            def __enter__(self) -> None:
                enter()
                now.update(unit.name for unit in units)
                assert len(now) == 1

            def __exit__(self, *error: Any) -> None:
                now.difference_update(unit.name for unit in units)
                leave(*error)

        return Spied()

    monkeypatch.setattr(type(passes), "held", spy)
    with torch.enable_grad():
        sums = loss.sums(0, 0, 7, torch.zeros(()))
        forwards, order = order[:], []
        units = [unit.name for unit in calibrator.structure.units]
        assert forwards == units
        ones = {"vision": [1.0, 1.0], "language": [1.0] * 4}
        del order[:]
        loss.terms(sums, WEIGHTS, ones)["total"].backward()
    assert order == units[::-1]
    frozen = [p for n, p in calibrator.model.named_parameters() if n.endswith(".weight")]
    assert all(p.is_meta for p in frozen)


def test_what_a_step_reads_can_be_counted(prepare, monkeypatch):
    """Each layer's weights twice: forwards and backwards."""
    calibrator, loss = prepare(True)
    names = count_reads(calibrator, monkeypatch)
    with torch.enable_grad():
        sums = loss.sums(0, 0, 7, torch.zeros(()))
        loss.terms(sums, WEIGHTS, {"vision": [1.0] * 2, "language": [1.0] * 4})["total"].backward()
    inside = {n for names in calibrator.passes.of_unit.values() for n in names}
    assert {n: names.count(n) for n in inside} == dict.fromkeys(inside, 2)
    assert all(names.count(n) == 1 for n in calibrator.passes.head)
