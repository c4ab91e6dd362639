"""Rows of a table made by several processes at once, each with its share of the cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import torch

from qvlm_lightning.commands._table_calibrations import Calibration
from qvlm_lightning.commands._table_plan import TablePlan
from qvlm_lightning.commands._table_row import Answered, RowMaker
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.cli import quiet

LOGS = "processes"
"""Folder in the root of what the processes say."""


@contextmanager
def made_at_once(plan: TablePlan, planned: Sequence[Calibration]) -> Iterator[Iterator[Answered]]:
    """Yield what the rows of a plan left, in their order, while processes make them.

    Whatever ends the block early ends the processes too. Files appear as a whole, so the same
    command goes on from what is finished.

    Args:
        plan: of the table, with the number of processes.
        planned: calibrations of its rows; full precision has answered before.

    Raises:
        InputError: a row's own, or a process was ended from outside.
    """
    threads = max(1, torch.get_num_threads() // plan.processes)
    pool = ProcessPoolExecutor(
        min(plan.processes, len(planned)),
        multiprocessing.get_context("spawn"),
        _begin,
        (plan, threads),
    )
    try:
        with pool:
            try:
                yield map(_result, [pool.submit(_make, each) for each in planned])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.kill()  # which would go on with the row after this one otherwise
                raise
    except BrokenProcessPool as fault:
        raise InputError(
            "a process that made rows was ended from outside, perhaps for lack of memory; give "
            f"the same command again to go on, or fewer than {plan.processes} processes (what "
            f"they said is in {str(Path(plan.root) / LOGS)!r})"
        ) from fault


def _result(future: "Future[Answered]") -> Answered:
    return future.result()


def _begin(plan: TablePlan, threads: int) -> None:
    """Prepare a process: its cores, its log, its end together with the one that started it."""
    global _maker  # a process of the pool has no other place for what it keeps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the first process answers it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = Path(plan.root) / LOGS / f"{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    torch.set_num_threads(threads)
    with quiet():
        _maker = RowMaker(plan)


def _make(calibration: Calibration) -> Answered:
    assert _maker is not None
    with quiet():
        try:
            calibrated = _maker.calibrate(calibration)
            answered = _maker.answer(calibration.stress, calibration)
        except SystemExit as fault:  # which would end the process and say nothing here
            raise InputError(
                f"{calibration.label} ended with code {fault.code}; what it said is in "
                f"{str(Path(_maker.plan.root) / LOGS)!r}"
            ) from None
    return replace(answered, fresh=answered.fresh or calibrated)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # nothing is lost: no file is ever changed in place


_maker: RowMaker | None = None
