"""From samples to the tensors a model takes.

Shapes: B samples, T tokens, N samples with an image, C H W channels and pixels of an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.data.dialogue import (
    Turn,
    answer_spans,
    first_message,
    read_turns,
    shared_tokens,
)
from qvlm_lightning.data.image import decoded
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import Foreign, InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.models.processors import image_words

Batch = dict[str, Tensor]

IGNORED = -100
"""Label of tokens that no loss counts."""

_PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
_TEXT = ("input_ids", "attention_mask", "labels", *_PER_TOKEN)


def prompt_text(sample: Sample, processor: Any) -> str:
    """Render the first question of a sample with the processor's chat template.

    Args:
        sample: the question, with or without an image.
        processor: a Hugging Face processor that has a chat template.

    Returns:
        The text up to where the model answers, the image still one placeholder.

    Raises:
        InputError: the template cannot render it.
    """
    messages = [first_message(sample)]
    with Foreign(f"the model's chat template cannot write sample {sample.id!r}"):
        text: str = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    return text


def check_words(samples: Sequence[Sample], processor: Any) -> None:
    """Refuse texts in which a processor would look for an image.

    Args:
        samples: questions, answers and what follows them.
        processor: a Hugging Face processor.

    Raises:
        InputError: a text has a word that stands for an image, or for its border.
    """
    words = image_words(processor)
    for sample in samples:
        texts = (sample.question, sample.answer, *(t for pair in sample.further for t in pair))
        found = next((word for word in words if any(word in text for text in texts)), None)
        if found is not None:
            raise InputError(
                f"sample {sample.id!r} has {found!r} in its text, which stands for an image; leave "
                "it out: the image of a sample is shown before its question"
            )


def collate(
    samples: Sequence[Sample], processor: Any, with_answer: bool, first_index: int = 0
) -> Batch:
    """Make a batch: prompts for generation, or prompts with their answers for calibration.

    Without answers the padding is on the left, so that all rows continue at the same place, and
    exchanges after the first are left out. With answers it is on the right and ``labels`` count the
    answer's tokens and the end of sequence; of a sample whose answer is empty they count nothing.
    Of a dialogue they count the tokens of every answer and of what the chat template ends it with;
    if it ends none, the end of sequence comes last. Images are decoded here, each once.

    Args:
        samples: at least one; images of one resolution after the processor, unless it packs their
            patches (``image_grid_thw``).
        processor: a Hugging Face processor that has a chat template.
        with_answer: whether to append each answer and to make labels.
        first_index: position of the first sample in its set.

    Returns:
        ``input_ids`` and ``attention_mask`` [B, T]; ``pixel_values`` [N, C, H, W] and
        ``image_index`` [N] (equal numbers share an image object) where any sample has an image,
        with whatever else the processor makes of images (``image_grid_thw`` [N, 3], ``image_sizes``
        [N, 2] ...) and types of tokens [B, T]; ``labels`` [B, T] with answers; ``sample_index``
        [B]; ``has_image`` [B] bool.

    Raises:
        InputError: an image cannot be decoded, answers of a dialogue cannot be told from its
            questions, or the processor cannot read a sample, which is named, or makes NaN of it.
    """
    check_words(samples, processor)
    prompts = [prompt_text(sample, processor) for sample in samples]
    given = [sample.image for sample in samples if sample.image is not None]
    pixels = {id(image): decoded(image) for image in {id(x): x for x in given}.values()}
    encoded = _encode(processor, samples, prompts, pixels)
    rows: list[list[int]] = encoded["input_ids"]
    batch: Batch = {}
    if with_answer:
        dialogues = [read_turns(s, processor) if s.further else [] for s in samples]
        texts = [
            dialogue[-1].told if dialogue else _answered(prompt, sample.answer)
            for dialogue, prompt, sample in zip(dialogues, prompts, samples, strict=True)
        ]
        full = _encode(processor, samples, texts, pixels)["input_ids"]
        each = zip(samples, dialogues, rows, full, strict=True)
        told = [_labelled(*one, processor.tokenizer) for one in each]
        rows = [row for row, _ in told]
        batch["labels"] = _pad([label for _, label in told], IGNORED, "right")
    side = "right" if with_answer else "left"
    batch["input_ids"] = _pad(rows, _pad_id(processor.tokenizer), side)
    batch["attention_mask"] = _pad([[1] * len(row) for row in rows], 0, side)
    if given:
        order: dict[int, int] = {}
        index = [order.setdefault(id(image), len(order)) for image in given]
        with Foreign(f"images of {_span(samples)} do not fit in one batch; give batch_size: 1"):
            batch |= _image_inputs(encoded)
        check_finite(batch.items(), f"what the model's processor makes of {_span(samples)}")
        batch["image_index"] = torch.tensor(index)
    for name in (n for n in _PER_TOKEN if n in encoded):
        # 0 is text, usually all that an answer adds to its prompt
        answer = getattr(processor, "answer_type", 0)
        pairs = zip(encoded[name], rows, strict=True)
        kinds = [[*kind, *[answer] * (len(row) - len(kind))] for kind, row in pairs]
        # many tokenizers give types that tell nothing, to models that take none
        if name != "token_type_ids" or answer or any(map(any, kinds)):
            batch[name] = _pad(kinds, 0, side)
    batch["sample_index"] = torch.arange(first_index, first_index + len(samples))
    batch["has_image"] = torch.tensor([sample.image is not None for sample in samples])
    return batch


def prompt_lengths(samples: Sequence[Sample], processor: Any) -> list[int]:
    """Count the tokens of each prompt, an image as one token.

    Args:
        samples: the questions.
        processor: a Hugging Face processor that has a chat template.

    Returns:
        One length per sample; comparable between samples that all have, or all lack, an image.

    Raises:
        InputError: a prompt cannot be made, or has a word in its text that stands for an image.
    """
    check_words(samples, processor)
    texts = [prompt_text(sample, processor) for sample in samples]
    return [len(row) for row in processor.tokenizer(texts)["input_ids"]]


def _encode(
    processor: Any, samples: Sequence[Sample], texts: list[str], pixels: Mapping[int, Any]
) -> dict[str, Any]:
    """Return what the processor makes of texts and of the images of their samples; where it cannot,
    say of which sample.
    """
    images = [pixels[id(sample.image)] for sample in samples if sample.image is not None]
    given = {"images": images} if images else {}
    try:
        # Padding is ours: processors disagree about padding_side as an argument.
        with Foreign(f"the model's processor cannot read {_span(samples)}{_size(images)}"):
            return processor(text=texts, padding=False, **given)
    except InputError:
        if len(samples) > 1:
            for sample, text in zip(samples, texts, strict=True):
                _encode(processor, [sample], [text], pixels)
        raise


def _span(samples: Sequence[Sample]) -> str:
    first, last = samples[0].id, samples[-1].id
    return f"sample {first!r}" if len(samples) == 1 else f"samples {first!r} to {last!r}"


def _size(images: Sequence[Any]) -> str:
    return f" with its image of {images[0].width} x {images[0].height}" if len(images) == 1 else ""


def _image_inputs(encoded: dict[str, Any]) -> Batch:
    """Return what the vision encoder takes: stacks, or the packed patches and their grids."""
    given = {name: value for name, value in encoded.items() if name not in _TEXT}
    stacked = {}
    for name, value in given.items():
        parts = [torch.as_tensor(x) for x in value]
        # packed patches: one row each already, or one list of rows per image
        packed = name == "pixel_values" and "image_grid_thw" in given and parts[0].dim() > 1
        stacked[name] = torch.cat(parts) if packed else torch.stack(parts)
    return stacked


def _answered(prompt: str, answer: str) -> str:
    if not answer.strip():
        return prompt
    gap = "" if prompt[-1:].isspace() else " "
    return f"{prompt}{gap}{answer}"


def _labelled(
    sample: Sample, dialogue: list[Turn], prompt: list[int], row: list[int], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Return a row, ended, with its labels; a token merged across a border is the answer's."""
    end = tokenizer.eos_token_id
    ends = row[-1] == end or not sample.answer.strip()
    if not dialogue:
        row = row if ends else [*row, end]
        shared = shared_tokens(row, prompt)
        return row, [IGNORED] * shared + row[shared:]
    labels = [IGNORED] * len(row)
    for first, after in answer_spans(sample, dialogue, row, tokenizer):
        labels[first:after] = row[first:after]
    ending = [] if ends or dialogue[-1].ended else [end]
    return row + ending, labels + ending


def _pad_id(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _pad(rows: list[list[int]], value: int, side: str) -> Tensor:
    width = max(map(len, rows))
    padding = [[value] * (width - len(row)) for row in rows]
    left = side == "left"
    return torch.tensor(
        [pad + row if left else row + pad for pad, row in zip(padding, rows, strict=True)]
    )
