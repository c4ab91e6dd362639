"""What a smaller head and int8 keys and values change in the embedded model's answers.

    OMP_NUM_THREADS=1 python benchmarks/effects.py --questions 500

Questions are those of development. Nothing else of the model is quantized.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import write
from torch import Tensor

from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.generate import end_tokens_of, generate
from qvlm_lightning.kernels import key_value_cache, quantize_head
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.models.tiny import generate as questions_of

CHOICES = {
    "as it is": (None, "full"),
    "keys and values int8": (None, "int8"),
    "head 8 bits": (8, "full"),
    "head 4 bits": (4, "full"),
    "head 8 bits, keys and values int8": (8, "int8"),
}
Answer = tuple[list[int], Tensor]


def answers(
    samples: Sequence[Sample], head_bits: int | None, kv_cache: str, batch_size: int = 50
) -> list[Answer]:
    """Return the tokens of every answer, and the log-probabilities of its first one."""
    family = Llava(str(WEIGHTS))
    model: Any = family.load_model().eval()
    processor: Any = family.load_processor()
    if head_bits is not None:
        quantize_head(model, head_bits, None)
    ends, found = end_tokens_of(model, processor), []
    for start in range(0, len(samples), batch_size):
        batch = collate(samples[start : start + batch_size], processor, with_answer=False)
        cache = key_value_cache(model.config, kv_cache)
        said = generate(model, batch, ends, 8, cache=cache)
        found += list(zip(said.rows(), said.log_probs, strict=True))
    return found


def row(name: str, found: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, Any]:
    """Return a row of the table: against the answers of the model as it is."""
    changed = sum(a != b for (a, _), (b, _) in zip(found, exact, strict=True))
    q, p = (torch.stack([x for _, x in part]).double() for part in (found, exact))
    divergence = (p.exp() * (p - q)).sum(dim=1)
    return {
        "choice": name,
        "questions": len(exact),
        "changed answers": changed,
        "mean KL, nats": f"{float(divergence.mean()):.1e}",
        "largest KL": f"{float(divergence.max()):.1e}",
    }


def main() -> None:
    """Answer with every choice, compare with the first, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/effects"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    made = questions_of("development", options.questions)
    samples = [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]
    found = {name: answers(samples, *choice) for name, choice in CHOICES.items()}
    exact = found["as it is"]
    rows = [row(name, part, exact) for name, part in found.items()]
    write(rows, options.out, "effects", "Embedded model, development questions")


if __name__ == "__main__":
    main()
