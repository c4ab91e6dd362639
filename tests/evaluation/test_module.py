import json
import shutil
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
from qvlm_lightning.evaluation.generate import generate
from qvlm_lightning.evaluation.progress import QuestionBar
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


def test_empty_stop_strings_are_refused(family):
    with pytest.raises(InputError, match="stop has an empty string; allowed are strings"):
        VQAEvaluation(family, stop=["\n", ""])


def test_length_and_stop_strings_are_the_benchmarks_unless_given(trainer, family, data, tmp_path):
    class Brief(TinyVQA):
        max_new_tokens, stop, benchmark, mode = 3, ("e",), "brief", "lmms"

        def scores(self, samples, texts):
            return {"overall": 12.5, "group/empty": float("nan")}

    brief = Brief(family, evaluation_count=COUNT, evaluation_batch_size=8)
    found = evaluate(trainer, VQAEvaluation(family), brief, controls=False)
    assert not any("e" in text for text in found.texts)
    assert (found.asked["max_new_tokens"], found.asked["stop"]) == (3, ["e"])
    about = json.loads((tmp_path / "predictions" / "fp-k1.json").read_text())
    assert (about["benchmark"], about["mode"]) == ("brief", "lmms")
    assert about["scores"] == {"overall": 12.5, "group/empty": None}
    told = VQAEvaluation(family, max_new_tokens=4, stop=[])
    assert any("e" in text for text in evaluate(trainer, told, brief, controls=False).texts)


@pytest.mark.parametrize("size", [1, 5])
def test_stored_answers_do_not_depend_on_the_batch_size(trainer, family, data, size):
    expected = evaluate(trainer, VQAEvaluation(family), data, controls=False)
    data.evaluation_batch_size = size
    found = evaluate(trainer, VQAEvaluation(family), data, controls=False)
    assert (found.texts, found.points) == (expected.texts, expected.points)
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-4)


def test_logged_accuracy_is_that_of_the_stored_answers(trainer, family, data):
    found = evaluate(trainer, VQAEvaluation(family), data, controls=False)
    expected = 10 * sum(found.points) / COUNT
    assert trainer.callback_metrics["eval/accuracy"].item() == pytest.approx(expected)


def test_log_probabilities_are_kept_on_request(trainer, family, data, tmp_path):
    found = evaluate(trainer, VQAEvaluation(family, keep_log_probs=False), data, controls=False)
    assert found.log_probs is None
    assert not list((tmp_path / "predictions").glob("*.safetensors"))


def test_another_precision_is_another_variant(trainer, family, data, tmp_path):
    full = evaluate(trainer, VQAEvaluation(family, precision="fp32"), data, controls=False)
    half = evaluate(trainer, VQAEvaluation(family, precision="bf16"), data, controls=False)
    assert names(tmp_path) == ["fp-bf16-k1", "fp-k1"]
    assert (half.base, half.source) == (full.base, f"{full.source}-bf16")
    assert not torch.equal(half.log_probs, full.log_probs)


def test_an_artifact_answers_in_its_own_precision(family, data, artifact):
    folder, _ = artifact
    VQAEvaluation(family, str(folder), precision="fp32").build(data)
    with pytest.raises(
        InputError, match=r"was exported in fp32 and answers in it; leave precision"
    ):
        VQAEvaluation(family, str(folder), precision="bf16").build(data)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"limit_test_batches": 1}, "leave questions out; ask fewer with data.evaluation_count"),
        ({"fast_dev_run": True}, "leave questions out"),
        ({"precision": "bf16-true"}, "trainer.precision is 'bf16-true'; leave it out and give"),
    ],
)
def test_trainers_that_would_falsify_results_are_refused(family, data, tmp_path, option, sentence):
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, **option)
    with pytest.raises(InputError, match=sentence):
        evaluate(trainer, VQAEvaluation(family), data)


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


def test_an_interrupted_evaluation_goes_on_where_it_was(trainer, family, data, tmp_path, stopping):
    folder = tmp_path / "predictions"
    made = stopping(None)
    evaluate(trainer, VQAEvaluation(family), data)
    whole, undisturbed = len(made), contents(folder)
    accuracy = trainer.callback_metrics["eval/accuracy"]
    shutil.rmtree(folder)
    stopping(whole - 2)
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(trainer, VQAEvaluation(family), data)
    assert names(tmp_path) == ["fp-k1.blind", "fp-k1.shuffled"]
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
    assert sum(made) == COUNT
    assert words in capsys.readouterr().err


def test_other_questions_do_not_go_on(trainer, family, data, stopping, capsys):
    stopping(1)
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(trainer, VQAEvaluation(family), data, controls=False)
    made = stopping(None)
    fewer = TinyVQA(family, evaluation_count=COUNT - 1, evaluation_batch_size=8)
    evaluate(trainer, VQAEvaluation(family), fewer, controls=False)
    assert sum(made) == COUNT - 1
    assert "fp-k1: answers of an interrupted evaluation are dropped" in capsys.readouterr().err


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


def test_program_leaves_out_controls_and_shows_questions_per_second(tmp_path, capsys):
    bar = "--trainer.enable_progress_bar=true"
    cli = eval_main([*arguments(tmp_path), bar, "--controls=false"])
    assert names(tmp_path) == ["fp-k1"]
    assert isinstance(cli.trainer.progress_bar_callback, QuestionBar)
    printed = capsys.readouterr().err
    assert f"fp-k1: 100%|██████████| {COUNT}/{COUNT}" in printed
    assert " questions/s]" in printed


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
