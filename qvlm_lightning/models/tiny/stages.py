"""The three stages of training: the tower alone, the decoder on texts, then both together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from qvlm_lightning.files import writing
from qvlm_lightning.models.tiny.build import (
    FEATURE_LAYER,
    IMAGE_TOKENS,
    PATCH_SIZE,
    TEXT_WIDTH,
    VISION_WIDTH,
)
from qvlm_lightning.models.tiny.packing import IDS, Packed, pack
from qvlm_lightning.models.tiny.pool import (
    LABEL_SIZES,
    image_turns,
    normalise,
    patch_labels,
    text_turns,
)
from qvlm_lightning.models.tiny.scenes import GRID, Scene

HINTS = {
    "cell": (3, GRID * GRID),
    "target": (4, GRID * GRID),
    "bound": (2, 0),
    "word": (3, 0),
    "last": (4, 0),
    "letter": (2, 3),
    "fit": (4, 2),
}
"""Decoder layer after which each kind of hint is read, and its classes (0 = the vocabulary)."""
HINT_WEIGHT = 0.5
SLOW = {"linear_1": 0.02, "linear_2": 0.1}
"""Share of the learning rate that each layer of the projector gets."""


class Hinted(nn.Module):
    """The model with the linear heads that only training uses."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        # On CPUs the backward pass of fused attention is several times slower than this.
        model.set_attn_implementation("eager")
        self.patch_heads = nn.ModuleDict(
            {name: nn.Linear(VISION_WIDTH, size) for name, size in LABEL_SIZES.items()}
        )
        self.hint_heads = nn.ModuleDict(
            {kind: nn.Linear(TEXT_WIDTH, size or len(IDS)) for kind, (_, size) in HINTS.items()}
        )

    def tower(self, pixel_values: Tensor) -> Tensor:
        """Return the patch features the projector reads."""
        seen = self.model.model.vision_tower(pixel_values, output_hidden_states=True)
        return seen.hidden_states[FEATURE_LAYER][:, 1:]

    def read(self, packed: Packed, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the decoder over packed rows.

        Args:
            packed: the rows.
            features: patch features of each row's image, or None for rows without image.

        Returns:
            Loss per answer, and the hint loss; ``self.correct`` and ``self.hinted`` keep which
            answers and which part of each kind of hint were right.
        """
        device = self.model.device
        decoder = self.model.model.language_model
        embeds = decoder.embed_tokens(packed.input_ids.to(device))
        if features is not None:
            image = self.model.model.multi_modal_projector(features)
            embeds = torch.cat(
                [embeds[:, :2], image.to(embeds.dtype), embeds[:, 2 + IMAGE_TOKENS :]], dim=1
            )
        out = decoder(
            inputs_embeds=embeds,
            attention_mask=torch.where(packed.may_look, 0.0, -1e4).to(device),
            position_ids=packed.position_ids.to(device),
            output_hidden_states=True,
            use_cache=False,
        )
        at = packed.answer_at.to(device)
        last = out.last_hidden_state.flatten(0, 1)
        logits = self.model.lm_head(last[torch.cat([at, at + 1])]).float()
        ends = torch.full_like(at, IDS["</s>"])
        loss = F.cross_entropy(
            logits, torch.cat([packed.answer_id.to(device), ends]), reduction="none"
        )
        answer_loss = loss[: len(at)] + 0.1 * loss[len(at) :]
        hint_loss = answer_loss.new_zeros(())
        self.hinted = {}
        for kind, (layer, _) in HINTS.items():
            if len(packed.hint_value[kind]):
                hidden = out.hidden_states[layer].flatten(0, 1)[packed.hint_at[kind].to(device)]
                hidden = F.rms_norm(hidden.float(), hidden.shape[-1:])
                guess = self.hint_heads[kind](hidden).float()
                wanted = packed.hint_value[kind].to(device)
                hint_loss = hint_loss + F.cross_entropy(guess, wanted)
                self.hinted[f"hint_{kind}"] = (guess.argmax(-1) == wanted).float().mean().item()
        self.correct = (logits[: len(at)].argmax(-1).cpu() == packed.answer_id).tolist()
        return answer_loss, hint_loss


def make_optimizers(
    net: Hinted, parameters: list[nn.Parameter], lr: float
) -> list[torch.optim.Optimizer]:
    """Use Muon for the matrices of the decoder's layers, AdamW for everything else.

    The tower's features are an order of magnitude larger than word embeddings, so that Adam's
    step would blow the projector up within a hundred steps; it learns more slowly instead.

    Args:
        net: the model with its training heads.
        parameters: what to train.
        lr: learning rate of AdamW; Muon's is twice that, at AdamW's update size.

    Returns:
        The optimizers; every group keeps its highest learning rate as ``top``.
    """
    layers = net.model.model.language_model.layers
    projector = net.model.model.multi_modal_projector
    matrices = {id(p) for p in layers.parameters() if p.ndim == 2}
    slow = {id(p): SLOW["linear_1"] for p in projector.linear_1.parameters()}
    slow |= {id(p): SLOW["linear_2"] for p in projector.linear_2.parameters()}
    inner = [p for p in parameters if id(p) in matrices]
    groups = [
        {
            "params": [
                p for p in parameters if id(p) not in matrices and slow.get(id(p), 1) == pace
            ],
            "lr": lr * pace,
        }
        for pace in (1, *SLOW.values())
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.02)
    ]
    if inner:
        optimizers.append(
            torch.optim.Muon(inner, lr=2 * lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["top"] = group["lr"]
    return optimizers


def run_steps(
    net: Hinted,
    parameters: list[nn.Parameter],
    step_loss: Callable[[int, Random], tuple[Tensor, dict[str, float]]],
    *,
    name: str,
    steps: int,
    lr: float,
    seed: int,
    checkpoint: Path,
    log: Callable[[dict[str, object]], None],
    every: int = 100,
) -> None:
    """Optimise with AdamW, warm-up and cosine decay; resume from ``checkpoint`` if it is there.

    Args:
        net: the model with its training heads.
        parameters: what to train.
        step_loss: gives the loss and the numbers to log, from the step and its own randomness.
        name: name of the stage.
        steps: how many steps the stage has.
        lr: highest learning rate.
        seed: seed of the stage.
        checkpoint: file that holds the stage's progress.
        log: takes one dictionary per ``every`` steps.
        every: steps between log lines and between checkpoints.
    """
    optimizers = make_optimizers(net, parameters, lr)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=net.model.device)
        net.load_state_dict(state["net"])
        start = state["step"]
        if start < steps:
            for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
    sums: dict[str, list[float]] = defaultdict(list)
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=5)
    for step in bar:
        warm = min(1.0, (step + 1) / 100)
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = group["top"] * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        with torch.autocast(net.model.device.type, torch.bfloat16):
            loss, numbers = step_loss(step, Random(f"{name}/{seed}/{step}"))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for key, value in numbers.items():
            sums[key].append(value)
        if (step + 1) % every == 0 or step + 1 == steps:
            means = {key: round(sum(v) / len(v), 4) for key, v in sums.items()}
            log({"stage": name, "step": step + 1, **means})
            sums.clear()
            kept = [optimizer.state_dict() for optimizer in optimizers]
            state = {"net": net.state_dict(), "optimizers": kept, "step": step + 1}
            with writing(checkpoint) as partial:
                torch.save(state, partial)


def tower_loss(
    net: Hinted, scenes: list[Scene], pixels: Tensor, batch: int
) -> Callable[[int, Random], tuple[Tensor, dict[str, float]]]:
    """Stage 1: every patch names the object of its cell and where the cell is.

    Returns:
        The loss of a step, for ``run_steps``.
    """
    labels = torch.stack([patch_labels(scene, PATCH_SIZE) for scene in scenes]).to(torch.uint8)

    def loss_of(step: int, rng: Random) -> tuple[Tensor, dict[str, float]]:
        rows = torch.tensor(rng.sample(range(len(scenes)), batch))
        features = net.tower(normalise(pixels[rows]).to(net.model.device))
        wanted = labels[rows].long().to(net.model.device).flatten(0, 1)
        total, right = features.new_zeros(()), {}
        for number, (name, head) in enumerate(net.patch_heads.items()):
            guess = head(features.flatten(0, 1)).float()
            total = total + F.cross_entropy(guess, wanted[:, number])
            right[name] = (guess.argmax(-1) == wanted[:, number]).float().mean().item()
        return total, {"loss": total.item(), **right}

    return loss_of


def question_loss(
    net: Hinted,
    scenes: list[Scene],
    features: Tensor | None,
    weights: Callable[[int], dict[str, float]],
    *,
    rows: int,
    turns: int,
    text_rows: int,
) -> Callable[[int, Random], tuple[Tensor, dict[str, float]]]:
    """Stages 2 and 3: answer packed questions; without ``features`` only those on texts.

    Returns:
        The loss of a step, for ``run_steps``.
    """

    def loss_of(step: int, rng: Random) -> tuple[Tensor, dict[str, float]]:
        right: dict[str, list[bool]] = defaultdict(list)
        losses, hints = [], []
        hinted_right: dict[str, float] = {}
        if features is not None:
            picked = [rng.randrange(len(scenes)) for _ in range(rows)]
            packed = pack([image_turns(scenes[i], rng, weights(step), turns) for i in picked], True)
            answer, hint = net.read(packed, features[torch.tensor(picked)].to(net.model.device))
            losses.append(answer)
            hints.append(hint)
            hinted_right |= net.hinted
            for family, correct in zip(packed.family, net.correct, strict=True):
                right[family].append(correct)
        if text_rows:
            packed = pack([text_turns(rng, 8) for _ in range(text_rows)], False)
            answer, hint = net.read(packed, None)
            losses.append(answer)
            hints.append(hint)
            hinted_right |= net.hinted
            for family, correct in zip(packed.family, net.correct, strict=True):
                right[family].append(correct)
        answers = torch.cat(losses).mean()
        hinted = torch.stack(hints).mean()
        numbers = {"loss": answers.item(), "hint": hinted.item()}
        numbers |= hinted_right
        numbers |= {family: sum(v) / len(v) for family, v in right.items()}
        return answers + HINT_WEIGHT * hinted, numbers

    return loss_of
