"""Tables whose rows are made by several processes at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qvlm_lightning.commands import _table_processes as processes
from qvlm_lightning.commands import table
from qvlm_lightning.commands._table_calibrations import planned_calibrations
from qvlm_lightning.commands._table_plan import TablePlan, parse_plan
from qvlm_lightning.errors import InputError
from tests.commands.test_table import options

COSTS = ("seconds", "calibration_seconds", "calibration_cpu_seconds", "peak_bytes")


def plan_in(root: Path, **changes) -> TablePlan:
    return parse_plan(options(root, variants=["rtn w4a4", "rtn w8a8"], processes=2, **changes))


def fails_or_waits(calibration) -> None:
    if calibration.variant.scheme == "w4a4":
        raise InputError("the first row is refused")
    time.sleep(200)


def dies(calibration) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def says_who_it_is(calibration) -> int:
    print(os.getpid(), flush=True)  # into the log
    time.sleep(600)
    return 0


def figures(root: Path) -> list[dict]:
    rows = json.loads((root / "results.json").read_text())["rows"]
    return [row | {"search_seconds": None} for row in rows if row["metric"] not in COSTS]


def test_several_processes_make_the_same_table(tmp_path, capsys):
    given = {"variants": ["rtn w4a4", "rtn w8a8"], "headline": "rtn w8a8", "pairs": 2}
    table.main(options(tmp_path / "one", **given))
    table.main(options(tmp_path / "two", processes=2, **given))
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    assert (tmp_path / "two" / "artifact").is_dir(), "of the headline, in the root itself"
    logs = list((tmp_path / "two" / processes.LOGS).iterdir())
    assert len(logs) == 2, "each row by a process"
    capsys.readouterr()
    table.main(options(tmp_path / "two", processes=2, **given))
    assert capsys.readouterr().err.count("already there") == 3


@pytest.fixture
def planned(tmp_path):
    plan = plan_in(tmp_path)
    return plan, planned_calibrations(plan)


def test_a_row_that_fails_ends_the_others(planned, monkeypatch):
    monkeypatch.setattr(processes, "_make", fails_or_waits)
    with (
        pytest.raises(InputError, match="the first row is refused"),
        processes.made_at_once(*planned) as made,
    ):
        list(made)
    for process in multiprocessing.active_children():
        process.join(20)
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_a_sentence(planned, monkeypatch):
    monkeypatch.setattr(processes, "_make", dies)
    with (
        pytest.raises(InputError, match=r"ended from outside.*fewer than 2 processes"),
        processes.made_at_once(*planned) as made,
    ):
        list(made)


def test_too_few_processes_are_refused(tmp_path):
    with pytest.raises(InputError, match="processes 0 is not allowed"):
        parse_plan(options(tmp_path, processes=0))


PARENT = """
import sys
from pathlib import Path
from qvlm_lightning.commands import _table_processes as processes
from qvlm_lightning.commands._table_calibrations import planned_calibrations
from tests.commands.test_table_processes import plan_in, says_who_it_is

if __name__ == "__main__":
    plan = plan_in(Path(sys.argv[1]))
    processes._make = says_who_it_is
    with processes.made_at_once(plan, planned_calibrations(plan)) as made:
        list(made)
"""


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    root = tmp_path / "run"
    parent = subprocess.Popen([sys.executable, str(program), str(root)], env=environment)
    logs: list[Path] = []
    try:
        for _ in range(1200):
            logs = [log for log in root.glob(f"{processes.LOGS}/*.log") if log.read_text()]
            if len(logs) == 2:
                break
            time.sleep(0.1)
        assert len(logs) == 2
    finally:
        parent.kill()
        parent.wait()
    pids = [int(log.stem) for log in logs]
    for _ in range(100):
        if all(map(gone, pids)):
            break
        time.sleep(0.1)
    assert all(map(gone, pids))
