"""``qvlm soak``: what it injects, what it takes for survival, and a small one."""

import builtins
import errno
import io
import json
import os
from pathlib import Path

import pytest

from qvlm_lightning.commands._soak_faults import Fault, FaultyDisk
from qvlm_lightning.commands._soak_run import SoakRun
from qvlm_lightning.commands.soak import Soak, main, result
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_whole

PATCHED = ("replace", "rename", "link", "fsync", "fdatasync", "write", "pwrite", "ftruncate")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Let the disk below ``run`` fail."""
    (tmp_path / "run").mkdir()

    def install(fault: Fault) -> FaultyDisk:
        for name in PATCHED:
            monkeypatch.setattr(os, name, getattr(os, name))  # put back behind the test
        monkeypatch.setattr(io, "open", io.open)
        monkeypatch.setattr(builtins, "open", open)
        found = FaultyDisk([tmp_path / "run"], fault, tmp_path / "trace")
        found.install()
        return found

    return install


def calls(tmp_path: Path) -> list[tuple[str, bool]]:
    lines = map(json.loads, (tmp_path / "trace").read_text().splitlines())
    return [(line["call"], line["failed"]) for line in lines]


def test_every_operation_is_counted(tmp_path, disk):
    disk(Fault())
    write_whole(tmp_path / "run" / "a", "text")
    write_whole(tmp_path / "elsewhere", "text")
    whole = [("write", False), ("fsync", False), ("replace", False), ("fsync", False)]
    assert calls(tmp_path) == whole


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "code"),
    [("ENOSPC", "full"), ("EIO", "EIO"), ("EROFS", "read-only"), ("SHORT", "full")],
)
def test_the_one_that_is_asked_for_fails(tmp_path, disk, at, kind, code):
    write_whole(tmp_path / "run" / "a", "old")
    disk(Fault(at, kind))
    with pytest.raises(InputError, match=code):
        write_whole(tmp_path / "run" / "a", "new")
    assert [failed for _, failed in calls(tmp_path)].index(True) == at - 1
    assert (tmp_path / "run" / "a").read_text() == "old"
    write_whole(tmp_path / "run" / "a", "new")
    assert (tmp_path / "run" / "a").read_text() == "new"


def test_a_disk_stays_full(tmp_path, disk):
    disk(Fault(2, "ENOSPC", lasting=True))
    for _ in range(2):
        with pytest.raises(InputError):
            write_whole(tmp_path / "run" / "a", "new")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_short_write_stores_half(tmp_path, disk):
    disk(Fault(1, "SHORT"))
    with (tmp_path / "run" / "a").open("wb", buffering=0) as file:
        assert file.write(b"12345678") == 4
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            file.write(b"5678")
    assert (tmp_path / "run" / "a").read_bytes() == b"1234"


def test_text_and_reading_are_as_before(tmp_path, disk):
    disk(Fault())
    path = tmp_path / "run" / "a"
    with path.open("w") as file:
        file.write("ü\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("x")
    with path.open("r+b") as file:
        assert file.read() == "ü\nx".encode()
    assert path.read_text() == "ü\nx"


@pytest.mark.parametrize("options", [["--kills=-1"], ["--faults=-1"], ["--kills=many"]])
def test_impossible_options(options, tmp_path):
    with pytest.raises(InputError):
        main([*options, f"--output={tmp_path / 'soak'}"])


def test_a_folder_that_exists(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        main([f"--output={tmp_path}"])


def test_another_artifact_is_not_survival(tmp_path):
    report = {"search": {"seconds": 1.0, "passes": [{"seconds": 2.0, "epoch": 0}]}}
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "weights").write_bytes(b"one")
    (tmp_path / "report.json").write_text(json.dumps(report))
    first = result(tmp_path)
    report["search"]["seconds"] = 3.0
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert result(tmp_path) == first  # wall time
    (tmp_path / "artifact" / "weights").write_bytes(b"two")
    assert result(tmp_path) != first


def test_another_artifact_does_not_survive(tmp_path, monkeypatch):
    """A trial with runs that are done at once, all of them alike but the last."""
    made: list[str] = []

    class Run(SoakRun):
        running = False

        def start(self, fault: Fault | None = None) -> None:
            made.append(self.folder.name)
            self.tmpdir.mkdir(parents=True, exist_ok=True)
            (self.folder / "artifact").mkdir(parents=True, exist_ok=True)
            weights = b"other" if self.folder.name == "fault001" else b"same"
            (self.folder / "artifact" / "weights").write_bytes(weights)
            report = {"search": {"seconds": 1.0, "passes": []}}
            (self.folder / "report.json").write_text(json.dumps(report))
            self.log.write_text("cpu seconds: 1.5\n")

        def wait(self, seconds: float = 1.0) -> int:
            return 0

        def end(self) -> bool:
            return False

    monkeypatch.setattr("qvlm_lightning.commands.soak.SoakRun", Run)
    trials = Soak(tmp_path / "soak", tmp_path / "other", 0)
    monkeypatch.setattr(Run, "operations", lambda run: [{"call": "x", "path": "", "failed": True}])
    trials.undisturbed()
    for number in range(3):
        trials.trial("fault", number)
    assert made[-6:] == [f"fault00{n}" for n in (0, 0, 1, 1, 2, 2)]  # disturbed, then resumed
    assert (trials.survived["fault"], trials.total["fault"]) == (2, 3)
    assert "fault001" in trials.failures[0]
    assert "other than undisturbed: artifact/weights" in trials.failures[0]
    assert trials.summary()[-1] == "together: 2 / 3 survived"


def test_half_of_the_runs_have_another_folder_for_temporary_files(tmp_path):
    soak = Soak(tmp_path / "soak", tmp_path / "other", 0)
    folders = [soak._tmpdir("kill", number).parent for number in range(4)]
    assert folders == [tmp_path / "soak" / "tmp", soak.tmpdir] * 2
    assert soak.tmpdir.parent == tmp_path / "other"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_soak(tmp_path, capfd):
    options = ["--kills=2", "--faults=2", f"--tmpdir={tmp_path / 'other'}"]
    assert main([*options, f"--output={tmp_path / 'soak'}"]) == 0
    said = capfd.readouterr().out
    assert "kills: 2 / 2 survived" in said
    assert "together: 4 / 4 survived" in said
    assert "CPU-seconds" in said
