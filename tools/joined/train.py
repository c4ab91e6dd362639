"""Train the adapter: ``python -m tools.joined.train --parts DIR --data DIR --minutes 60``.

First the projector alone is regressed onto the words that a picture's answers are, patch by patch.
Then low-rank updates of the language model and the projector learn conversations about pictures;
the tower and all other weights stay as they are.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.joined import adapter
from tools.joined.assemble import assemble, read_language, read_tower
from tools.joined.parts import LANGUAGE, TOWER, check_disk, path_of
from tools.joined.questions import YES_NO, Picture, easy_vqa, generated

LOG = Path(__file__).parent / "training.jsonl"
TURNS, PICTURES = 9, 2  # of a conversation; of a step
OPEN = 3  # at most as many open questions in a conversation
UPDATES, PROJECTOR = 1.5e-3, 3e-4  # learning rates
START = 1e-3, 32, 600  # learning rate, pictures and steps of the projector's start
GENERATED = 600


def main(argv: list[str] | None = None) -> None:
    """Train, save the adapter and write its log."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--parts", type=Path, required=True, help="where the packages are")
    parser.add_argument("--data", type=Path, required=True, help="folder of easy-VQA")
    parser.add_argument("--minutes", type=float, default=60, help="of the low-rank updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=adapter.FILE)
    args = parser.parse_args(argv)
    files = [path_of(part, args.parts) for part in (LANGUAGE, TOWER)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    check_disk(args.output.parent)
    torch.manual_seed(args.seed)
    language, tokenizer = read_language(files[0])
    model, processor = assemble(language, tokenizer, read_tower(files[1]), args.seed)
    model.requires_grad_(False)
    pictures = easy_vqa(args.data, "train") + generated(GENERATED, args.seed)
    with args.output.with_suffix(".jsonl").open("w", encoding="utf-8") as file:

        def note(**values: Any) -> None:
            line = json.dumps(values | {"seconds": round(time.process_time())})
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()

        note(seed=args.seed, minutes=args.minutes, pictures=len(pictures), commit=_commit())
        features = tower_features(model, processor, pictures)
        start_projector(model, processor.tokenizer, pictures, features, args.seed, note)
        updates = adapter.put_in(model)
        learn(model, processor.tokenizer, pictures, features, updates, args, note)
    metadata = {"seed": str(args.seed), "minutes": str(args.minutes), "commit": _commit()}
    adapter.save(model, updates, metadata, args.output)


@torch.no_grad()
def tower_features(model: Any, processor: Any, pictures: Sequence[Picture]) -> Tensor:
    """Return what the tower makes of every picture: [pictures, patches, D] bfloat16."""
    found = []
    for first in range(0, len(pictures), 40):
        images = [picture.image for picture in pictures[first : first + 40]]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        found.append(states[-1][:, 1:].to(torch.bfloat16))
    return torch.cat(found)


def start_projector(
    model: Any,
    tokenizer: Any,
    pictures: Sequence[Picture],
    features: Tensor,
    seed: int,
    note: Callable[..., None],
) -> None:
    """Regress the projector onto word embeddings: patches in turn, a picture's open answers."""
    words = [sorted({a for _, a in p.turns if a.isalpha()} - {*YES_NO}) for p in pictures]
    known = [n for n, these in enumerate(words) if these]
    table = model.get_input_embeddings().weight
    patches = features.shape[1]
    projector = model.get_submodule(adapter.PROJECTOR).requires_grad_(True)
    lr, count, steps = START
    optimizer = torch.optim.AdamW(projector.parameters(), lr, weight_decay=0.01)
    draw = Random(f"start/{seed}")
    scale = table.std()
    for step in range(steps):
        chosen = draw.sample(known, count)
        ids = [
            [_first_token(tokenizer, words[n][p % len(words[n])]) for p in range(patches)]
            for n in chosen
        ]
        target = table[torch.tensor(ids)] / scale
        loss = F.mse_loss(projector(features[chosen].float()) / scale, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            note(stage="projector", step=step, loss=float(loss.detach()))


def learn(
    model: Any,
    tokenizer: Any,
    pictures: Sequence[Picture],
    features: Tensor,
    updates: dict[str, adapter.LowRank],
    args: argparse.Namespace,
    note: Callable[..., None],
) -> None:
    """Learn conversations until the time is over; the learning rate falls linearly to 5 %."""
    projector = list(model.get_submodule(adapter.PROJECTOR).parameters())
    low_rank = [p for update in updates.values() for p in (update.a, update.b)]
    groups = [{"params": low_rank, "lr": UPDATES}, {"params": projector, "lr": PROJECTOR}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    draw, order, right, step = Random(f"learn/{args.seed}"), [], 0.0, 0
    began, seconds = time.monotonic(), 60 * args.minutes
    while (passed := (time.monotonic() - began) / seconds) < 1:
        if len(order) < PICTURES:
            order = list(range(len(pictures)))
            draw.shuffle(order)
        chosen = [order.pop() for _ in range(PICTURES)]
        talks = [conversation(pictures[n], tokenizer, features.shape[1], draw) for n in chosen]
        factor = min(1, (step + 1) / 8) * max(0.05, 1 - passed)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss, hits = loss_of(model, talks, features[chosen].float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*low_rank, *projector], 1.0)
        optimizer.step()
        right = hits if step == 0 else 0.95 * right + 0.05 * hits
        if step % 20 == 0:
            note(stage="updates", step=step, loss=round(float(loss.detach()), 4), right=right)
            metadata = {"seed": str(args.seed), "step": str(step), "commit": _commit()}
            adapter.save(model, updates, metadata, args.output)
        step += 1
    note(stage="updates", step=step, right=right)


def conversation(
    picture: Picture, tokenizer: Any, patches: int, draw: Random
) -> tuple[list[int], list[int]]:
    """Return token ids of some turns about a picture, and labels (-100 for what is not learned)."""
    turns = list(picture.turns)
    draw.shuffle(turns)
    open_ = [turn for turn in turns if turn[1] not in YES_NO][:OPEN]
    turns = open_ + [turn for turn in turns if turn[1] in YES_NO][: TURNS - len(open_)]
    draw.shuffle(turns)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    image = [tokenizer.convert_tokens_to_ids(tokenizer.image_token)] * patches + tokens("\n")
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(turns):
        asked = tokens("<|im_start|>user\n") + (image if number == 0 else [])
        asked += tokens(f"{question}<|im_end|>\n<|im_start|>assistant\n")
        told, behind = tokens(f"{answer}<|im_end|>"), tokens("\n")
        ids += asked + told + behind
        labels += [-100] * len(asked) + told + [-100] * len(behind)
    return ids, labels


def loss_of(
    model: Any, talks: Sequence[tuple[list[int], list[int]]], features: Tensor
) -> tuple[Tensor, float]:
    """Return the loss of some conversations, and which share of the first answer tokens is right.

    Args:
        model: with updates.
        talks: of :func:`conversation`.
        features: [talks, patches, D] of the tower.
    """
    length = max(len(ids) for ids, _ in talks)
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([x + [pad] * (length - len(x)) for x, _ in talks])
    labels = torch.tensor([y + [-100] * (length - len(y)) for _, y in talks])
    embedded = model.get_input_embeddings()(ids)
    projected = model.get_submodule(adapter.PROJECTOR)(features)
    places = (ids == model.config.image_token_id)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(places, projected)
    hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state[:, :-1]
    target = labels[:, 1:]
    learned = target != -100
    logits = model.lm_head(hidden[learned])
    first = learned & ~F.pad(learned, (1, 0))[:, :-1]
    hits = (logits.argmax(-1) == target[learned])[first[learned]]
    return F.cross_entropy(logits, target[learned]), float(hits.float().mean())


def _first_token(tokenizer: Any, word: str) -> int:
    return int(tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0])


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
