"""Fidelity of a model's text against loops that read one prompt at a time."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.fidelity import FidelityInputs, FidelityMeter, followed
from qvlm_lightning.evaluation.generate import end_tokens_of, image_token_of
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.results.fidelity import store_fidelity, stored_fidelity
from tests.models.small.gemma import gemma3, paligemma
from tests.models.small.llava import llava, llava_dinov2, llava_onevision, moe_llava
from tests.models.small.qwen import qwen2_5_vl
from tests.models.small.tiles import internvl

PASSAGE = "a red circle and a blue square . what color is the circle ?"
QUESTIONS = ["what color is it ?", "a circle and a square ?", "is the one red or blue ?"]
LONGEST = 6


def prompts() -> list[Sample]:
    colours = [(250, 10, 10), (10, 10, 250), (90, 200, 30)]
    images = [Image.new("RGB", (20, 16), colour) for colour in colours]
    return [
        Sample(f"p{n}", image, question)
        for n, (image, question) in enumerate(zip(images, QUESTIONS, strict=True))
    ]


@pytest.fixture
def inputs() -> FidelityInputs:
    return FidelityInputs(prompts(), PASSAGE, max_new_tokens=LONGEST, batch_size=2)


def disturbed(model, amount: float = 0.3):
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += (
            amount * parameter.abs().mean() * torch.randn(parameter.shape, generator=noise)
        )
    return model


@torch.no_grad()
def plain_answer(model, processor, sample: Sample) -> list[int]:
    """Greedy answer of the model's own generate, without its end token."""
    batch = model_inputs(collate([sample], processor, with_answer=False))
    told = model.generate(**batch, max_new_tokens=LONGEST, do_sample=False)
    row = told[0, batch["input_ids"].shape[1] :].tolist()
    ends = end_tokens_of(model, processor) | {image_token_of(processor)}
    stop = next((n for n, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


@torch.no_grad()
def plain_logits(model, processor, sample: Sample, answer: list[int]) -> torch.Tensor:
    """Logits at the text tokens of one prompt and an answer, read alone."""
    batch = collate([sample], processor, with_answer=False)
    ids = torch.cat([batch["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in batch:
        kinds = torch.zeros_like(ids)
        kinds[:, : batch["mm_token_type_ids"].shape[1]] = batch["mm_token_type_ids"]
        longer["mm_token_type_ids"] = kinds
    logits = model(**(model_inputs(batch) | longer)).logits[0]
    return logits[ids[0] != image_token_of(processor)]


def plain_kl(reference: torch.Tensor, logits: torch.Tensor) -> float:
    p, q = reference.double().softmax(-1), logits.double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize(
    "small",
    [llava, llava_dinov2, llava_onevision, moe_llava, qwen2_5_vl, gemma3, paligemma, internvl],
)
def test_everything_is_that_of_plain_loops(small, inputs, tmp_path):
    parts = small()
    processor = parts.processor
    full, other = parts.model().eval(), disturbed(parts.model().eval())
    meter = FidelityMeter(inputs, tmp_path / "reference", "weights", processor)
    meter.store_reference(full)
    found = meter.measure(other)

    answers = [plain_answer(full, processor, sample) for sample in prompts()]
    own = [plain_answer(other, processor, sample) for sample in prompts()]
    assert own != answers, "the disturbance is to change an answer"
    expected, count = [], 0
    for sample, answer in zip(prompts(), answers, strict=True):
        pair = [plain_logits(model, processor, sample, answer) for model in (full, other)]
        expected.append(plain_kl(*pair))
        count += len(pair[0])
    assert min(expected) > 1e-3
    assert found.kl == pytest.approx(expected, rel=5e-3)
    assert found.tokens == count
    for n, (mine, theirs) in enumerate(zip(own, answers, strict=True)):
        places = range(max(len(mine), len(theirs)))
        equal = [mine[i : i + 1] == theirs[i : i + 1] for i in places]
        assert found.same_tokens[n] == pytest.approx(sum(equal) / len(equal))
        assert found.first_differences[n] == (equal.index(False) if False in equal else None)

    message = [{"role": "user", "content": [{"type": "text", "text": PASSAGE}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        reference, logits = (model(input_ids=ids).logits[0] for model in (full, other))
    losses = [-float(logits[t].log_softmax(-1)[ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found.passage_kl == pytest.approx(plain_kl(reference, logits), rel=5e-3)
    assert found.passage_tokens == ids.shape[1]


@pytest.fixture
def stored(inputs, tmp_path):
    """A small model, and a meter that knows its reference."""
    parts = llava()
    model = parts.model().eval()
    meter = FidelityMeter(inputs, tmp_path / "reference", "weights", parts.processor)
    meter.store_reference(model)
    return parts, model, meter


def test_full_precision_agrees_with_itself_but_for_stored_rounding(stored):
    _, model, meter = stored
    found = meter.measure(model)
    assert max(found.kl) < 1e-6
    assert found.passage_kl < 1e-6
    assert found.first_differences == [None] * 3
    assert found.same_tokens == [1.0] * 3
    perplexity, tokens = meter.reference_perplexity()
    assert found.perplexity == pytest.approx(perplexity, rel=1e-6)
    assert found.passage_tokens == tokens


def test_rounding_of_the_reference_moves_a_small_divergence_by_next_to_nothing(
    stored, inputs, tmp_path, monkeypatch
):
    parts, model, meter = stored
    other = disturbed(parts.model().eval(), 0.01)
    rounded = meter.measure(other)
    monkeypatch.setattr("qvlm_lightning.evaluation.fidelity.STORED", torch.float32)
    exact = FidelityMeter(inputs, tmp_path / "exact", "weights", parts.processor)
    exact.store_reference(model)
    whole = exact.measure(other)
    assert whole.kl != rounded.kl
    assert rounded.kl == pytest.approx(whole.kl, rel=2e-3, abs=1e-6)


def test_results_do_not_depend_on_the_batch(stored, inputs, tmp_path):
    parts, model, meter = stored
    other = disturbed(parts.model().eval())
    alone = FidelityMeter(
        replace(inputs, batch_size=1), tmp_path / "alone", "weights", parts.processor
    )
    alone.store_reference(model)
    one, two = alone.measure(other), meter.measure(other)
    assert one.kl == pytest.approx(two.kl, rel=1e-3)
    assert (one.same_tokens, one.tokens) == (two.same_tokens, two.tokens)


def test_the_reference_is_made_once_for_inputs_and_weights(stored, inputs, tmp_path):
    parts, model, meter = stored
    about = tmp_path / "reference" / "reference.json"
    before = about.stat().st_mtime_ns
    meter.store_reference(model)
    assert about.stat().st_mtime_ns == before
    changes = {
        "passage": replace(inputs, passage=PASSAGE + " a"),
        "prompt": replace(inputs, prompts=[replace(prompts()[0], question="a ?"), *prompts()[1:]]),
        "image": replace(
            inputs, prompts=[replace(prompts()[0], image=prompts()[1].image), *prompts()[1:]]
        ),
        "length": replace(inputs, max_new_tokens=3),
        "batch": replace(inputs, batch_size=1),
    }
    for what, changed in changes.items():
        other = FidelityMeter(changed, tmp_path / "reference", "weights", parts.processor)
        assert not other.is_stored, what
    weights = FidelityMeter(inputs, tmp_path / "reference", "others", parts.processor)
    with pytest.raises(InputError, match="holds no reference of these prompts and this model"):
        weights.measure(model)


def test_a_reference_that_was_interrupted_is_made_again(stored, inputs, tmp_path):
    parts, model, _ = stored
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "reference.json").write_text("{")
    meter = FidelityMeter(inputs, tmp_path / "other", "weights", parts.processor)
    assert not meter.is_stored
    meter.store_reference(model)
    assert meter.is_stored
    assert not list(tmp_path.glob(".*.part"))


def test_a_passage_of_one_token_is_refused(inputs, tmp_path):
    parts = llava()
    meter = FidelityMeter(replace(inputs, passage=""), tmp_path / "r", "weights", parts.processor)
    with pytest.raises(InputError, match=r"the passage has [01] tokens; at least 2 are needed"):
        meter.store_reference(parts.model().eval())


def test_answers_follow_their_prompts_and_are_padded_behind():
    processor = llava().processor
    batch = collate(prompts()[:2], processor, with_answer=False)
    width = batch["input_ids"].shape[1]
    longer = followed(batch, [[5, 6, 7], [8]], processor)
    assert longer["input_ids"][0, width:].tolist() == [5, 6, 7]
    assert longer["input_ids"][1, width].item() == 8
    assert longer["attention_mask"][:, width:].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert torch.equal(longer["input_ids"][:, :width], batch["input_ids"])
    nothing = followed(batch, [[], []], processor)
    assert torch.equal(nothing["input_ids"], batch["input_ids"])


def test_a_stored_result_is_taken_for_its_own_key_only(stored, tmp_path):
    parts, _, meter = stored
    found = meter.measure(disturbed(parts.model().eval()))
    path = tmp_path / "results" / "rtn.json"
    assert stored_fidelity(path, {"source": "a"}) is None
    store_fidelity(path, {"source": "a"}, found)
    assert stored_fidelity(path, {"source": "a"}) == found
    assert stored_fidelity(path, {"source": "b"}) is None
    json.loads(path.read_text())
