import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

import qvlm_lightning.evaluation.module as under_test
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation import Predictions, VQAEvaluation, evaluate
from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS

CONFIGS = Path(__file__).parents[2] / "configs"
COUNT = 20


@pytest.fixture
def family():
    return Llava(str(WEIGHTS))


@pytest.fixture
def data(family):
    return TinyVQA(family, evaluation_count=COUNT, evaluation_batch_size=8)


@pytest.fixture
def trainer(tmp_path):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )


@pytest.fixture
def artifact(family, tmp_path, monkeypatch):
    """An artifact folder whose loading gives a model with noise in its head."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "quantization.json").write_text("{}")
    model = family.load_model()
    manifest = {
        **family.describe(),
        "model": family.fingerprint(model),
        "method": "qvlm",
        "scheme_name": "w4a4",
        "activation_mode": "static_tensor",
        "seed": 3,
        "calibration_ids": ["calibration-3-000000"],
    }
    noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight += 0.1 * noise
    loaded = SimpleNamespace(model=model, processor=family.load_processor(), manifest=manifest)
    monkeypatch.setattr(under_test, "load_artifact", lambda path: loaded)
    return folder, manifest


def names(tmp_path) -> list[str]:
    return sorted(p.stem for p in (tmp_path / "predictions").glob("*.json"))


def test_full_precision_is_stored_with_its_controls(trainer, family, data, tmp_path):
    found = evaluate(trainer, VQAEvaluation(family), data)
    assert names(tmp_path) == ["fp-k1", "fp-k1.blind", "fp-k1.shuffled"]
    assert found.ids == data.evaluation_ids
    assert found.log_probs.shape == (COUNT, family.load_processor().tokenizer.vocab_size)
    shuffled = Predictions.load(tmp_path / "predictions", "fp-k1.shuffled")
    assert len(shuffled.ids) == sum(s.image is not None for s in data.evaluation)


def test_artifact_brings_its_reference(trainer, family, data, artifact, tmp_path):
    folder, manifest = artifact
    found = evaluate(trainer, VQAEvaluation(family, str(folder)), data, controls=False)
    assert names(tmp_path) == ["fp-k1", "qvlm-w4a4-static_tensor-k1-s3"]
    full = Predictions.load(tmp_path / "predictions", "fp-k1")
    assert found.base == full.base == full.source == manifest["model"]
    assert not torch.equal(found.log_probs, full.log_probs)


def test_stored_reference_is_not_evaluated_again(trainer, family, data, artifact, tmp_path):
    folder, _ = artifact
    evaluate(trainer, VQAEvaluation(family), data, controls=False)
    marker = tmp_path / "predictions" / "fp-k1.jsonl"
    written = marker.stat().st_mtime_ns
    evaluate(trainer, VQAEvaluation(family, str(folder)), data, controls=False)
    assert marker.stat().st_mtime_ns == written


def test_calibration_on_evaluated_questions_ends_before_work(family, data, artifact):
    folder, manifest = artifact
    manifest["calibration_ids"] = [data.evaluation_ids[2]]
    with pytest.raises(InputError, match="1 calibration samples are also evaluated"):
        VQAEvaluation(family, str(folder)).build(data)


def test_artifact_of_another_model_is_refused(family, data, artifact):
    folder, manifest = artifact
    manifest["path"] = "elsewhere"
    with pytest.raises(InputError, match="was made with path 'elsewhere', the configured model"):
        VQAEvaluation(family, str(folder)).build(data)


def test_missing_artifact_is_named(family, data, tmp_path):
    with pytest.raises(InputError, match="nothing' is not an artifact"):
        VQAEvaluation(family, str(tmp_path / "nothing")).build(data)


def test_answers_of_no_tokens_are_refused(family):
    with pytest.raises(InputError, match="max_new_tokens is 0; allowed are 1 and more"):
        VQAEvaluation(family, max_new_tokens=0)


def test_changed_artifact_is_another_source(family, data, artifact):
    folder, _ = artifact
    sources = []
    for content in ("{}", '{"a": 1}'):
        (folder / "quantization.json").write_text(content)
        module = VQAEvaluation(family, str(folder))
        module.build(data)
        sources.append(module.source)
    assert sources[0] != sources[1]


def arguments(tmp_path, *more: str) -> list[str]:
    return [
        f"--config={CONFIGS / 'eval' / 'tiny.yaml'}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        f"--data.init_args.evaluation_count={COUNT}",
        *more,
    ]


def test_program_writes_rows_and_prints_the_table(tmp_path, capsys):
    eval_main(arguments(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["metric"] for row in rows} == {
        *("accuracy", "accuracy_blind", "accuracy_shuffled", "parse_failures", "seconds")
    }
    assert "full precision" in capsys.readouterr().out
    assert "| full precision |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--model.artifact=/nowhere", "'/nowhere' is not an artifact: it has no quantization.json"),
        ("--data.evaluation_count=0", "evaluation_count is 0; allowed are integers of at least 1"),
        ("--model.init_args.wings=2", "wings"),
        ("--data.evaluation_count=many", "expected int, got many"),
    ],
)
def test_user_faults_are_one_sentence(tmp_path, capsys, option, sentence):
    with pytest.raises(SystemExit) as end:
        eval_main(arguments(tmp_path, option))
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert sentence in printed.err
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1
