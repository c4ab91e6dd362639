"""A table of what people give by mistake: one sentence, exit code 2, at once, and nothing is lost.

The rows are in ``tests/bad_inputs/*.yaml``: what is wrong, which program, its options, files that
lie beside them, and words of the sentence. ``{tmp}`` is the row's folder, ``{file}`` a file in it,
``{configs}`` and ``{model}`` those of the project, ``{deep}`` JSON that is nested without end.
"""

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

import qvlm_lightning
from qvlm_lightning.__main__ import main
from qvlm_lightning.cli import train_main
from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.models.tiny import WEIGHTS

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
ROWS = [
    row
    for file in sorted(HERE.glob("bad_inputs/*.yaml"))
    for row in yaml.safe_load(file.read_text())
]
CPU_SECONDS = 10

FIT = [
    "fit",
    *(f"--config={CONFIGS / name}.yaml" for name in ("base", "methods/sequential", "schemes/w8a8")),
    *(f"--config={CONFIGS / name}.yaml" for name in ("models/tiny", "data/tiny")),
    "--trainer.accelerator=cpu",
    "--data.init_args.calibration_pairs=4",
    "--data.init_args.search_pairs=4",
    "--data.init_args.batch_size=4",
    "--data.init_args.evaluation_count=20",
    "--trainer.default_root_dir={tmp}/run",
]
EVAL = [
    f"--config={CONFIGS / 'eval' / 'tiny.yaml'}",
    "--trainer.accelerator=cpu",
    "--data.init_args.evaluation_count=8",
    "--trainer.default_root_dir={tmp}/run",
]
PROGRAMS: dict[str, tuple[Callable[[list[str]], Any], list[str]]] = {
    "fit": (train_main, FIT),
    "train": (train_main, []),
    "eval": (eval_main, EVAL),
    "qvlm": (main, []),
}


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """A model and its processor, as a notebook has them; no row may change them."""
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    return model, AutoProcessor.from_pretrained(WEIGHTS)


def too_late(*_: object) -> None:
    raise TimeoutError(f"more than {CPU_SECONDS} CPU-seconds")


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def title(row: dict[str, Any]) -> str:
    return f"{row['program']}: {row['what']}"


def test_the_table_is_large_and_without_repetition():
    assert len(ROWS) >= 250
    assert len({title(row) for row in ROWS}) == len(ROWS)


def often(place: int, row: dict[str, Any]) -> Any:
    """Return a row; five of six are run by ``make test-slow`` only."""
    return pytest.param(row, id=title(row), marks=[pytest.mark.slow] if place % 6 else [])


@pytest.mark.parametrize("row", [often(place, row) for place, row in enumerate(ROWS)])
def test_a_mistake_is_one_sentence(row, tmp_path, monkeypatch, capfd, parts):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "file").write_text("x")
    for name, text in row.get("files", {}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("{deep}", '{"a":' * 5000))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before, start = content(tmp_path), time.process_time()
    signal.signal(signal.SIGVTALRM, too_late)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        told = said(row, tmp_path, parts, capfd)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert time.process_time() - start < CPU_SECONDS
    assert "Traceback" not in told
    sentence = told.strip().rpartition("\n")[2]
    assert sentence.startswith("error: "), told
    words = row["says"].replace("{tmp}", str(tmp_path)).replace("{configs}", str(CONFIGS))
    assert words in sentence, sentence
    assert content(tmp_path) == before, "nothing is written or lost"


def said(row: dict[str, Any], tmp_path: Path, parts: tuple[Any, Any], capfd: Any) -> str:
    """Give the row's mistake to its program and return what it says on stderr."""

    def filled(text: str) -> str:
        known = {"tmp": tmp_path, "file": tmp_path / "file", "configs": CONFIGS, "model": WEIGHTS}
        for name, path in known.items():
            text = text.replace(f"{{{name}}}", str(path))
        return text

    if row["program"] in ("quantize()", "load()"):
        given = yaml.safe_load(filled(yaml.safe_dump(row["options"])))
        call = partial(qvlm_lightning.quantize, *parts)
        call = qvlm_lightning.load if row["program"] == "load()" else call
        with pytest.raises(qvlm_lightning.InputError) as fault:
            call(**given)
        assert "\n" not in str(fault.value)
        return f"error: {fault.value}"
    program, options = PROGRAMS[row["program"]]
    with pytest.raises(SystemExit) as end:
        program([filled(option) for option in (*options, *row["options"])])
    told: str = capfd.readouterr().err
    assert end.value.code == 2, told
    return told
