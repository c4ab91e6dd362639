"""Answers of packed artifacts against those of the fake-quantized model.

    OMP_NUM_THREADS=1 python benchmarks/answers.py runs/demo/artifact --questions 2000

Questions are those of the embedded model's test split, or with ``--easy-vqa FOLDER`` those of
easy-VQA, for artifacts of the joined model (docs/joined.md). Of every answer that differs the
margin is printed: how far the simulation's best first token lies above its second best, in logits.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import clock, write

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.data.source import Source
from qvlm_lightning.evaluation.generate import end_tokens_of, generate, image_token_of
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import generate as questions_of
from qvlm_lightning.tasks import TaskData
from qvlm_lightning.tasks.easy_vqa import EasyVQA

BATCH, LONGEST = 50, 8
Answer = tuple[list[int], float]


def answers(samples: Sequence[Sample], folder: Path, packed: bool) -> tuple[list[Answer], float]:
    """Return the tokens of every answer with the margin of its first one, and seconds."""
    artifact = load_artifact(folder, packed=packed)
    artifact.structure.keep_only_quantized()
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


def easy_vqa(data: Path, artifact: Path, count: int) -> list[Sample]:
    """Return the first test questions of easy-VQA, asked as the joined model was trained."""
    task, source = EasyVQA(mode="exact", prompt="bare"), Source(str(data), split="test")
    return TaskData(Llava(str(artifact)), task, source, evaluation_count=count).evaluation_samples()


def row(folder: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the row of an artifact."""
    expected, slow = answers(samples, folder, packed=False)
    found, fast = answers(samples, folder, packed=True)
    pairs = zip(expected, found, strict=True)
    margins = sorted(margin for (a, margin), (b, _) in pairs if a != b)
    return {
        "artifact": folder.parent.name if folder.name == "artifact" else folder.name,
        "questions": len(samples),
        "equal answers %": round(100 - 100 * len(margins) / len(samples), 2),
        "margins of the others": ", ".join(f"{x:.3f}" for x in margins) or "none",
        "seconds simulated": round(slow, 1),
        "seconds packed": round(fast, 1),
    }


def main() -> None:
    """Compare the answers of every artifact, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--easy-vqa", type=Path, metavar="FOLDER", help="ask its test questions")
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
    rows = [row(folder, samples) for folder in options.artifacts]
    write(rows, options.out, "answers", f"{model} model, test questions")


if __name__ == "__main__":
    main()
