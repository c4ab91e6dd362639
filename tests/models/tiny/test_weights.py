"""The shipped folder: its size, that plain transformers loads it, and what it can do."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from qvlm_lightning.models.tiny import TASKS, WEIGHTS, generate
from qvlm_lightning.models.tiny.evaluate import accuracy, answer_logits
from qvlm_lightning.models.tiny.outliers import inject_outliers
from qvlm_lightning.models.tiny.packing import IDS

FLOOR = 90.0
"""Percent on 400 test questions; four standard errors below what 8,000 questions measured."""


@pytest.fixture(scope="module")
def loaded() -> tuple[LlavaForConditionalGeneration, object]:
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(WEIGHTS)


def test_folder_is_small() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) <= 12e6
    assert (WEIGHTS / "model.safetensors").exists()


def test_shape(loaded: tuple[LlavaForConditionalGeneration, object]) -> None:
    config = loaded[0].config
    assert config.vision_config.num_hidden_layers + config.vision_feature_layer + 1 == 5
    assert config.text_config.num_hidden_layers == 6
    assert config.vision_feature_select_strategy == "default"
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 36


def test_accuracy(loaded: tuple[LlavaForConditionalGeneration, object]) -> None:
    samples = generate("test", 400)
    words = list(IDS)
    answers = [words[i] for i in answer_logits(*loaded, samples).argmax(-1).tolist()]
    reached = accuracy(samples, answers)
    assert reached["all"] >= FLOOR, reached
    assert set(reached) == {*TASKS, "all"}


def test_outliers_keep_the_logits(loaded: tuple[LlavaForConditionalGeneration, object]) -> None:
    model = copy.deepcopy(loaded[0])
    samples = generate("calibration", 40)
    before = answer_logits(*loaded, samples)
    inject_outliers(model, 30)
    after = answer_logits(model, loaded[1], samples)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()


def test_generate_answers_in_one_word_and_stops(
    loaded: tuple[LlavaForConditionalGeneration, object],
) -> None:
    model, processor = loaded
    samples = generate("test", 20)
    conversations = []
    for sample in samples:
        content: list[dict[str, object]] = [{"type": "text", "text": sample.question}]
        if sample.image is not None:
            content.insert(0, {"type": "image", "image": sample.image})
        conversations.append([{"role": "user", "content": content}])
    batch = processor.apply_chat_template(
        [c for c, s in zip(conversations, samples, strict=True) if s.image is not None],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    out = model.generate(**batch, max_new_tokens=3, do_sample=False)[
        :, batch["input_ids"].shape[1] :
    ]
    assert (out[:, 1] == model.generation_config.eos_token_id).all()
    spoken = processor.batch_decode(out, skip_special_tokens=True)
    wanted = [s.answer for s in samples if s.image is not None]
    assert sum(a.strip() == b for a, b in zip(spoken, wanted, strict=True)) >= 0.7 * len(wanted)


def test_training_log_is_kept() -> None:
    lines = (WEIGHTS / "training_log.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} >= {"tower", "text", "joint"}
