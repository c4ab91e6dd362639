"""Greedy answers of a batch of questions.

Shapes: B questions, T prompt tokens, P tokens of the shared prefix, V words of the vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.data.collate import Batch
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import model_inputs


@dataclass(frozen=True)
class Answers:
    """What a model says to a batch of questions."""

    tokens: Tensor
    """[B, <= max_new_tokens] token ids; whatever follows a row's length means nothing."""
    lengths: Tensor
    """[B] tokens of each answer, without the end token, with those of a stop string."""
    log_probs: Tensor
    """[B, V] log-probabilities of the first answer token, float32, in nats."""
    finite: Tensor
    """[B] whether the largest logit of every token up to the end was a number."""

    def rows(self) -> list[list[int]]:
        """Return the token ids of each answer."""
        pairs = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return [row[:length] for row, length in pairs]

    def check(self, ids: Sequence[str]) -> None:
        """Refuse answers that were read off logits that are none.

        Args:
            ids: of the questions, one per row.

        Raises:
            InputError: a logit was NaN or infinite; names the first such question.
        """
        for name, fine in zip(ids, self.finite.tolist(), strict=True):
            if not fine:
                raise InputError(
                    f"the model's logits for question {name!r} are NaN or infinite: its weights, "
                    "or what it computes in this type, do not answer"
                )


@torch.no_grad()
def generate(
    model: nn.Module,
    batch: Batch,
    end_tokens: Collection[int],
    max_new_tokens: int,
    image_token: int | None = None,
    stopped: Callable[[list[int]], bool] | None = None,
    cache: Any = None,
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
        stopped: says of an answer's tokens so far whether they hold a stop string; it ends a row
            like an end token, whatever the other rows of the batch still do.
        cache: an empty cache of transformers for keys and values, where images are not shared;
            default the model's own.

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
        if cache is not None:
            first["past_key_values"] = cache
    first["attention_mask"] = mask
    places = positions(mask)
    # patches at the image's own resolution have positions in three axes, which the model works out
    grids = "image_grid_thw" in first
    if not grids:
        first["position_ids"] = places[:, -first["input_ids"].shape[1] :]
    out = model(**first, use_cache=True, logits_to_keep=1)
    log_probs = out.logits[:, -1].float().log_softmax(-1)
    finite = ~log_probs.isnan().any(-1)
    token = log_probs.argmax(-1)
    written = _Written(len(mask), torch.tensor(sorted(end_tokens), device=mask.device), stopped)
    written.add(token)
    place = places[:, -1]
    if grids:
        inner: Any = model.model
        place = place + inner.rope_deltas[:, 0]
    while len(written.tokens) < max_new_tokens and not bool(written.ended.all()):
        place = place + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=place[:, None],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        finite &= written.ended | out.logits[:, -1].amax(-1).isfinite()
        token = out.logits[:, -1].argmax(-1)
        written.add(token)
    return Answers(torch.stack(written.tokens, dim=1), written.lengths, log_probs, finite)


class _Written:
    """The tokens of a batch so far, and which rows have ended."""

    def __init__(
        self, rows: int, ends: Tensor, stopped: Callable[[list[int]], bool] | None
    ) -> None:
        self.ends, self.stopped = ends, stopped
        self.tokens: list[Tensor] = []
        self.ended = torch.zeros(rows, dtype=torch.bool, device=ends.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=ends.device)

    def add(self, token: Tensor) -> None:
        """Add one token per row; rows that have ended only keep in step."""
        self.tokens.append(token)
        at_end = torch.isin(token, self.ends)
        self.lengths += ~self.ended & ~at_end
        self.ended |= at_end
        if self.stopped is not None:
            columns = torch.stack(self.tokens, dim=1)
            for row in (~self.ended).nonzero().flatten().tolist():
                self.ended[row] = self.stopped(columns[row].tolist())


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the stop strings.

    Args:
        text: what was generated.
        stop: strings that end an answer.

    Example:
        >>> cut_at_stop("red. And blue", ("#", ".")), cut_at_stop("red", ())
        ('red', 'red')
    """
    return text[: min((place for s in stop if (place := text.find(s)) >= 0), default=len(text))]


def end_tokens_of(model: Any, processor: Any, stop: Collection[str] = ()) -> set[int]:
    """Return the tokens that end an answer, after the model's generation settings.

    Args:
        model: a Hugging Face model.
        processor: its processor.
        stop: strings that end an answer; those that are one added token, such as ``<|im_end|>``,
            count as end tokens, because decoding may leave them out.
    """
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    added = processor.tokenizer.get_added_vocab()
    special = [added[s] for s in stop if s in added]
    return {t for t in [*listed, *special, processor.tokenizer.eos_token_id] if t is not None}


def image_token_of(processor: Any) -> int | None:
    """Return the token that stands for an image, or for a part of one; None where there is none.

    Args:
        processor: of a Hugging Face model.
    """
    image = getattr(processor, "image_token", None)
    return None if image is None else int(processor.tokenizer.convert_tokens_to_ids(image))


def positions(mask_BT: Tensor) -> Tensor:
    """Return the place of every token in its own text, whatever is padded before it."""
    return (mask_BT.cumsum(-1) - 1).clamp_min(0)


def _shared_prefix(batch: Batch, image_token: int | None) -> int:
    """Count the leading tokens that all rows share, 0 unless that saves work on images."""
    if image_token is None or "image_index" not in batch or "image_grid_thw" in batch:
        return 0  # packed patches: the rows of an image are not one row
    if not bool(batch["has_image"].all()):
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
