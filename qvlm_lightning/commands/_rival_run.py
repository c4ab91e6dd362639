"""The run of other tools beside a table: each in its own process, scored by our evaluation."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvlm_lightning.commands._progress import Progress
from qvlm_lightning.commands._rival_environment import PROGRAMS, Versions, pythons, tools_of
from qvlm_lightning.commands._rival_inputs import RivalInputs, layers_of, rival_inputs
from qvlm_lightning.commands._rival_plan import RESULT, RivalRow, RivalsPlan
from qvlm_lightning.commands._table_run import TableRun
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.evaluation.cli import EvaluationCLI
from qvlm_lightning.evaluation.foreign_weights import ForeignEvaluation, ForeignWeights
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.files import storage_faults, write_json
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.report import row_head, variant_rows
from qvlm_lightning.results.rows import Row, figure
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import Variant, file_name
from qvlm_lightning.run_lock import run_lock

Answered = list[tuple[Predictions, Predictions]]
WEIGHTS, FACTS, COSTS, LOG = "weights.safetensors", "facts.json", "costs.json", "log.txt"
"""What a program writes into its folder (:mod:`qvlm_lightning.rivals.exchange`)."""


class RivalsRun:
    """Runs other tools; what is stored is taken, what is missing is made.

    Args:
        rows: what they are asked for.
        plan: may name their environments; those that are missing are made now.
        root: of the leaderboard.

    Raises:
        InputError: see :func:`~qvlm_lightning.commands._rival_environment.pythons`.

    Attributes:
        rows: of ``results.json``, once it has run.
        answers: of every row, each with those of full precision.
    """

    def __init__(self, rows: Sequence[RivalRow], plan: RivalsPlan, root: Path) -> None:
        self.planned = list(rows)
        self.pythons = pythons(tools_of(rows), plan, root)
        self.rows: list[Row] = []
        self.answers: Answered = []
        self._inputs: dict[Path, RivalInputs] = {}

    def run(self, table: TableRun) -> None:
        """Make and score the rows beside a table.

        Args:
            table: that has run.

        Raises:
            InputError: a tool fails, or leaves what does not fit the model.
        """
        mine = [row for row in self.planned if row.table is table.plan]
        progress = Progress([kind for row in mine for kind in (row.rival.name, "evaluation")])
        with run_lock(table.root):
            programs: dict[Stress, EvaluationCLI] = {}
            for row in mine:
                with progress.step(f"run {row.label}") as step:
                    if not self._made(row):
                        self._make(row)
                    else:
                        step.skip()
                with progress.step(f"evaluate {row.label}"):
                    if row.stress not in programs:
                        programs[row.stress] = table.maker.program(row.stress)
                    self._evaluate(row, table, programs[row.stress])

    def _of(self, row: RivalRow) -> RivalInputs:
        place = row.folder.parent
        if place not in self._inputs:
            self._inputs[place] = rival_inputs(row)
        return self._inputs[place]

    def _key(self, row: RivalRow) -> dict[str, Any]:
        """Return what the weights of a row depend on, in plain values."""
        inputs = self._of(row)
        return {
            "method": row.rival.method,
            "program": _digest(row.rival.tool.program, "exchange.py"),
            "versions": self._versions(row),
            "model": inputs.base,
            "pairs": inputs.digest,
            "seed": row.seed,
            "scheme": row.scheme.identity(),
        }

    def _versions(self, row: RivalRow) -> Versions:
        return self.pythons[row.rival.tool.name][1]

    def _made(self, row: RivalRow) -> bool:
        known = _read(row.folder / RESULT)
        return known.get("key") == self._key(row) and (row.folder / WEIGHTS).is_file()

    def _make(self, row: RivalRow) -> None:
        inputs = self._of(row)
        with storage_faults(row.folder):
            if row.folder.exists():
                shutil.rmtree(row.folder)
            row.folder.mkdir(parents=True)
        layers = layers_of(inputs.family.load_model(), inputs.family, row.scheme)
        write_json(
            row.folder / "job.json",
            {
                "method": row.rival.method,
                "model": str(inputs.model),
                "dtype": inputs.dtype,
                "inputs": str(inputs.pairs),
                "seed": row.seed,
                "symmetric": row.scheme.weight_symmetric,
                "layers": layers,
            },
        )
        python, _ = self.pythons[row.rival.tool.name]
        command = [str(python), str(PROGRAMS / row.rival.tool.program)]
        run_program(command, row.folder.absolute(), row.label)
        costs, facts = _read(row.folder / COSTS), _read(row.folder / FACTS)
        if not {"seconds", "cpu_seconds"} <= facts.keys() or not (row.folder / WEIGHTS).is_file():
            raise InputError(f"{row.label} left no weights; see {str(row.folder / LOG)!r}")
        stored = {"key": self._key(row), "calibration": facts, "process": costs}
        write_json(row.folder / RESULT, stored | {"layers": len(layers)})

    def _evaluate(self, row: RivalRow, table: TableRun, program: EvaluationCLI) -> None:
        full, data, trainer = program.model, program.datamodule, program.trainer
        known = _read(row.folder / RESULT)
        full.build(data)
        weights = ForeignWeights(
            (row.folder / WEIGHTS).absolute(),
            _variant(row, full.variant.model),
            row.scheme,
            program_of(row, known),
        )
        module = ForeignEvaluation(full, weights)
        module.build(data)
        name = evaluate(trainer, module, data, reference=False, again=False).name
        # from the disk: a vocabulary times all questions of all rows is gigabytes
        answered = Predictions.load(Path(trainer.default_root_dir) / "predictions", name)
        reference = table.known[file_name(answered.variant.reference, split=answered.split)]
        self.answers.append((answered, reference))
        table.known[answered.name] = answered
        self.rows += variant_rows(answered, table.known)
        head = row_head(answered) | {"task": OVERALL}
        found = [*_costs(known, table.plan.pairs), *table.maker.text_rows(program, module)[0]]
        self.rows += [head | own for own in found]


def run_program(command: Sequence[str], folder: Path, label: str) -> None:
    """Run the program of another tool in a process of its own, and write what that cost.

    Args:
        command: Python and program, in full; the folder becomes its last argument.
        folder: of the exchange, in full.
        label: names the row where it fails.

    Raises:
        InputError: it fails; what it said is in ``log.txt``.
    """
    measured = [sys.executable, str(PROGRAMS / "measured.py"), str(folder / COSTS)]
    foreign = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*measured, *command, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,  # tools leave logs where they run
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:  # whoever stops this process means that one too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        told = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(
            f"{label} failed: {told[-1][:300] if told else f'exit code {code}'} (all of it in "
            f"{str(folder / LOG)!r}); mend its environment, or leave the row out"
        )


def program_of(row: RivalRow, known: dict[str, Any]) -> str:
    """Return which program made a row, for people: name, version and what it notes.

    Args:
        row: of the plan.
        known: what its run has left.
    """
    package = row.rival.tool.package
    notes = known["calibration"].get("notes", [])
    return f"{package} {known['key']['versions'][package]}" + "".join(f", {x}" for x in notes)


def _variant(row: RivalRow, model: str) -> Variant:
    label = row.variant.label(row.scheme.name)
    return Variant(
        model,
        row.rival.name,
        row.scheme.name,
        row.scheme.activation_mode,
        seed=row.seed,
        label="" if label == row.rival.name else label,
        **row.stress._asdict(),
    )


def _costs(known: dict[str, Any], pairs: int) -> list[Row]:
    calibration = known["calibration"]
    return [
        figure("calibration_seconds", calibration["seconds"], None, pairs),
        figure("calibration_cpu_seconds", calibration["cpu_seconds"], None, pairs),
        figure("peak_bytes", known["process"]["peak_bytes"], None, pairs),
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError, ValueError):
        return {}


def _digest(*programs: str) -> str:
    """Hash our own programs that run another tool: what they ask of it is part of a row."""
    texts = b"".join((PROGRAMS / name).read_bytes() for name in programs)
    return hashlib.sha256(texts).hexdigest()[:16]
