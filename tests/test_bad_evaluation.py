"""Mistakes given to eval.py and to the verbs: one sentence, exit code 2, nothing written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qvlm_lightning.__main__ import main
from qvlm_lightning.cli import train_main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.evaluation.cli import eval_main

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def refused(capfd, run):
    """Run a program on what it must refuse, and return the sentence it says."""

    def refuse(program: Callable, *arguments: str, written: bool = False) -> str:
        with pytest.raises(SystemExit) as end:
            program(list(arguments))
        error = capfd.readouterr().err
        assert end.value.code == 2, error
        assert "Traceback" not in error
        last = error.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("error: "), error
        assert written or not run.exists(), sorted(p.name for p in run.rglob("*"))
        return last

    return refuse


@pytest.fixture
def evaluate(refused, run):
    def refuse(*options: str, **keywords: bool) -> str:
        return refused(
            eval_main,
            f"--config={CONFIGS / 'eval' / 'tiny.yaml'}",
            "--trainer.accelerator=cpu",
            "--data.init_args.evaluation_count=8",
            f"--trainer.default_root_dir={run}",
            *options,
            **keywords,
        )

    return refuse


@pytest.fixture
def table(refused, run):
    def refuse(*options: str, **keywords: bool) -> str:
        plan = ["--variants=[rtn w8a8]", "--pairs=4", "--search_pairs=4", "--questions=8"]
        return refused(
            main, "table", f"--configs={CONFIGS}", f"--root={run}", *plan, *options, **keywords
        )

    return refuse


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.nonsense=1", "VQAEvaluation takes family, artifact, max_new_tokens"),
        ("--model.max_new_tokens=0", "max_new_tokens is 0; allowed"),
        ("--model.max_new_tokens=few", "model.max_new_tokens: expected int, got few"),
        ("--data.init_args.evaluation_count=0", "evaluation_count is 0; allowed"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
        ("--model.artifact=nowhere", "'nowhere' is not an artifact"),
        ("--model.family.outlier_scale=0", "outlier_scale 0.0 is below 1"),
    ],
)
def test_a_wrong_option_of_the_evaluation(evaluate, option: str, words: str) -> None:
    assert words in evaluate(option)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """An artifact of the embedded model."""
    root = tmp_path_factory.mktemp("calibrated") / "run"
    rooms = ("base", "methods/rtn", "schemes/w8a8", "models/tiny", "data/tiny")
    sizes = ("calibration_pairs=4", "search_pairs=4", "batch_size=4", "evaluation_count=8")
    train_main(
        [
            "fit",
            *(f"--config={CONFIGS / room}.yaml" for room in rooms),
            *(f"--data.init_args.{size}" for size in sizes),
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={root}",
        ]
    )
    return root / "artifact"


@pytest.fixture
def artifact(exported, tmp_path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


@pytest.mark.parametrize("name", ["quantization.json", "quantizers.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_broken_artifact(evaluate, artifact, name: str, damage: str) -> None:
    file = artifact / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20])
    assert name in evaluate(f"--model.artifact={artifact}")


def test_an_artifact_of_another_model(evaluate, artifact) -> None:
    sentence = evaluate(f"--model.artifact={artifact}", "--model.family.outlier_scale=4")
    assert "was made with outlier_scale 1.0, the configured model has 4.0" in sentence
    sentence = evaluate(f"--model.artifact={artifact}", "--model.family.sink_scale=50")
    assert "was made with sink_scale 1.0, the configured model has 50.0" in sentence


def test_evaluating_what_was_calibrated_on(evaluate, artifact, monkeypatch) -> None:
    whole = TinyVQA.calibration_samples
    monkeypatch.setattr(TinyVQA, "evaluation_samples", whole)
    sentence = evaluate(
        f"--model.artifact={artifact}",
        "--data.init_args.evaluation_count=4",
        "--data.init_args.calibration_pairs=4",
        "--data.init_args.search_pairs=4",
    )
    assert "4 calibration samples are also evaluated" in sentence


def test_a_result_folder_below_a_file(refused, tmp_path) -> None:
    (tmp_path / "file").touch()
    sentence = refused(
        eval_main,
        f"--config={CONFIGS / 'eval' / 'tiny.yaml'}",
        "--data.init_args.evaluation_count=8",
        f"--trainer.default_root_dir={tmp_path / 'file' / 'run'}",
    )
    assert str(tmp_path / "file") in sentence


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--variants=[rtn]", "'rtn' is not a method and a scheme, such as 'qvlm w4a4'"),
        (
            "--variants=[magic w8a8]",
            "qvlm_plus_fast, rptq, rtn, sequential, signround, smoothquant, veo",
        ),
        ("--variants=[rtn w3a3]", "allowed are w3a16, w3a16_language, w4a16, w4a16_g128_sym"),
        ("--variants=[]", "compares nothing"),
        ("--headline=qvlm w4a4", "allowed are the variants rtn w8a8"),
        ("--pairs=many", "pairs: expected int, got many"),
        ("--model=llava-7b", "allowed are joined, tiny"),
        ("--nonsense=1", "--nonsense=1"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_wrong_option_of_a_table(table, option: str, words: str) -> None:
    assert words in table(option)


def test_a_table_folder_of_another_plan(table, run) -> None:
    run.mkdir()
    (run / "plan.json").write_text('{"model": "tiny", "pairs": 64}')
    assert "holds runs with pairs 64, the plan has 4" in table(written=True)


def test_a_table_folder_below_a_file(refused, tmp_path) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "run"
    sentence = refused(main, "table", f"--configs={CONFIGS}", f"--root={root}", "--questions=8")
    assert str(tmp_path / "file") in sentence
