"""2,000 answers of the embedded model, packed and simulated.

At four bits a model that was only rounded answers a quarter of them wrongly: one step more or less
at one site, which the order of a float sum can decide, is another answer in 12 of 2,000. So the
method there is one that people would use.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.generate import end_tokens_of, generate, image_token_of
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.models.tiny import generate as questions_of
from qvlm_lightning.notebook import quantize
from qvlm_lightning.quant.scheme import Scheme

COUNT, BATCH = 2000, 50
CASES = {
    "w4a4": (Scheme.parse("w4a4"), "gptq"),
    "w8a8": (Scheme.parse("w8a8", activation_mode="dynamic_token"), "rtn"),
    "w4a16": (Scheme.parse("w4a16", group_size=32), "rtn"),
}


def samples_of(split: str, count: int) -> list[Sample]:
    made = questions_of(split, count)
    return [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]


def answers(model: Any, processor: Any) -> Iterator[tuple[list[int], float]]:
    """Yield every answer, and how far its first token's logit is above the second best."""
    samples = samples_of("test", COUNT)
    ends, image = end_tokens_of(model, processor), image_token_of(processor)
    for start in range(0, COUNT, BATCH):
        batch = collate(samples[start : start + BATCH], processor, with_answer=False)
        found = generate(model, batch, ends, 8, image)
        best = found.log_probs.topk(2).values
        yield from zip(found.rows(), (best[:, 0] - best[:, 1]).tolist(), strict=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_packed_answers_are_those_of_the_simulation(tmp_path: Path, name: str, capsys) -> None:
    scheme, method = CASES[name]
    family = Llava(str(WEIGHTS))
    given = family.load_model(), family.load_processor(), samples_of("calibration", 64)
    quantize(*given, scheme, method, output=tmp_path / "run")
    folder = tmp_path / "run" / "artifact"
    simulated, packed = load_artifact(folder), load_artifact(folder, packed=True)
    with torch.no_grad():
        pairs = zip(
            answers(simulated.model, simulated.processor),
            answers(packed.model, packed.processor),
            strict=True,
        )
        other = [(i, margin) for i, ((a, margin), (b, _)) in enumerate(pairs) if a != b]
    with capsys.disabled():
        print(f"\n{name}: {COUNT - len(other)} of {COUNT} answers equal; logit margins of others:")
        print({i: round(margin, 4) for i, margin in other})
    assert len(other) <= 0.002 * COUNT
