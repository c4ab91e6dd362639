"""Train the embedded model from nothing.

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

from qvlm_lightning.models.tiny.build import build_model, save
from qvlm_lightning.models.tiny.pool import draw_pool, normalise
from qvlm_lightning.models.tiny.stages import Hinted, question_loss, run_steps, tower_loss

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
def scale_projector(net: Hinted, features: Tensor, wanted: float = 0.5) -> None:
    """Scale the projector so that image tokens are about as large as word embeddings.

    Args:
        net: the model, changed in place.
        features: some patch features.
        wanted: standard deviation of the projector's output.
    """
    projector = net.model.model.multi_modal_projector
    features = features.float().to(net.model.device)
    projector.linear_1.weight.div_(features.std())
    projector.linear_1.bias.sub_(projector.linear_1(features).mean((0, 1)))
    projector.linear_2.weight.mul_(wanted / projector(features).std())


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=("tower", "text", "joint", "all"), default="all")
    parser.add_argument("--pool", type=int, default=60000, help="training images")
    parser.add_argument("--tower-steps", type=int, default=3000)
    parser.add_argument("--text-steps", type=int, default=3500)
    parser.add_argument("--joint-steps", type=int, default=12000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
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
    common = {"seed": args.seed, "log": log}
    words = [
        *model.language_model.parameters(),
        *net.model.lm_head.parameters(),
        *net.hint_heads.parameters(),
    ]
    if args.stage in ("text", "all"):
        loss = question_loss(net, [], None, {}, rows=0, turns=0, text_rows=8)
        run_steps(net, words, loss, name="text", steps=args.text_steps, lr=args.lr,
                  checkpoint=stages / "text.pt", **common)
    if args.stage == "text":
        return
    scenes, pixels = draw_pool(args.pool, args.seed)
    sees = [*model.vision_tower.parameters(), *net.patch_heads.parameters()]
    sees = [p for p in sees if p.requires_grad]
    loss = tower_loss(net, scenes, pixels, batch=64)
    run_steps(net, sees, loss, name="tower", steps=args.tower_steps, lr=1e-3,
              checkpoint=stages / "tower.pt", **common)
    if args.stage == "tower":
        return
    text = torch.load(stages / "text.pt", map_location=device)["net"]
    spoken = ("model.lm_head", "model.model.language_model", "hint_heads")
    net.load_state_dict({k: v for k, v in text.items() if k.startswith(spoken)}, strict=False)
    features = cache_features(net, pixels)
    scale_projector(net, features[:512])
    loss = question_loss(net, scenes, features, FAMILY_WEIGHTS, rows=16, turns=10, text_rows=3)
    run_steps(net, [*words, *model.multi_modal_projector.parameters()], loss, name="joint",
              steps=args.joint_steps, lr=args.lr, checkpoint=stages / "joint.pt", **common)
    save(net.model, args.out)


if __name__ == "__main__":
    main()
