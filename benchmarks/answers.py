"""Answers of packed artifacts against those of the fake-quantized model.

    OMP_NUM_THREADS=1 python benchmarks/answers.py runs/demo/artifact --questions 2000

Questions are those of the embedded model's test split, or with ``--easy-vqa FOLDER`` those of
easy-VQA, for artifacts of the joined model (docs/joined.md). Of every answer that differs the
margin is printed: how far the simulation's best first token lies above its second best, in logits.
``--noise 6e-8`` also compares the simulation with itself while the output of every quantized layer
is multiplied by 1 + 6e-8 z, z normal: what another order of float32 sums does.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import clock, write
from torch import nn

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.data.source import Source
from qvlm_lightning.evaluation.generate import end_tokens_of, generate, image_token_of
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import generate as questions_of
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.tasks import TaskData
from qvlm_lightning.tasks.easy_vqa import EasyVQA

BATCH, LONGEST = 50, 8
Answer = tuple[list[int], float]


def answers(
    samples: Sequence[Sample], folder: Path, packed: bool, noise: float = 0.0
) -> tuple[list[Answer], float]:
    """Return the tokens of every answer with the margin of its first one, and seconds."""
    artifact = load_artifact(folder, packed=packed)
    artifact.structure.keep_only_quantized()
    if noise:
        disturb(artifact.model, noise)
    processor: Any = artifact.processor
    ends, image = end_tokens_of(artifact.model, processor), image_token_of(processor)
    found: list[Answer] = []
    taken = 0.0
    for start in range(0, len(samples), BATCH):
        batch = collate(samples[start : start + BATCH], processor, with_answer=False)
        began = clock()
        said = generate(artifact.model, batch, ends, LONGEST, image)
        taken += clock() - began
        best = said.log_probs.topk(2).values
        found += list(zip(said.rows(), (best[:, 0] - best[:, 1]).tolist(), strict=True))
    return found, taken


def disturb(model: nn.Module, noise: float) -> None:
    """Multiply outputs of fake-quantized layers by 1 + noise z from now on, z normal, seed 0."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.register_forward_hook(
                lambda _, __, y: y + (noise * torch.randn(y.shape, generator=draw) * y).to(y.dtype)
            )


def easy_vqa(data: Path, artifact: Path, count: int) -> list[Sample]:
    """Return the first test questions of easy-VQA, asked as the joined model was trained."""
    task, source = EasyVQA(mode="exact", prompt="bare"), Source(str(data), split="test")
    return TaskData(Llava(str(artifact)), task, source, evaluation_count=count).evaluation_samples()


def row(folder: Path, samples: Sequence[Sample], noise: float = 0.0) -> dict[str, Any]:
    """Return the row of an artifact."""
    expected, slow = answers(samples, folder, packed=False)
    found, fast = answers(samples, folder, packed=True)
    made = {
        "artifact": folder.parent.name if folder.name == "artifact" else folder.name,
        "questions": len(samples),
        **compared(expected, found),
        "seconds simulated": round(slow, 1),
        "seconds packed": round(fast, 1),
    }
    if noise:
        disturbed, _ = answers(samples, folder, packed=False, noise=noise)
        made |= {f"{k}, noise": v for k, v in compared(expected, disturbed).items()}
    return made


def compared(expected: Sequence[Answer], found: Sequence[Answer]) -> dict[str, Any]:
    """Return how many answers are equal, the margins of the others, and how far margins moved."""
    pairs = list(zip(expected, found, strict=True))
    margins = sorted(margin for (a, margin), (b, _) in pairs if a != b)
    moved = sum(abs(margin - other) for (_, margin), (_, other) in pairs) / len(pairs)
    return {
        "equal answers %": round(100 - 100 * len(margins) / len(pairs), 2),
        "margins of the others": ", ".join(f"{x:.3f}" for x in margins) or "none",
        "margins move by": round(moved, 4),
    }


def main() -> None:
    """Compare the answers of every artifact, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--easy-vqa", type=Path, metavar="FOLDER", help="ask its test questions")
    parser.add_argument("--noise", type=float, default=0.0, help="relative, of layers' outputs")
    parser.add_argument("--out", type=Path, default=Path("runs/answers"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.easy_vqa is None:
        made, model = questions_of("test", options.questions), "Embedded"
        samples = [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]
    else:
        samples, model = (
            easy_vqa(options.easy_vqa, options.artifacts[0], options.questions),
            "Joined",
        )
    rows = [row(folder, samples, options.noise) for folder in options.artifacts]
    write(rows, options.out, "answers", f"{model} model, test questions")


if __name__ == "__main__":
    main()
