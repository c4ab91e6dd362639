"""Questions behind stored answers: the data of an evaluation, opened again for its images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.cli import CONFIG, EvaluationCLI, quiet

Samples = Mapping[str, Mapping[str, Sample]]


def open_questions(configs: Sequence[str]) -> Samples:
    """Open the data of evaluations; no model is loaded.

    Args:
        configs: configurations of ``eval.py``; paths in them are relative to where it ran.

    Returns:
        Benchmark -> id -> question.

    Raises:
        InputError: the data is not there any more.
        SystemExit: with code 2, a file that is no configuration of ``eval.py``.
    """
    questions: dict[str, dict[str, Sample]] = {}
    for config in configs:
        # whatever it was evaluated on: here nothing runs
        here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]
        with quiet():
            data = EvaluationCLI([f"--config={config}", *here]).datamodule
        samples = questions.setdefault(data.benchmark, {})
        samples.update({sample.id: sample for sample in data.evaluation})
    return questions


def open_questions_of_runs(runs: Sequence[str]) -> tuple[Samples, list[str]]:
    """Open the data of run folders, as far as it is still there.

    Args:
        runs: run folders of ``eval.py``, or what lies in their ``predictions``; others are passed
            over.

    Returns:
        Benchmark -> id -> question, and what to tell the user of folders whose data is not there.
    """
    questions_of_runs: dict[str, Mapping[str, Sample]] = {}
    notes = []
    for run in dict.fromkeys(map(_run_folder, runs)):
        config = run / CONFIG
        if config.is_file():
            try:
                questions = open_questions([str(config)])
            except (InputError, SystemExit) as error:  # pictures are an extra: compare without
                # who exits has said why
                reason = "see above" if isinstance(error, SystemExit) else error
                notes.append(f"no pictures of {run}: its data cannot be opened ({reason})")
            else:
                for benchmark, samples in questions.items():
                    known = questions_of_runs.get(benchmark, {})
                    questions_of_runs[benchmark] = {**known, **samples}
    return questions_of_runs, notes


def _run_folder(run: str) -> Path:
    """Return the folder that ``eval.py`` left its configuration in."""
    path = Path(run)
    inside = next((p for p in (path, path.parent) if p.name == "predictions"), None)
    return path if inside is None else inside.parent
