"""What fits on a machine, and what is said of what does not."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from qvlm_lightning.calibration import fits
from qvlm_lightning.calibration.fits import Room, rooms, shortage
from qvlm_lightning.calibration.memory import memory
from qvlm_lightning.calibration.work import (
    DEVICE,
    RAM,
    Work,
    alternatives,
    first_that_fits,
    levers,
    peak,
)
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import JointSearch, MinMax
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

WORK = Work(
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
    def measure(work: Work) -> Any:
        return [Sized(10 * work.batch_size // work.micro_batches)]

    def fitting(asked: Work, *limits: int) -> list[tuple[int, int] | None]:
        found = [first_that_fits(measure, asked, n) for n in limits]
        return [w and (w.batch_size, w.micro_batches) for w in found]

    asked = replace(WORK, batch_size=8)
    assert fitting(asked, 80, 79, 39, 10, 9) == [(8, 1), (4, 1), (2, 1), (1, 1), None]
    # of an optimiser's step only the parts can be smaller
    asked = replace(asked, optimises=True)
    assert fitting(asked, 80, 79, 39, 10, 9) == [(8, 1), (8, 2), (8, 4), (8, 8), None]
    shared = [w.micro_batches for w in alternatives(replace(asked, processes=2, micro_batches=2))]
    assert shared == [2, 4]
    assert [w.micro_batches for w in alternatives(replace(asked, processes=8))] == [1]


def test_levers_by_what_is_pulled_already() -> None:
    assert levers(WORK) == "--model.streaming=true"
    assert levers(replace(WORK, streaming=True)) == "fewer search_pairs"
    without = "a method without optimisation (configs/methods/cdm.yaml)"
    tuned = replace(WORK, optimises=True)
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
    assert replace(WORK, method=MinMax()).candidates == 1
    assert replace(WORK, method=JointSearch(low=0.99, high=1.0, step=0.01)).candidates == 3
    assert WORK.candidates == 5


def test_what_cannot_have_room_is_said(build) -> None:
    model = build()
    structure = quantize_model(model, Llava("toy"), Scheme.parse("w4a4"))
    measure = partial(memory, model, structure)
    device, ram = Room("cuda:0", (DEVICE,), 10**9, 1), Room("RAM", (RAM,), 10**9, 8)
    work = replace(WORK, batch_size=8, pairs=8)
    assert shortage(measure, work, [device, ram]) is None
    needed = {n: peak(measure(replace(work, batch_size=n)), DEVICE) for n in (8, 4, 2)}
    tight = replace_bytes(device, needed[4])
    said = shortage(measure, work, [tight, ram])
    assert said is not None
    assert "of cuda:0, which has" in said
    assert "--data.batch_size=4, with the same result" in said
    tuned = replace(work, optimises=True, method=None)
    small_parts = peak(measure(replace(tuned, micro_batches=2)), DEVICE)
    said = shortage(measure, tuned, [replace_bytes(device, small_parts)])
    assert said is not None
    assert said.startswith("optimisation needs about")
    assert "--model.micro_batches=2, with the same result" in said
    said = shortage(measure, tuned, [replace_bytes(device, 1000)])
    assert said is not None
    assert (
        "--model.streaming=true, or --model.activation_checkpointing=true, or a method without"
        in said
    )
    # of the RAM, every process on the machine takes its own
    crowded = replace_bytes(ram, 7 * peak(measure(work), RAM))
    assert "of RAM, which has" in str(shortage(measure, work, [device, crowded]))


def replace_bytes(room: Room, nbytes: int) -> Room:
    return replace(room, nbytes=nbytes)


def test_on_a_cpu_both_kinds_of_memory_are_one() -> None:
    (ram,) = rooms(torch.device("cpu"), 2)
    assert set(ram.places) == {DEVICE, RAM}
    assert ram.processes == 2
    assert ram.nbytes > 2**30


def test_a_run_ends_before_it_starts(family_class, toy_batches, tmp_path, fit, monkeypatch) -> None:
    collected: list[Any] = []
    monkeypatch.setattr(
        "qvlm_lightning.calibration.calibrator.Calibrator.collect",
        lambda *args: collected.append(args),
    )
    small = [Room("this machine's RAM", (DEVICE, RAM), 10_000, 1)]
    monkeypatch.setattr(fits, "rooms", lambda device, processes: small)
    with pytest.raises(InputError, match=r"GiB of this machine's RAM.*a method without optimisat"):
        fit(family_class(), toy_batches, tmp_path)
    assert collected == []
