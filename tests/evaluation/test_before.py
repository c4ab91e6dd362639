"""What an evaluation finds out before it asks the first question."""

from dataclasses import replace

import pytest
from PIL import Image

import qvlm_lightning.evaluation.module as under_test
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation import VQAEvaluation, evaluate


@pytest.fixture
def unasked(monkeypatch):
    """No question may be answered."""
    monkeypatch.setattr(under_test, "generate", lambda *_, **__: pytest.fail("a question is asked"))


def test_a_prompt_that_cannot_be_made_is_named_before_any_is_answered(
    trainer, family, data, unasked, tmp_path
):
    """Also where controls come first, and leave that question out."""
    last = data.evaluation[-1]
    data.evaluation[-1] = replace(last, image=None, question="what does <image> mean?")
    with pytest.raises(InputError, match=rf"^sample '{last.id}' has '<image>' in its text"):
        evaluate(trainer, VQAEvaluation(family), data)
    assert not (tmp_path / "predictions").exists()


def test_a_processor_that_refuses_a_strip_does_so_first(
    trainer, family, data, unasked, monkeypatch
):
    last = data.evaluation[-1]
    data.evaluation[-1] = replace(last, image=Image.new("RGB", (900, 2)))
    called = type(data.processor).__call__

    def strict(self, images=None, **options):
        if any(image.width > 200 * image.height for image in images or []):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return called(self, images=images, **options)

    monkeypatch.setattr(type(data.processor), "__call__", strict)
    with pytest.raises(InputError, match=rf"cannot read sample '{last.id}' with its image of 900"):
        evaluate(trainer, VQAEvaluation(family), data)


def test_prompts_that_are_too_long_are_told_before_they_are_answered(
    trainer, family, data, monkeypatch, capsys
):
    monkeypatch.setattr(family, "positions", lambda model: 2)
    data.evaluation_notes.append("3 evaluation images have grey values of 16 bits")
    evaluate(trainer, VQAEvaluation(family), data, controls=False)
    notes = [x for x in capsys.readouterr().err.splitlines() if x.startswith("note: ")]
    count = len(data.evaluation)
    assert notes[0] == "note: 3 evaluation images have grey values of 16 bits"
    assert notes[1].startswith(f"note: {count} of {count} questions have more tokens than the mod")


def test_nan_in_what_a_model_says_is_named_and_nothing_is_stored(
    trainer, family, data, tmp_path, monkeypatch
):
    load = family.load_model

    def broken():
        model = load()
        model.lm_head.weight.data[5, 5] = float("nan")  # after the check of the file
        return model

    monkeypatch.setattr(family, "load_model", broken)
    with pytest.raises(InputError, match=r"^the model's logits for question '.*' are NaN or inf"):
        evaluate(trainer, VQAEvaluation(family), data, controls=False)
    assert not list((tmp_path / "predictions").glob("*.json"))
