"""Packed questions get the logits they would get alone."""

from __future__ import annotations

import pytest
import torch

from qvlm_lightning.models.tiny import TinySample, generate
from qvlm_lightning.models.tiny.build import build_model, build_processor
from qvlm_lightning.models.tiny.evaluate import answer_logits
from qvlm_lightning.models.tiny.roundtrip import quantized, round_to_grid
from qvlm_lightning.models.tiny.turns import option_hints, words


def messages(sample: TinySample) -> list[dict[str, object]]:
    content: list[dict[str, object]] = [{"type": "text", "text": sample.question}]
    if sample.image is not None:
        content.insert(0, {"type": "image", "image": sample.image})
    return [{"role": "user", "content": content}]


def test_packed_equals_single_through_the_processor() -> None:
    model, processor = build_model(3).eval(), build_processor()
    samples = generate("test", 20)
    packed = answer_logits(model, processor, samples)
    for sample, expected in zip(samples, packed, strict=True):
        batch = processor.apply_chat_template(
            messages(sample),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            alone = model(**batch).logits[0, -1]
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)


def test_tokenizer_and_words_agree() -> None:
    tokenizer = build_processor().tokenizer
    for sample in generate("calibration", 300):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(sample.question)["input_ids"])
        assert tokens == ["<s>", *words(sample.question)]
        assert sample.answer in tokenizer.get_vocab()


def test_option_hints_point_at_the_last_word_of_each_option() -> None:
    question = "which object is shown? (A) red circle (B) blue cross (C) red cross"
    said = words(question)
    hints = option_hints(question, "B")
    assert [(said[h.word], h.kind, h.value) for h in hints] == [
        ("circle", "letter", 0),
        ("cross", "letter", 1),
        ("cross", "letter", 2),
        ("circle", "fit", 0),
        ("cross", "fit", 1),
        ("cross", "fit", 0),
    ]


def test_round_to_grid_by_hand() -> None:
    x = torch.tensor([-1.0, -0.4, 0.0, 0.2, 2.0, 9.0])
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    assert round_to_grid(x, low, high, 2).tolist() == [-1, 0, 0, 0, 2, 2]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_block_leaves_the_model_as_it_was(bits: int) -> None:
    model, processor = build_model(4).eval(), build_processor()
    samples = generate("test", 10)
    before = answer_logits(model, processor, samples)
    with quantized(model, bits, lambda: answer_logits(model, processor, samples)):
        inside = answer_logits(model, processor, samples)
    assert not torch.equal(inside, before)
    assert torch.equal(answer_logits(model, processor, samples), before)
