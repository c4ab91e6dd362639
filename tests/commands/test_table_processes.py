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
import torch
from PIL import Image

from qvlm_lightning.commands import _table_processes as processes
from qvlm_lightning.commands import table
from qvlm_lightning.commands._table_calibrations import planned_calibrations
from qvlm_lightning.commands._table_plan import TablePlan, parse_plan
from qvlm_lightning.errors import InputError
from tests.commands.test_table import options

COSTS = ("seconds", "calibration_seconds", "calibration_cpu_seconds", "peak_bytes")


def plan_in(root: Path, **changes) -> TablePlan:
    return parse_plan(options(root, variants=["rtn w4a4", "rtn w8a8"], processes=2, **changes))


def first_fails(calibration) -> None:
    if calibration.variant.scheme == "w4a4":
        raise InputError("the first row is refused")
    time.sleep(200)


def second_fails(calibration) -> None:
    if calibration.variant.scheme == "w8a8":
        raise InputError("the second row is refused")
    time.sleep(200)


def dies(calibration) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def says_its_threads(calibration) -> int:
    return torch.get_num_threads()


def waits(calibration) -> None:
    print(os.getpid(), flush=True)  # into the log
    time.sleep(600)


def figures(root: Path) -> list[dict]:
    rows = json.loads((root / "results.json").read_text())["rows"]
    return [row | {"search_seconds": None} for row in rows if row["metric"] not in COSTS]


def test_several_processes_make_the_same_table(tmp_path, capsys):
    rows = ["rtn w4a4", "rtn w8a8", "rtn w6a6"]
    given = {"variants": rows, "headline": "rtn w8a8", "pairs": 2}
    table.main(options(tmp_path / "one", **given))
    table.main(options(tmp_path / "two", processes=2, **given))
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    assert (tmp_path / "two" / "artifact").is_dir(), "of the headline, in the root itself"
    logs = list((tmp_path / "two" / processes.LOGS).iterdir())
    assert len(logs) == 2, "each row by a process"
    capsys.readouterr()
    table.main(options(tmp_path / "two", processes=2, **given))
    assert capsys.readouterr().err.count("already there") == 5


@pytest.fixture
def planned(tmp_path):
    plan = plan_in(tmp_path)
    return plan, planned_calibrations(plan)


def made(planned, monkeypatch, instead) -> list:
    """What rows give where a process does something else instead of making them."""
    monkeypatch.setattr(processes, "_make", instead)
    with processes.made_at_once(*planned) as found:
        return list(found)


def test_a_row_that_fails_ends_the_others(planned, monkeypatch):
    with pytest.raises(InputError, match="the first row is refused"):
        made(planned, monkeypatch, first_fails)
    for process in multiprocessing.active_children():
        process.join(20)
    assert not multiprocessing.active_children()


def test_a_fault_is_told_before_the_rows_in_front_of_it(planned, monkeypatch):
    began = time.monotonic()
    with pytest.raises(InputError, match="the second row is refused"):
        made(planned, monkeypatch, second_fails)
    assert time.monotonic() - began < 150


def test_processes_of_others_live_on(planned, monkeypatch):
    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(200,))
    mine.start()
    try:
        with pytest.raises(InputError, match="the first row"):
            made(planned, monkeypatch, first_fails)
        mine.join(2)
        assert mine.is_alive()
    finally:
        mine.kill()
        mine.join()


def test_a_process_that_is_killed_is_a_sentence(planned, monkeypatch):
    with pytest.raises(InputError, match=r"ended from outside.*fewer than 2 processes"):
        made(planned, monkeypatch, dies)


def test_rows_share_the_cores(planned, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert made(planned, monkeypatch, says_its_threads) == [2, 2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("fault", "log", "sentence"),
    [
        (SystemExit(2), "error: bits is 1\nerror: bits is 0\n", "code 2: bits is 0"),
        (SystemExit(2), "killed\n", "code 2: what it said is in"),
        (InputError("bits is 1"), "", "^bits is 1$"),
    ],
)
def test_what_a_process_says_is_the_fault(planned, monkeypatch, tmp_path, fault, log, sentence):
    def make(self, calibration):
        if isinstance(fault, SystemExit):
            raise fault
        raise ValueError("of a library") from fault

    worker = processes._Worker(planned[0], 2)
    worker.log = tmp_path / "1.log"
    worker.log.write_text(log)
    monkeypatch.setattr(processes, "_worker", worker)
    monkeypatch.setattr(processes._Worker, "make", make)
    with pytest.raises(InputError, match=sentence):
        processes._make(planned[1][0])


def test_too_few_processes_are_refused(tmp_path):
    with pytest.raises(InputError, match="processes 0 is not allowed"):
        parse_plan(options(tmp_path, processes=0))


@pytest.mark.slow
def test_stress_variants_and_texts_too(tmp_path):
    (tmp_path / "photographs").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photographs" / "red.png")
    (tmp_path / "passage.txt").write_text("what color is the large circle ? it is red .")
    fidelity = {
        "photographs": [str(tmp_path / "photographs")],
        "prompts": ["what is this ?"],
        "passage": str(tmp_path / "passage.txt"),
        "count": 1,
        "max_new_tokens": 4,
    }
    given = {"outlier_scales": [1.0, 4.0], "fidelity": json.dumps(fidelity), "pairs": 2}
    given["variants"] = ["rtn w4a4", "rtn w8a8"]
    table.main(options(tmp_path / "one", **given))
    table.main(options(tmp_path / "two", processes=2, **given))
    assert figures(tmp_path / "two") == figures(tmp_path / "one")


PARENT = """
import sys
from pathlib import Path
from qvlm_lightning.commands import _table_processes as processes
from qvlm_lightning.commands._table_calibrations import planned_calibrations
from qvlm_lightning.exits import user_faults
from tests.commands.test_table_processes import plan_in, waits

if __name__ == "__main__":
    plan = plan_in(Path(sys.argv[1]))
    processes._make = waits
    with user_faults(), processes.made_at_once(plan, planned_calibrations(plan)) as made:
        list(made)
"""


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path, number):
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
        parent.send_signal(number)
        code = parent.wait(60)
    finally:
        parent.kill()
        parent.wait()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    pids = [int(log.stem) for log in logs]
    for _ in range(100):
        if all(map(gone, pids)):
            break
        time.sleep(0.1)
    assert all(map(gone, pids))
