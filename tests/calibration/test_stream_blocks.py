"""A streamed calibration holds one block of the model, and says so before it starts."""

import weakref
from typing import Any

import pytest
from torch import Tensor

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.stream_plan import StreamPlan
from qvlm_lightning.methods import JointSearch, MinMax
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.grid import FINE_PERCENTILES
from qvlm_lightning.methods.proxies import ConditionalEntropy
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.replay import run_unit


def in_place(calibrator: Calibrator) -> set[str]:
    """Return the units that have weights just now."""
    units = [unit for tower in calibrator.structure.towers.values() for unit in tower.units]
    return {
        unit.name
        for unit in units
        if any(not p.is_meta for n, p in unit.module.named_parameters() if n.endswith(".weight"))
    }


def test_only_the_block_that_is_searched_has_weights(opened, folder):
    seen: list[set[str]] = []
    run: list[set[str]] = []

    class Spy(JointSearch):
        def solve(self, block: Block) -> Any:
            seen.append(in_place(calibrator))
            run.append({unit.name for unit in block.units})
            return super().solve(block)

    calibrator = opened(folder)
    calibrator.collect(FINE_PERCENTILES)
    assert in_place(calibrator) == set()
    calibrator.repartition(["language"], ConditionalEntropy())
    calibrator.search(list(calibrator.structure.towers), Spy(), "first")
    assert seen == run
    assert in_place(calibrator) == set()
    assert all(p.is_meta for n, p in calibrator.model.named_parameters() if not quantizer_tensor(n))
    linears = [m for m in calibrator.model.modules() if isinstance(m, QuantLinear)]
    assert linears
    assert all(linear._weight_cache is None for linear in linears)


def quantizer_tensor(name: str) -> bool:
    return "_quantizer." in name


def test_reservoirs_are_let_go(calibrate, folder):
    statistics = calibrate(folder, True).statistics
    assert statistics.observers == {}
    assert len(statistics.tables) == len(statistics.structure.sites)
    with pytest.raises(InputError, match=r"percentile 0\.9 was not kept.*allowed: 1\.0, 0\.9995"):
        statistics.ranges(statistics.structure.sites[0], [0.9])


def test_a_layer_without_its_weights_cannot_be_run(calibrate, folder, toy_batches):
    """On a CPU, a Linear layer without a weight returns whatever lies in memory."""
    passes = calibrate(folder, True, MinMax()).passes
    first = passes.structure.towers["language"].units[0]
    (call,) = passes.calls(passes.structure.towers["language"], toy_batches[:1], [set()])[0]
    with pytest.raises(
        RuntimeError, match=r"layers\.0 was run while its weights were not in place"
    ):
        run_unit(first, call.hidden, call)
    with passes.held([first]):
        assert run_unit(first, call.hidden, call).isfinite().all()


def test_an_infinite_activation_names_its_layer(opened, folder):
    calibrator = opened(folder)
    weights = calibrator.passes.weights
    read = weights.read

    def spoilt(name: str) -> Tensor:
        value = read(name)
        return value * float("inf") if "language_model.layers.1.mlp.up" in name else value

    weights.read = spoilt
    with pytest.raises(
        InputError, match=r"activations at model\.language_model\.layers\.1\.down_in"
    ):
        calibrator.collect([1.0])


def test_the_plan_says_what_is_held_where(opened, folder, toy_batches):
    calibrator = opened(folder)
    plan = StreamPlan(calibrator, calibrator.passes, 3, True, JointSearch())
    text = "\n".join(plan.lines())
    total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    stated = float(text.split("streaming ")[1].split(" MiB")[0])
    assert stated == pytest.approx(total / 2**20, abs=0.06)  # less the headers
    # by hand: a decoder layer has 4 * 24 * 24 + 3 * 24 * 48 weights and two norms of 24, float32
    layer = 4 * (4 * 576 + 3 * 1152)
    assert f"a block of up to 3 layers, {3 * (layer + 4 * 48) / 2**20:.1f} MiB" in text
    assert f"for the search: {3 * layer / 2**20:.1f} MiB of quantized weights" in text
    tokens = sum(batch["input_ids"].numel() for batch in toy_batches)
    assert f"in RAM: hidden states of {tokens} tokens" in text
    sentence = plan.estimate(reading=1.0, running=2.0)
    # 4 layers, two sweeps of 3 s each
    assert "of 4 decoder layers: 1.0 s to read, 2.0 s for all" in sentence
    assert "about 24 s for statistics and dependency" in sentence


def test_without_a_search_the_plan_names_none(opened, folder):
    calibrator = opened(folder)
    plan = StreamPlan(calibrator, calibrator.passes, 1, False, None)
    assert not any(line.startswith("on cpu, for the search") for line in plan.lines())
    assert "8 s for statistics and dependency and, with blocks of 1, 0 s for" in plan.estimate(1, 1)


def test_waiting_hidden_states_are_as_large_as_the_plan_says(opened, folder, toy_batches):
    calibrator = opened(folder)
    plan = StreamPlan(calibrator, calibrator.passes, 1, False, None)
    planned = next(a.nbytes for a in plan.allocations if a.what == "hidden states")
    alive: dict[int, int] = {}
    peaks = [0]
    store = calibrator.passes._store

    def stored(hidden: Tensor) -> Tensor:
        kept = store(hidden).clone()
        alive[id(kept)] = kept.nbytes
        weakref.finalize(kept, alive.pop, id(kept))
        peaks.append(sum(alive.values()))
        return kept

    calibrator.passes._store = stored
    calibrator.collect([1.0])
    # lengths are means over the pairs, rounded up, and the next layer's first batch is there too
    slack = 12 * 4 * (24 + 16 + 24) + max(b["input_ids"].numel() for b in toy_batches) * 24 * 4
    assert 0.8 * planned < max(peaks) <= planned + slack
