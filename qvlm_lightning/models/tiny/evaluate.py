"""Measurements of a model on the embedded task, with controls that see no image or the wrong one.

python -m qvlm_lightning.models.tiny.evaluate --count 8000 --json results.json
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from qvlm_lightning.files import write_json
from qvlm_lightning.models.tiny.packing import IDS, Packed, pack
from qvlm_lightning.models.tiny.roundtrip import quantized
from qvlm_lightning.models.tiny.samples import (
    QUESTIONS_PER_IMAGE,
    TASKS,
    TEXT_FAMILIES,
    WEIGHTS,
    TinySample,
    generate,
)
from qvlm_lightning.models.tiny.turns import LETTERS, Turn

WORDS = list(IDS)


def rows_of(samples: list[TinySample]) -> list[tuple[Image.Image | None, list[int]]]:
    """Group the indices of samples that share an image; texts go eight to a row."""
    seen = [i for i, s in enumerate(samples) if s.image is not None]
    read = [i for i, s in enumerate(samples) if s.image is None]
    rows: list[tuple[Image.Image | None, list[int]]] = [
        (samples[group[0]].image, group)
        for _, places in groupby(seen, key=lambda i: id(samples[i].image))
        if (group := list(places))
    ]
    step = QUESTIONS_PER_IMAGE
    return rows + [(None, read[i : i + step]) for i in range(0, len(read), step)]


@torch.no_grad()
def answer_logits(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    samples: list[TinySample],
    images: dict[int, Image.Image | None] | None = None,
    batch: int = 32,
) -> Tensor:
    """Give the logits of the first answer word of every sample, several questions per row.

    Args:
        model: a LLaVA model with the embedded model's vocabulary.
        processor: its processor.
        samples: the questions.
        images: other images by row number, in place of the right ones.
        batch: rows at a time.

    Returns:
        Logits (sample, word), in float32.
    """
    device = next(model.parameters()).device
    out = torch.empty(len(samples), len(WORDS))
    rows = list(enumerate(rows_of(samples)))
    for with_image in (True, False):
        wanted = [r for r in rows if (r[1][0] is not None) == with_image]
        for start in tqdm(range(0, len(wanted), batch), disable=None, leave=False):
            part = wanted[start : start + batch]
            packed = pack(
                [[_turn(samples[i]) for i in group] for _, (_, group) in part], with_image
            )
            pixels = None
            if with_image:
                shown = [image if images is None else images[n] for n, (image, _) in part]
                pixels = processor.image_processor(shown, return_tensors="pt")["pixel_values"]
            logits = _forward(model, packed, None if pixels is None else pixels.to(device))
            out[[i for _, (_, group) in part for i in group]] = logits.float().cpu()
    return out


def _turn(sample: TinySample) -> Turn:
    return Turn(sample.family, sample.question, sample.answer, sample.choices)


def _forward(
    model: LlavaForConditionalGeneration, packed: Packed, pixel_values: Tensor | None
) -> Tensor:
    device = next(model.parameters()).device
    hidden = model.model(
        input_ids=packed.input_ids.to(device),
        pixel_values=pixel_values,
        attention_mask=torch.where(packed.may_look, 0.0, torch.finfo(torch.float32).min).to(device),
        position_ids=packed.position_ids.to(device),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[packed.answer_at.to(device)])


def blind_answers(samples: list[TinySample], seen: int = 40000) -> list[str]:
    """Answer without looking: the majority answer of a question's text, else of its family.

    Args:
        samples: the questions.
        seen: training samples that the majorities come from.

    Returns:
        One answer per sample.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_family: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in generate("train", seen, seed=1):
        by_text[sample.question][sample.answer] += 1
        by_family[sample.family][sample.answer] += 1
    return [(by_text.get(s.question) or by_family[s.family]).most_common(1)[0][0] for s in samples]


def accuracy(samples: list[TinySample], answers: list[str]) -> dict[str, float]:
    """Percent of right answers, per family and over all."""
    right: dict[str, list[bool]] = defaultdict(list)
    for sample, answer in zip(samples, answers, strict=True):
        right[sample.family].append(sample.answer == answer)
        right["all"].append(sample.answer == answer)
    return {family: round(100 * sum(v) / len(v), 2) for family, v in right.items()}


def evaluate(folder: Path, count: int, quantize: bool = True) -> dict[str, Any]:
    """Measure one folder of weights on the test split.

    Args:
        folder: a Hugging Face folder.
        count: test questions.
        quantize: also measure static W4A4 round-to-nearest.

    Returns:
        Accuracy, blind baseline and shuffled-image control per family, sample counts, seconds,
        and accuracy and KL (nats at the answer word) of the quantized model.
    """
    began = time.time()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    samples = generate("test", count)
    logits = answer_logits(model, processor, samples)
    rows = rows_of(samples)
    pictures = [n for n, (image, _) in enumerate(rows) if image is not None]
    shifted = pictures[1:] + pictures[:1]
    other = {n: rows[m][0] for n, m in zip(pictures, shifted, strict=True)}
    shuffled = answer_logits(model, processor, samples, images=other)
    blind = accuracy(samples, blind_answers(samples))
    blind |= {family: round(100 / len(LETTERS), 2) for family in TEXT_FAMILIES}
    result: dict[str, Any] = {
        "n": dict(Counter(s.family for s in samples)),
        "accuracy": accuracy(samples, _spoken(logits)),
        "blind": blind,
        "shuffled": accuracy(samples, _spoken(shuffled)),
    }
    if quantize:
        few = generate("calibration", 64)
        with quantized(model, 4, lambda: answer_logits(model, processor, few)):
            rough = answer_logits(model, processor, samples)
        divergence = F.kl_div(
            rough.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        result["w4a4_rtn_accuracy"] = accuracy(samples, _spoken(rough))
        result["w4a4_rtn_kl"] = round(divergence.mean().item(), 4)
        result["w4a4_rtn_kl_by_family"] = {
            family: round(
                divergence[[i for i, s in enumerate(samples) if s.family == family]].mean().item(),
                4,
            )
            for family in TASKS
        }
    result["seconds"] = round(time.time() - began, 1)
    return result


def _spoken(logits: Tensor) -> list[str]:
    return [WORDS[i] for i in logits.argmax(-1).tolist()]


def main() -> None:
    """Print the measurements of a folder, and write them down if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    result = evaluate(args.weights, args.count)
    print(f"{'family':16}{'n':>6}{'accuracy':>10}{'blind':>8}{'shuffled':>10}{'W4A4':>8}")
    for family in (*TASKS, "all"):
        number = result["n"].get(family, args.count)
        columns = (
            result[k][family] for k in ("accuracy", "blind", "shuffled", "w4a4_rtn_accuracy")
        )
        print(f"{family:16}{number:>6}" + "{:>10.1f}{:>8.1f}{:>10.1f}{:>8.1f}".format(*columns))
    print(f"KL(full precision || static W4A4 RTN) = {result['w4a4_rtn_kl']} nats")
    if args.json is not None:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
