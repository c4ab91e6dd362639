"""Training of the embedded model from nothing.

    python -m qvlm_lightning.models.tiny.train --out DIR --seed 0

Each stage keeps a checkpoint under ``DIR/stages`` and goes on from it when started again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qvlm_lightning.models.tiny.build import TEXT_WIDTH, build_model, save
from qvlm_lightning.models.tiny.pool import draw_pool, normalise
from qvlm_lightning.models.tiny.stages import Hinted, question_loss, run_steps, tower_loss

EASY_WEIGHTS = {"attribute": 2.0, "existence": 1.0, "position": 1.0, "locate": 2.0, "cell": 2.0}
EASY_STEPS = 200
FAMILY_WEIGHTS = {
    "attribute": 1.0,
    "existence": 1.0,
    "counting": 1.5,
    "extreme": 1.3,
    "position": 0.7,
    "neighbor": 1.5,
    "relation": 1.5,
    "choice_image": 1.3,
    "locate": 0.5,
    "cell": 0.7,
}


def family_weights(step: int) -> dict[str, float]:
    """Say how often each image family is asked at a step: first the easy ones alone."""
    return EASY_WEIGHTS if step < EASY_STEPS else FAMILY_WEIGHTS


def open_log(path: Path) -> Callable[[dict[str, object]], None]:
    """Return a function that appends one JSON line with the seconds since now.

    Args:
        path: the log file.
    """
    began = time.time()

    def log(line: dict[str, object]) -> None:
        with path.open("a") as stream:
            stream.write(json.dumps({"seconds": round(time.time() - began, 1), **line}) + "\n")

    return log


@torch.no_grad()
def cache_features(net: Hinted, pixels: Tensor, batch: int = 256) -> Tensor:
    """Run the frozen tower once over all images of the pool.

    Args:
        net: the model.
        pixels: images as bytes.
        batch: images at a time.

    Returns:
        Patch features in bfloat16, on the CPU.
    """
    parts = []
    for start in range(0, len(pixels), batch):
        with torch.autocast(net.model.device.type, torch.bfloat16):
            part = net.tower(normalise(pixels[start : start + batch]).to(net.model.device))
        parts.append(part.to("cpu", torch.bfloat16))
    return torch.cat(parts)


@torch.no_grad()
def start_projector(net: Hinted, features: Tensor, wanted: float = 0.5) -> None:
    """Let the projector begin with what the tower learnt to tell apart.

    Whether a cell is empty makes up most of the variance of the tower's features, its row and
    column a few percent. The first layer therefore starts as a random mixture of the patch heads,
    each scaled to unit variance, and the second so that image tokens are as large as words.

    Args:
        net: the model, changed in place.
        features: some patch features.
        wanted: standard deviation of the projector's output.
    """
    projector = net.model.model.multi_modal_projector
    features = features.float().to(net.model.device)
    heads = list(net.patch_heads.values())
    weight = torch.cat([head.get_parameter("weight") for head in heads])
    seen = features.flatten(0, 1) @ weight.T
    mean, std = seen.mean(0), seen.std(0)
    mixture = torch.randn(TEXT_WIDTH, len(weight), device=weight.device) / len(weight) ** 0.5
    projector.linear_1.weight.copy_(1.5 * mixture @ (weight / std[:, None]))
    projector.linear_1.bias.copy_(-1.5 * mixture @ (mean / std))
    projector.linear_2.weight.mul_(wanted / projector(features).std())


def join(net: Hinted, tower: dict[str, Tensor], text: dict[str, Tensor]) -> None:
    """Put the trained tower and the decoder trained on texts together.

    Args:
        net: the model, changed in place.
        tower: state after the tower's stage.
        text: state after the decoder's stage.
    """
    spoken = ("model.lm_head", "model.model.language_model", "hint_heads")
    seen = ("model.model.vision_tower", "patch_heads")
    parts = {k: v for k, v in text.items() if k.startswith(spoken)}
    net.load_state_dict(
        parts | {k: v for k, v in tower.items() if k.startswith(seen)}, strict=False
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=("tower", "text", "joint", "all"), default="all")
    parser.add_argument("--pool", type=int, default=40000, help="training images")
    parser.add_argument("--tower-steps", type=int, default=2000)
    parser.add_argument("--text-steps", type=int, default=1000)
    parser.add_argument("--joint-steps", type=int, default=2600)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="fuse the decoder's layers")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the stages that are asked for and write the Hugging Face folder."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages = args.out / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    log = open_log(args.out / f"training_log_{args.stage}.jsonl")
    torch.manual_seed(args.seed)
    net = Hinted(build_model(args.seed)).to(device)
    model = net.model.model
    for layer in model.language_model.layers if args.compile else ():
        layer.compile(dynamic=True)
    common = {"seed": args.seed, "log": log}
    words = [
        *model.language_model.parameters(),
        *net.model.lm_head.parameters(),
        *net.hint_heads.parameters(),
    ]
    if args.stage in ("text", "all"):
        loss = question_loss(net, [], None, family_weights, rows=0, turns=0, text_rows=8)
        run_steps(
            net,
            words,
            loss,
            name="text",
            steps=args.text_steps,
            lr=args.lr,
            checkpoint=stages / "text.pt",
            **common,
        )
    if args.stage == "text":
        return
    scenes, pixels = draw_pool(args.pool, args.seed)
    sees = [*model.vision_tower.parameters(), *net.patch_heads.parameters()]
    sees = [p for p in sees if p.requires_grad]
    if args.stage in ("tower", "all"):
        loss = tower_loss(net, scenes, pixels, batch=64)
        run_steps(
            net,
            sees,
            loss,
            name="tower",
            steps=args.tower_steps,
            lr=1e-3,
            checkpoint=stages / "tower.pt",
            **common,
        )
    if args.stage == "tower":
        return
    join(net, torch.load(stages / "tower.pt")["net"], torch.load(stages / "text.pt")["net"])
    features = cache_features(net, pixels)
    start_projector(net, features[:512])
    loss = question_loss(net, scenes, features, family_weights, rows=16, turns=10, text_rows=3)
    run_steps(
        net,
        [*words, *model.multi_modal_projector.parameters()],
        loss,
        name="joint",
        steps=args.joint_steps,
        lr=args.lr,
        checkpoint=stages / "joint.pt",
        **common,
    )
    save(net.model, args.out)


if __name__ == "__main__":
    main()
