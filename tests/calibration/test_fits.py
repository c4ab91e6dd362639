"""Comparison of a workload with a machine, and what is said of what does not fit."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate import fits
from qvlm_lightning.estimate.fits import MemoryPool, _lack, memory_pools, shortage, workload_of
from qvlm_lightning.estimate.memory import allocations
from qvlm_lightning.estimate.workload import (
    DEVICE,
    RAM,
    Workload,
    alternatives,
    first_that_fits,
    levers,
    peak,
)
from qvlm_lightning.methods import JointSearch, MinMax
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

WORKLOAD = Workload(
    pairs=8,
    search_pairs=4,
    batch_size=2,
    processes=1,
    tokens=64,
    patches=17,
    depth=1,
    method=JointSearch(),
    optimises=False,
    streaming=False,
)


def test_the_first_that_fits_gives_the_same_result() -> None:
    def measure(workload: Workload) -> Any:
        return [Sized(10 * workload.batch_size // workload.micro_batches)]

    def fitting(asked: Workload, *limits: int) -> list[tuple[int, int] | None]:
        found = [first_that_fits(measure, asked, n) for n in limits]
        return [w and (w.batch_size, w.micro_batches) for w in found]

    asked = replace(WORKLOAD, batch_size=8)
    assert fitting(asked, 80, 79, 39, 10, 9) == [(8, 1), (4, 1), (2, 1), (1, 1), None]
    # of an optimiser's step only the parts can be smaller
    asked = replace(asked, optimises=True)
    assert fitting(asked, 80, 79, 39, 10, 9) == [(8, 1), (8, 2), (8, 4), (8, 8), None]
    shared = [w.micro_batches for w in alternatives(replace(asked, processes=2, micro_batches=2))]
    assert shared == [2, 4]
    assert [w.micro_batches for w in alternatives(replace(asked, processes=8))] == [1]


def test_levers_by_what_is_pulled_already() -> None:
    assert levers(WORKLOAD) == "--model.streaming=true"
    assert levers(replace(WORKLOAD, streaming=True)) == "fewer search_pairs"
    without = "a method without optimisation (configs/methods/cdm.yaml)"
    tuned = replace(WORKLOAD, optimises=True)
    assert (
        levers(tuned)
        == f"--model.streaming=true, or --model.activation_checkpointing=true, or {without}"
    )
    assert (
        levers(replace(tuned, activation_checkpointing=True))
        == f"--model.streaming=true, or {without}"
    )
    assert levers(replace(tuned, streaming=True)) == without


class Sized:
    """Something held."""

    step, where = "search", DEVICE

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_a_method_without_candidates_stacks_nothing() -> None:
    assert replace(WORKLOAD, method=MinMax()).candidates == 1
    assert replace(WORKLOAD, method=JointSearch([1.0, 0.99])).candidates == 3
    assert WORKLOAD.candidates == 9  # the default grid


def test_a_shortage_is_said(build) -> None:
    model = build()
    structure = quantize_model(model, Llava("toy"), Scheme.parse("w4a4"))
    measure = partial(allocations, model, structure)

    def said(workload: Workload, nbytes: int) -> str:
        return str(shortage(measure, workload, MemoryPool("cuda:0", (DEVICE,), nbytes, 1)))

    workload = replace(WORKLOAD, batch_size=8, pairs=8)
    needed = {n: peak(measure(replace(workload, batch_size=n)), DEVICE) for n in (8, 4)}
    assert said(workload, needed[8]) == "None"
    assert "of cuda:0, which has" in said(workload, needed[4])
    assert "--data.batch_size=4, with the same result" in said(workload, needed[4])
    tuned = replace(workload, optimises=True, method=None)
    halves = peak(measure(replace(tuned, micro_batches=2)), DEVICE)
    assert said(tuned, halves).startswith("optimisation needs about")
    assert "--model.micro_batches=2, with the same result" in said(tuned, halves)
    both = "--model.streaming=true, or --model.activation_checkpointing=true, or a method without"
    assert both in said(tuned, 1000)
    # of the RAM, every process on the machine takes its own
    ram = MemoryPool("RAM", (RAM,), 8 * peak(measure(workload), RAM), 8)
    assert shortage(measure, workload, ram) is None
    assert "of RAM" in str(shortage(measure, workload, replace(ram, nbytes=ram.nbytes - 1)))
    assert _lack([], ram) is None


def test_on_a_cpu_both_kinds_of_memory_are_one(monkeypatch, tmp_path) -> None:
    (ram,) = memory_pools(torch.device("cpu"), 2)
    assert set(ram.places) == {DEVICE, RAM}
    assert ram.processes == 2
    assert ram.nbytes > 2**30
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(fits, "CONTAINER", tmp_path / "memory.max")
    assert memory_pools(torch.device("cpu"), 1)[0].nbytes == 1_000_000


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"micro_batches": 0}, "micro_batches 0 is not allowed; at least 1"),
        ({"search_pairs": 9}, "search_pairs 9 is not allowed; 1 to 8"),
        ({"batch_size": 4, "processes": 8}, "needs batches of at least 8 pairs; .* 4 has 4"),
        (
            {"batch_size": 5, "micro_batches": 4},
            "at least 4 pairs; the smallest of 8 .*has 3",
        ),
    ],
)
def test_sizes_that_cannot_be(wrong, words) -> None:
    with pytest.raises(InputError, match=words):
        replace(WORKLOAD, **wrong).check()
    replace(WORKLOAD, pairs=20, batch_size=8, micro_batches=4).check()


def test_the_smallest_batch_limits_the_parts() -> None:
    asked = replace(WORKLOAD, pairs=20, batch_size=8, optimises=True)
    assert [w.micro_batches for w in alternatives(asked)] == [1, 2, 4]


def fitted(fit: Any, pool: MemoryPool, monkeypatch: Any, *args: Any) -> None:
    monkeypatch.setattr(fits, "memory_pools", lambda device, processes: [pool])
    fit(*args, epochs=1)


def test_a_run_on_a_small_device_ends_before_it_starts(
    family_class, toy_batches, tmp_path, fit, monkeypatch
) -> None:
    collected: list[Any] = []
    monkeypatch.setattr(Calibrator, "collect", lambda *args: collected.append(args))
    pool = MemoryPool("cuda:0", (DEVICE,), 10_000, 1)
    with pytest.raises(InputError, match=r"GiB of cuda:0.*a method without optimisation"):
        fitted(fit, pool, monkeypatch, family_class(), toy_batches, tmp_path)
    assert collected == []


def test_little_ram_is_said_and_tried(
    family_class, toy_batches, tmp_path, fit, monkeypatch, capsys
) -> None:
    pool = MemoryPool("this machine's RAM", (DEVICE, RAM), 10_000, 1)
    fitted(fit, pool, monkeypatch, family_class(), toy_batches, tmp_path)
    assert "may not fit: " in capsys.readouterr().out
    assert list(tmp_path.iterdir())


def test_lengths_are_means_over_the_pairs(family_class, toy_batches, make, tmp_path, fit) -> None:
    long = make(12, size=1, text=30, blind=())
    module = fit(family_class(), [*toy_batches, long], tmp_path, epochs=1)
    workload = workload_of(module.calibrator, None, 1)
    tokens = sum(b["attention_mask"].numel() for b in [*toy_batches, long])
    images = sum(int(b["has_image"].sum()) for b in [*toy_batches, long])
    assert (workload.pairs, workload.batch_size) == (13, 4)
    assert workload.tokens == math.ceil(tokens / 13)
    assert workload.patches == math.ceil(images * 5 / 13)  # four patches and the class token
