"""Questions behind stored answers: the data of an evaluation, opened again for its images."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.cli import CONFIG, EvaluationCLI, quiet
from qvlm_lightning.files import write_whole

_LARGEST = 256 * 1024  # bytes of a configuration
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
                with tempfile.TemporaryDirectory() as scratch:
                    trusted = Path(scratch) / CONFIG
                    write_whole(trusted, yaml.safe_dump(_only_data(config)))
                    questions = open_questions([str(trusted)])
            except (InputError, SystemExit) as error:  # pictures are an extra: compare without
                # who exits has said why
                reason = "see above" if isinstance(error, SystemExit) else error
                notes.append(f"no pictures of {run}: its data cannot be opened ({reason})")
            else:
                for benchmark, samples in questions.items():
                    known = questions_of_runs.get(benchmark, {})
                    questions_of_runs[benchmark] = {**known, **samples}
    return questions_of_runs, notes


def _only_data(config: Path) -> dict[str, Any]:
    """Return the data of a run folder's configuration, which anybody may have written: only classes
    of this package, and only what lies on this machine.

    Raises:
        InputError: it is no configuration, or names another class, or data elsewhere; who trusts it
            gives it with ``--data``.
    """
    trust = f"if you trust it, give it: --data {config}"
    if config.stat().st_size > _LARGEST:
        raise InputError(f"its {config.name} has more than {_LARGEST} bytes; {trust}")
    try:
        found = yaml.load(config.read_text(encoding="utf-8"), Loader=_WithoutAliases)
        data = dict(found["data"])
        arguments = dict(data.get("init_args") or {})
    except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"its {config.name} is no configuration of eval.py") from error
    arguments.pop("family", None)
    data["init_args"] = arguments
    for named in _named(data, "class_path"):
        if not re.fullmatch(r"qvlm_lightning\.(data|tasks)\.[\w.]+", str(named)):
            raise InputError(
                f"it names the class {str(named)[:80]!r}, none of this package; {trust}"
            )
    if any(_named(data, "allow_outside")):
        raise InputError(f"it opens image paths outside of its folders; {trust}")
    for path in _named(data, "path"):
        if not Path(str(path)).expanduser().exists():
            raise InputError(f"its data {str(path)[:80]!r} is not on this machine")
    family = {"class_path": "qvlm_lightning.models.tiny_family.Tiny"}  # nothing is answered
    module = "qvlm_lightning.evaluation.module.VQAEvaluation"
    return {"model": {"class_path": module, "init_args": {"family": family}}, "data": data}


def _named(values: Any, key: str) -> Iterator[Any]:
    """Yield what stands under a key, at any depth."""
    inner = values.values() if isinstance(values, dict) else values
    if isinstance(values, dict) and values.get(key) is not None:
        yield values[key]
    if isinstance(values, dict | list):
        for value in inner:
            yield from _named(value, key)


class _WithoutAliases(yaml.SafeLoader):
    """Reads plain values; a few aliases of aliases would be gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _run_folder(run: str) -> Path:
    """Return the folder that ``eval.py`` left its configuration in."""
    path = Path(run)
    inside = next((p for p in (path, path.parent) if p.name == "predictions"), None)
    return path if inside is None else inside.parent
