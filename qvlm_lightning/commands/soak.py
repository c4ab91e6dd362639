"""Kill small calibrations and let their disk fail, resume them, and count those that survive."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.commands._soak_faults import KINDS, Fault
from qvlm_lightning.commands._soak_run import CONFIG, SoakRun
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json

_SECONDS = 10.0
"""Within which a signal is acted upon, and a little for a busy machine."""


def main(argv: Sequence[str]) -> int:
    """Run, disturb, resume and compare; print how many survived.

    A run survives if it stops as it should (SIGTERM: exit code 143 within 10 s; a fault of the
    disk: one sentence that names the folder and exit code 2, unless it did without), leaves no
    temporary file and no damaged checkpoint, and, resumed, ends with the artifact of the
    undisturbed run, byte for byte.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0 if all survived, else 1.

    Raises:
        InputError: impossible options, or the undisturbed run failed.
    """
    options = _parser().parse_args(list(argv))
    if min(options.kills, options.faults) < 0:
        raise InputError("kills and faults are 0 or more")
    if options.output.exists():
        raise InputError(f"{str(options.output)!r} exists already; give a new folder")
    from tqdm import tqdm

    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come

    tmpdir = (options.tmpdir or options.output / "tmp").resolve()
    soak = Soak(options.output.resolve(), tmpdir, options.seed)
    try:
        soak.undisturbed()
        print(soak.about(), flush=True)
        trials = [("kill", i) for i in range(options.kills)]
        trials += [("fault", i) for i in range(options.faults)]
        with tqdm(trials, desc="soak", unit="run") as bar:
            for kind, number in bar:
                bar.set_postfix(failed=len(soak.failures))
                soak.trial(kind, number)
    finally:
        shutil.rmtree(soak.tmpdir, ignore_errors=True)
        for line in soak.summary():  # of what there was, if it is stopped
            print(line)
    return 1 if soak.failures else 0


@dataclass
class Soak:
    """Trials and what became of them.

    Attributes:
        folder: run folders, logs and traces; those of survivors are removed.
        other: ``$TMPDIR`` of every second run; the others have theirs beside the run folder.
        seed: of moments, signals and faults.
    """

    folder: Path
    other: Path
    seed: int
    failures: list[str] = field(default_factory=list)
    survived: dict[str, int] = field(default_factory=lambda: {"kill": 0, "fault": 0})
    total: dict[str, int] = field(default_factory=lambda: {"kill": 0, "fault": 0})
    outcomes: dict[str, int] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu: float = 0.0
    operations: int = 0

    @property
    def tmpdir(self) -> Path:
        """The other ``$TMPDIR``, a folder of our own."""
        return self.other / f"qvlm-soak-{os.getpid()}"

    def undisturbed(self) -> None:
        """Make what all others must end with.

        Raises:
            InputError: it failed.
        """
        write_json(self.folder / "soak.json", CONFIG)
        run = SoakRun(self.folder / "undisturbed", self.tmpdir)
        run.start(Fault())
        run.wait()  # with the start of the server, and what is read for the first time
        shutil.rmtree(run.folder, ignore_errors=True)
        began = time.monotonic()
        run.start(Fault())
        if run.wait() != 0:
            raise InputError(f"the undisturbed run failed; {str(run.log)!r} says why")
        self.seconds = time.monotonic() - began
        self.expected, self.operations = result(run.folder), len(run.operations())
        said = run.log.read_text(errors="replace").rpartition("cpu seconds: ")[2]
        self.cpu = float(said.split()[0])

    def about(self) -> str:
        """Return a line about the undisturbed run."""
        return (
            f"undisturbed: {self.seconds:.1f} s, {self.cpu:.1f} CPU-seconds, "
            f"{self.operations} writes, fsyncs and renames"
        )

    def trial(self, kind: str, number: int) -> None:
        """Disturb one run and resume it."""
        rng = random.Random(f"{self.seed} {kind} {number}")
        run = SoakRun(self.folder / f"{kind}{number:03d}", self._tmpdir(kind, number))
        try:
            what, complaints = (self._kill if kind == "kill" else self._fault)(run, rng)
            complaints = complaints or self._resume(run)
        finally:
            run.end()
        self.total[kind] += 1
        if complaints:
            where = "another" if number % 2 else "the same"
            self.failures.append(f"{run.folder.name} ({what}, TMPDIR on {where}): {complaints}")
            return
        self.survived[kind] += 1
        self.outcomes[what.partition(":")[0]] = self.outcomes.get(what.partition(":")[0], 0) + 1
        shutil.rmtree(run.folder)
        for file in (run.log, run.trace):
            file.unlink(missing_ok=True)

    def _tmpdir(self, kind: str, number: int) -> Path:
        return (self.tmpdir if number % 2 else self.folder / "tmp") / f"{kind}{number:03d}"

    def _kill(self, run: SoakRun, rng: random.Random) -> tuple[str, str]:
        signum = rng.choice([signal.SIGKILL, signal.SIGTERM])
        moment, sent = rng.uniform(0, 0.95 * self.seconds), False
        while not sent:  # a machine that is less busy than before may be done sooner
            shutil.rmtree(run.folder, ignore_errors=True)
            run.start()
            time.sleep(moment)
            sent = run.running
            run.send(signum)
            began = time.monotonic()
            code = run.wait(2 * _SECONDS)
            took = time.monotonic() - began
            what = f"{signum.name}: after {moment:.1f} s"
            moment /= 2
        # at its very end a run may be done before it hears of the signal
        allowed = (-signal.SIGKILL, 0) if signum == signal.SIGKILL else (128 + signum, 0)
        if code not in allowed or took > _SECONDS:
            return what, f"exit code {code} after {took:.1f} s"
        return what, rubbish(run) if signum == signal.SIGTERM else ""

    def _fault(self, run: SoakRun, rng: random.Random) -> tuple[str, str]:
        fault = Fault(rng.randint(1, self.operations), rng.choice(list(KINDS)), rng.random() < 0.5)
        run.start(fault)
        code = run.wait()
        operations = run.operations()
        failed = next((o for o in operations if o["failed"]), {"call": "nothing", "path": ""})
        what = f"{fault.kind} at {failed['call']}: {Path(failed['path']).name}, number {fault.at}"
        what += ", lasting" if fault.lasting else ""
        said = run.log.read_text(errors="replace")
        last = said.rstrip("\n").rpartition("\n")[2]
        places = (str(run.folder), str(run.tmpdir))  # whichever is full
        named = "error: " in last and any(p in last for p in places) and "Traceback" not in said
        if code == 2 and not named:
            return what, f"no sentence that names the folder, but {last[-200:]!r}"
        if code not in (0, 2):
            return what, f"exit code {code}"
        return what, rubbish(run) or self._lost(run, operations)

    def _lost(self, run: SoakRun, operations: list[dict[str, Any]]) -> str:
        """Say which checkpoint is gone that was there."""
        from qvlm_lightning.calibration.checkpoint import LAST, is_whole

        stored = [o for o in operations if o["call"] == "replace" and Path(o["path"]).name == LAST]
        there = any(not o["failed"] for o in stored)
        if there and not is_whole(run.folder / "checkpoints" / LAST):
            return f"{LAST} is lost"
        return ""

    def _resume(self, run: SoakRun) -> str:
        """Finish the run; return what is wrong with its end."""
        run.start()
        code = run.wait()
        if code != 0:
            last = run.log.read_text(errors="replace").rstrip("\n").rpartition("\n")[2]
            return f"the resumed run ended with exit code {code}: {last[-200:]!r}"
        found = result(run.folder)
        other = [name for name in self.expected if found.get(name) != self.expected[name]]
        if other or found.keys() != self.expected.keys():
            return f"other than undisturbed: {', '.join(other) or 'files'}"
        return rubbish(run)

    def summary(self) -> list[str]:
        """Return the lines that are printed at the end."""
        lines = [f"  {what}: {count}" for what, count in sorted(self.outcomes.items())]
        lines += [f"failed: {failure}" for failure in self.failures]
        for kind, name in (("kill", "kills"), ("fault", "injected faults")):
            lines.append(f"{name}: {self.survived[kind]} / {self.total[kind]} survived")
        total = sum(self.total.values())
        return [*lines, f"together: {sum(self.survived.values())} / {total} survived"]


def result(folder: Path) -> dict[str, Any]:
    """Return what a run decided: a hash per file of its artifact, and the report without times."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for spent in (report["search"], *report["search"]["passes"]):
        spent.pop("seconds", None)
    report.pop("spent", None)  # seconds and memory of every phase
    files = sorted(p for p in (folder / "artifact").rglob("*") if p.is_file())
    found: dict[str, Any] = {"report.json": report}
    for file in files:
        content = file.read_bytes()
        if file.name == "quantization.json":
            manifest = json.loads(content)
            manifest.get("search", {}).pop("seconds", None)
            content = json.dumps(manifest, sort_keys=True).encode()
        found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def rubbish(run: SoakRun) -> str:
    """Say which temporary files lie around."""
    left = [p.name for p in run.folder.rglob("*.part")] if run.folder.exists() else []
    left += [f"$TMPDIR/{p.name}" for p in run.tmpdir.iterdir()]
    return f"temporary files are left: {', '.join(sorted(left)[:3])}" if left else ""


def _parser() -> PlainParser:
    parser = PlainParser(prog="qvlm soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="runs that get SIGKILL or SIGTERM")
    parser.add_argument("--faults", type=int, default=10, help="runs whose disk fails")
    parser.add_argument(
        "--tmpdir", type=Path, help="folder for $TMPDIR of every second run, on another file system"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="new folder of it")
    parser.add_argument("--seed", type=int, default=0, help="of moments, signals and faults")
    return parser
