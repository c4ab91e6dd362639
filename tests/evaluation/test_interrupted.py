"""An evaluation that was interrupted goes on where it was, or says why it does not."""

import json
import shutil
from pathlib import Path

import pytest

import qvlm_lightning.evaluation.module as under_test
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.evaluation import VQAEvaluation, evaluate
from qvlm_lightning.evaluation.generate import generate


@pytest.fixture
def stopping(monkeypatch):
    """Let generation fail after some batches, and count those that were made."""
    made: list[int] = []

    def after(batches: int | None) -> list[int]:
        def counted(model, batch, *args, **kwargs):
            if batches is not None and len(made) == batches:
                raise RuntimeError("interrupted")
            made.append(len(batch["input_ids"]))
            return generate(model, batch, *args, **kwargs)

        made.clear()
        monkeypatch.setattr(under_test, "generate", counted)
        return made

    return after


def contents(folder: Path) -> dict[str, object]:
    """Everything that is stored, without wall times."""
    found: dict[str, object] = {p.name: p.read_bytes() for p in folder.glob("*.*[sl]")}
    for path in folder.glob("*.json"):
        found[path.name] = json.loads(path.read_text()) | {"seconds": 0}
    return found


def test_an_interrupted_evaluation_goes_on_where_it_was(
    trainer, family, data, tmp_path, stopping, names
):
    folder = tmp_path / "predictions"
    made = stopping(None)
    evaluate(trainer, VQAEvaluation(family), data)
    whole, undisturbed = len(made), contents(folder)
    accuracy = trainer.callback_metrics["eval/accuracy"]
    shutil.rmtree(folder)
    stopping(whole - 2)
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(trainer, VQAEvaluation(family), data)
    assert names() == ["fp-k1.blind", "fp-k1.shuffled"]
    assert (folder / "fp-k1.partial").is_dir()
    made = stopping(None)
    evaluate(trainer, VQAEvaluation(family), data)
    assert len(made) == 2
    assert contents(folder) == undisturbed
    assert trainer.callback_metrics["eval/accuracy"] == accuracy
    assert not (folder / "fp-k1.partial").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_new_tokens": 2}, "max_new_tokens was 4, now it is 2"),
        ({"stop": ["e"]}, "stop was [], now it is ['e']"),
        ({"keep_log_probs": False}, "log_probs was True, now it is False"),
    ],
)
def test_another_evaluation_does_not_go_on(trainer, family, data, stopping, capsys, change, words):
    stopping(1)
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(trainer, VQAEvaluation(family), data, controls=False)
    made = stopping(None)
    evaluate(trainer, VQAEvaluation(family, **change), data, controls=False)
    assert sum(made) == data.evaluation_count
    assert words in capsys.readouterr().err


def test_other_questions_do_not_go_on(trainer, family, data, stopping, capsys):
    stopping(1)
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(trainer, VQAEvaluation(family), data, controls=False)
    made = stopping(None)
    fewer = TinyVQA(family, evaluation_count=data.evaluation_count - 1, evaluation_batch_size=8)
    evaluate(trainer, VQAEvaluation(family), fewer, controls=False)
    assert sum(made) == data.evaluation_count - 1
    assert "fp-k1: answers of an interrupted evaluation are dropped" in capsys.readouterr().err
