"""A signal in any phase of a run: its exit code, its sentence, and a resumed run as undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qvlm_lightning.callbacks.artifact_export as export
import qvlm_lightning.evaluation.module as answering
from qvlm_lightning.calibration import VisualEncoderOptimization
from qvlm_lightning.calibration.statistics import Statistics
from qvlm_lightning.callbacks import ResumePoint
from qvlm_lightning.cli import train_main
from qvlm_lightning.commands._soak_run import CONFIG
from qvlm_lightning.commands.soak import result
from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.methods import SequentialSearch
from qvlm_lightning.run_lock import LOCK

ROOT = Path(__file__).parents[1]
EVAL = ROOT / "configs" / "eval" / "tiny.yaml"
PHASES = {
    "statistics": (Statistics, "collect", 1),
    "search": (SequentialSearch, "solve", 3),
    "optimisation": (VisualEncoderOptimization, "training_step", 2),
    "checkpoint": (ResumePoint, "_save", 2),
    "export": (export, "save_artifact", 1),
}
ALL = [(phase, s) for phase in PHASES for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
QUICK = [("search", signal.SIGTERM)]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "soak.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("undisturbed")
    fit(config, root)
    return result(root)


def fit(config: Path, root: Path, *options: str) -> None:
    given = [f"--config={config}", f"--trainer.default_root_dir={root}", "--trainer.logger=false"]
    train_main(["fit", *given, *options])


@pytest.fixture
def signalled(monkeypatch):
    """Let a function send this process a signal whenever its n-th call begins."""

    def arrange(owner: object, name: str, at: int, signum: int) -> None:
        real, calls = getattr(owner, name), []

        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == at:
                os.kill(os.getpid(), signum)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    return arrange


@pytest.mark.parametrize(
    ("phase", "signum"),
    [p if p in QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in ALL],
)
def test_a_calibration_stops_and_goes_on(
    config, undisturbed, tmp_path, signalled, capfd, phase, signum
):
    signalled(*PHASES[phase], signum)
    with pytest.raises(SystemExit) as end:
        fit(config, tmp_path)
    assert end.value.code == 128 + signum
    said = capfd.readouterr().err
    assert said.count(f"stopped by {signal.Signals(signum).name}; go on with: ") == 1
    assert "Traceback" not in said
    assert not (tmp_path / LOCK).exists()
    assert [p.name for p in tmp_path.rglob("*.part")] == []
    fit(config, tmp_path, "--ckpt_path=last")
    assert result(tmp_path) == undisturbed


def test_an_evaluation_stops_and_goes_on(tmp_path, signalled, capfd):
    given = [
        f"--config={EVAL}",
        "--data.init_args.evaluation_count=12",
        "--data.init_args.evaluation_batch_size=4",
        "--controls=false",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    signalled(answering, "generate", 2, signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        eval_main(given)
    assert end.value.code == 143
    assert "stopped by SIGTERM; go on with: " in capfd.readouterr().err
    assert not (tmp_path / LOCK).exists()
    (journal,) = (tmp_path / "predictions").glob("*.partial")
    answered = sum(len(p.read_text().splitlines()) for p in journal.glob("*.jsonl"))
    assert answered == 4
    eval_main(given)
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize("program", ["fit", "eval"])
def test_a_folder_in_use_is_refused(config, tmp_path, capsys, program):
    (tmp_path / LOCK).write_text(json.dumps({"host": "node7", "pid": 1}))
    with pytest.raises(SystemExit) as end:
        fit(config, tmp_path) if program == "fit" else eval_main(
            [f"--config={EVAL}", f"--trainer.default_root_dir={tmp_path}"]
        )
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"delete {str(tmp_path / LOCK)!r}" in said
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_last_in_a_folder_without_a_run_says_so(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        fit(config, tmp_path / "run", "--ckpt_path=last")
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: --ckpt_path last is given, but run folder")
    assert "holds no checkpoint" in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_a_scheduler_starts_again_goes_on(config, tmp_path, signalled, monkeypatch):
    codes = []
    for count in range(2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        signalled(*PHASES["statistics"], signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            fit(config, tmp_path)
        codes.append(end.value.code)
    assert codes == [143, 143]  # and not 2: the folder holds a run


def test_a_notebook_does_not_care_what_a_scheduler_says(monkeypatch):
    from qvlm_lightning import quantize
    from qvlm_lightning.data import TinyVQA
    from qvlm_lightning.models import Tiny

    variables = {"NTASKS": "4", "PROCID": "2", "LOCALID": "2", "NODEID": "0", "JOB_ID": "9"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    family = Tiny()
    samples = TinyVQA(family, calibration_pairs=2, search_pairs=2).calibration_samples()
    quantize(family.load_model(), family.load_processor(), samples, "w8a8", "rtn", search_pairs=2)


RANKS = ["--trainer.strategy=ddp", "--trainer.devices=2"]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["rank 0", "rank 1"])
def test_a_rank_that_is_killed_takes_the_other_down(config, tmp_path, which):
    command = [
        sys.executable, "train.py", "fit", f"--config={config}", "--model.init_args.epochs=50",
        f"--trainer.default_root_dir={tmp_path}", *RANKS,
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None and not (tmp_path / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (other,) = map(int, children)
        os.kill(process.pid if which == "rank 0" else other, signal.SIGKILL)
        began = time.monotonic()
        code = process.wait(30)
        while Path(f"/proc/{other}").exists() and time.monotonic() < began + 30:
            time.sleep(0.2)
    assert not Path(f"/proc/{other}").exists() or _zombie(other)
    assert code == (-signal.SIGKILL if which == "rank 0" else 128 + signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    assert said.count(f"error: {which} of this run died") == 1
    assert "Traceback" not in said
    assert "--ckpt_path last" in said


def _zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.slow
def test_a_signal_ends_all_ranks(config, tmp_path):
    command = [
        sys.executable, "train.py", "fit", f"--config={config}", "--model.init_args.epochs=50",
        f"--trainer.default_root_dir={tmp_path}", *RANKS,
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None and not (tmp_path / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 143
    said = (tmp_path / "log").read_text()
    assert said.count("stopped by SIGTERM") == 1
    assert "Traceback" not in said
