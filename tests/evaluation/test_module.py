import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

import qvlm_lightning.evaluation.module as under_test
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation import Predictions, VQAEvaluation, evaluate


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
    loaded = SimpleNamespace(
        model=model,
        processor=family.load_processor(),
        manifest=manifest,
        structure=SimpleNamespace(keep_only_quantized=lambda: None),
        packed=None,
    )
    monkeypatch.setattr(under_test, "load_artifact", lambda path, family, packed: loaded)
    return folder, manifest


def test_full_precision_is_stored_with_its_controls(trainer, family, data, tmp_path, names):
    found = evaluate(trainer, VQAEvaluation(family), data)
    assert names() == ["fp-k1", "fp-k1.blind", "fp-k1.shuffled"]
    assert found.ids == data.evaluation_ids
    assert found.log_probs.shape == (
        data.evaluation_count,
        family.load_processor().tokenizer.vocab_size,
    )
    shuffled = Predictions.load(tmp_path / "predictions", "fp-k1.shuffled")
    assert len(shuffled.ids) == sum(s.image is not None for s in data.evaluation)


def test_artifact_brings_its_reference(trainer, family, data, artifact, tmp_path, names):
    folder, manifest = artifact
    found = evaluate(trainer, VQAEvaluation(family, str(folder)), data, controls=False)
    assert names() == ["fp-k1", "qvlm-w4a4-static_tensor-k1-s3"]
    full = Predictions.load(tmp_path / "predictions", "fp-k1")
    assert found.base == full.base == full.source == manifest["model"]
    assert not torch.equal(found.log_probs, full.log_probs)


def test_a_row_may_be_named_otherwise_than_its_method(trainer, family, data, artifact, names):
    folder, manifest = artifact
    manifest |= {"objective": "plain", "candidates": [1.0], "search": {"layer_forwards": 3}}
    module = VQAEvaluation(family, str(folder), name="random-blocks")
    answered = evaluate(trainer, module, data, controls=False)
    assert names() == ["fp-k1", "random-blocks-w4a4-static_tensor-k1-s3"]
    assert (answered.variant.row, answered.variant.method) == ("random-blocks", "qvlm")
    assert answered.search == {
        **{"objective": "plain", "candidates": [1.0], "layer_forwards": 3, "search_seconds": None}
    }
    with pytest.raises(InputError, match="name is 'a/b'; allowed are letters"):
        VQAEvaluation(family, str(folder), name="a/b")


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


def test_artifact_with_a_sink_is_refused_where_none_is_configured(family, data, artifact):
    """Artifacts that do not name a scale, such as earlier ones, are as trained."""
    folder, manifest = artifact
    VQAEvaluation(family, str(folder)).build(data)
    for name, scale in ("sink_scale", 50.0), ("outlier_scale", 4.0):
        manifest |= {"sink_scale": 1.0, name: scale}
        with pytest.raises(InputError, match=rf"was made with {name} {scale}, the .* 1\.0;"):
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

    brief = Brief(family, evaluation_count=data.evaluation_count, evaluation_batch_size=8)
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
    expected = 10 * sum(found.points) / data.evaluation_count
    assert trainer.callback_metrics["eval/accuracy"].item() == pytest.approx(expected)


def test_log_probabilities_are_kept_on_request(trainer, family, data, tmp_path):
    found = evaluate(trainer, VQAEvaluation(family, keep_log_probs=False), data, controls=False)
    assert found.log_probs is None
    assert not list((tmp_path / "predictions").glob("*.safetensors"))


def test_another_precision_is_another_variant(trainer, family, data, names):
    full = evaluate(trainer, VQAEvaluation(family, precision="fp32"), data, controls=False)
    half = evaluate(trainer, VQAEvaluation(family, precision="bf16"), data, controls=False)
    assert names() == ["fp-bf16-k1", "fp-k1"]
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
        ({"precision": "bf16-true"}, "trainer.precision is 'bf16-true'; allowed is '32-true'"),
    ],
)
def test_trainers_that_would_falsify_results_are_refused(family, data, tmp_path, option, sentence):
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, **option)
    with pytest.raises(InputError, match=sentence):
        evaluate(trainer, VQAEvaluation(family), data)


def test_changed_artifact_is_another_source(family, data, artifact):
    folder, _ = artifact
    sources = []
    for content in ("{}", '{"a": 1}'):
        (folder / "quantization.json").write_text(content)
        module = VQAEvaluation(family, str(folder))
        module.build(data)
        sources.append(module.source)
    assert sources[0] != sources[1]
