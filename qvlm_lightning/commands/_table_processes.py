"""Rows of a table made by several processes at once, each with its share of the cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
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
from qvlm_lightning.exits import input_error
from qvlm_lightning.files import storage_faults

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
        InputError: a row's own, as soon as it is known, or a process was ended from outside.
    """
    left = sum(not calibration.finished for calibration in planned)
    count = max(1, min(plan.processes, left))
    threads = max(1, torch.get_num_threads() // count)
    logs = Path(plan.root) / LOGS
    with storage_faults(logs):
        logs.mkdir(parents=True, exist_ok=True)
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _begin, (plan, count, threads))
    try:
        with pool:
            try:
                yield _in_order([pool.submit(_make, each) for each in planned])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.kill()  # which would go on with the row after this one otherwise
                raise
    except BrokenProcessPool as fault:
        raise InputError(
            "a process that made rows was ended from outside, perhaps for lack of memory; give "
            f"the same command again to go on, or fewer than {plan.processes} processes (what "
            f"they said is in {str(logs)!r})"
        ) from fault


def _in_order(futures: "Sequence[Future[Answered]]") -> Iterator[Answered]:
    """Yield results in their order; raise a fault of any of them while others are waited for."""
    left = set(futures)
    for future in futures:
        while future in left:
            done, left = wait_for(left, return_when=FIRST_COMPLETED)
            for each in done:
                each.result()
        yield future.result()


class _Worker:
    """What a process of the pool keeps.

    Args:
        plan: of the table.
        processes: how many there are.
    """

    def __init__(self, plan: TablePlan, processes: int) -> None:
        self.processes = processes
        self.log = Path(plan.root) / LOGS / f"{os.getpid()}.log"
        self.maker = RowMaker(plan)

    def make(self, calibration: Calibration) -> Answered:
        """Calibrate and evaluate a row."""
        # before memory is counted, so that all rows are counted alike
        self.maker.program(calibration.stress)
        calibrated = self.maker.calibrate(calibration, self.processes)
        answered = self.maker.answer(calibration.stress, calibration)
        return replace(answered, fresh=answered.fresh or calibrated)

    def said(self) -> str:
        """Return the last fault in the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
        return found[-1] if found else f"what it said is in {str(self.log)!r}"


def _begin(plan: TablePlan, processes: int, threads: int) -> None:
    """Prepare a process: its cores, its log, its end together with the one that started it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the first process answers it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with quiet():
        _worker = _Worker(plan, processes)
    with _worker.log.open("a") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)


def _make(calibration: Calibration) -> Answered:
    assert _worker is not None
    try:
        with quiet():
            return _worker.make(calibration)
    except ValueError as fault:  # a cause does not reach another process
        raise InputError(str(input_error(fault))) from None
    except SystemExit as fault:  # which would end the process and say nothing here
        end = f"{calibration.label} ended with code {fault.code}"
        raise InputError(f"{end}: {_worker.said()}") from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # nothing is lost: no file is ever changed in place


_worker: _Worker | None = None
