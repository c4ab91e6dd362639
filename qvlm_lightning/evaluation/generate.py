"""Greedy answers of a batch of questions.

Shapes: B questions, T prompt tokens, P tokens of the shared prefix, V words of the vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.data.collate import Batch, model_inputs


@dataclass(frozen=True)
class Answers:
    """What a model says to a batch of questions."""

    tokens: Tensor
    """[B, <= max_new_tokens] token ids; whatever follows a row's end token means nothing."""
    log_probs: Tensor
    """[B, V] log-probabilities of the first answer token, float32, in nats."""


@torch.no_grad()
def generate(
    model: nn.Module,
    batch: Batch,
    end_tokens: Collection[int],
    max_new_tokens: int,
    image_token: int | None = None,
) -> Answers:
    """Answer greedily until every row has ended.

    Equal to the model's own ``generate`` without sampling, and faster where questions share images:
    what comes before the questions, the image with it, is then computed once per image.

    Args:
        model: a Hugging Face vision-language model.
        batch: left-padded prompts from :func:`~qvlm_lightning.data.collate.collate`.
        end_tokens: tokens that end an answer.
        max_new_tokens: longest answer, its end token included.
        image_token: the image placeholder; None never shares.

    Returns:
        Token ids, and the log-probabilities of the first one.
    """
    mask = batch["attention_mask"]
    shared = _shared_prefix(batch, image_token)
    if shared:
        cache = _image_cache(model, batch, shared)
        width = mask.shape[1] - shared  # the longest row has no padding: it ends where all do
        ids, own = batch["input_ids"][:, -width:], mask[:, -width:].clone()
        # a short row's last `width` tokens reach into its own prefix, which the cache already holds
        rest = mask.sum(1, keepdim=True) - shared
        own[torch.arange(width, device=own.device) < width - rest] = 0
        mask = torch.cat([mask.new_ones(len(mask), shared), own], dim=1)
        first = {"input_ids": ids, "past_key_values": cache}
    else:
        first = model_inputs(batch)
    first["attention_mask"] = mask
    places = _positions(mask)
    first["position_ids"] = places[:, -first["input_ids"].shape[1] :]
    out = model(**first, use_cache=True, logits_to_keep=1)
    log_probs = out.logits[:, -1].float().log_softmax(-1)
    ends = torch.tensor(sorted(end_tokens), device=mask.device)
    token = log_probs.argmax(-1)
    tokens, ended = [token], torch.isin(token, ends)
    place = places[:, -1]
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        place = place + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=place[:, None],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        token = out.logits[:, -1].argmax(-1)
        tokens.append(token)
        ended |= torch.isin(token, ends)
    return Answers(torch.stack(tokens, dim=1), log_probs)


def cut_at_end(tokens: list[int], end_tokens: Collection[int]) -> list[int]:
    """Return the tokens before the first end token.

    Example:
        >>> cut_at_end([7, 8, 2, 9], {2})
        [7, 8]
    """
    stop = next((place for place, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return tokens[:stop]


def end_tokens_of(model: Any, processor: Any) -> set[int]:
    """Return the tokens that end an answer, after the model's generation settings."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {t for t in [*listed, processor.tokenizer.eos_token_id] if t is not None}


def _positions(mask_BT: Tensor) -> Tensor:
    return (mask_BT.cumsum(-1) - 1).clamp_min(0)


def _shared_prefix(batch: Batch, image_token: int | None) -> int:
    """Count the leading tokens that all rows share, 0 unless that saves work on images."""
    if image_token is None or "image_index" not in batch or not bool(batch["has_image"].all()):
        return 0
    index, ids, mask = batch["image_index"], batch["input_ids"], batch["attention_mask"]
    if len(index) != len(ids) or int(index.max()) + 1 == len(ids):
        return 0
    length = mask.sum(1)
    start = ids.shape[1] - length
    # one token at least stays outside the prefix: its output is the answer
    columns = torch.arange(int(length.min()) - 1, device=ids.device)
    heads = ids.gather(1, start[:, None] + columns)
    same = (heads == heads[0]).all(0)
    prefix = int(same.long().cumprod(0).sum())
    placeholders = (ids == image_token).sum(1)
    inside = (heads[:, :prefix] == image_token).sum(1)
    return prefix if bool((placeholders == inside).all()) else 0


def _image_cache(model: nn.Module, batch: Batch, prefix: int) -> Any:
    """Run the shared prefix once per distinct image and hand each row its copy of the cache."""
    index = batch["image_index"]
    row_of = torch.zeros(int(index.max()) + 1, dtype=torch.long, device=index.device)
    rows = torch.arange(len(index), device=index.device)
    row_of[index] = rows  # any row with the image will do
    ids, length = batch["input_ids"], batch["attention_mask"].sum(1)
    start = int(ids.shape[1] - length[0])
    heads = ids[:1, start : start + prefix].expand(len(row_of), -1)
    out = model(
        input_ids=heads,
        attention_mask=torch.ones_like(heads),
        pixel_values=batch["pixel_values"][row_of],
        use_cache=True,
        logits_to_keep=1,
    )
    out.past_key_values.batch_select_indices(index)
    return out.past_key_values
