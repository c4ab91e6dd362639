"""2,000 answers of the embedded model, packed and simulated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.generate import end_tokens_of, generate, image_token_of
from qvlm_lightning.models.tiny import generate as questions_of
from qvlm_lightning.quant.scheme import Scheme

COUNT, BATCH = 2000, 50
SCHEMES = {
    "w4a4": Scheme.parse("w4a4"),
    "w8a8": Scheme.parse("w8a8", activation_mode="dynamic_token"),
    "w4a16": Scheme.parse("w4a16", group_size=32),
}


def answers(model: Any, processor: Any) -> Iterator[tuple[list[int], float]]:
    """Yield every answer, and how far its first token's logit is above the second best."""
    made = questions_of("test", COUNT)
    samples = [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]
    ends, image = end_tokens_of(model, processor), image_token_of(processor)
    for start in range(0, COUNT, BATCH):
        batch = collate(samples[start : start + BATCH], processor, with_answer=False)
        found = generate(model, batch, ends, 8, image)
        best = found.log_probs.topk(2).values
        yield from zip(found.rows(), (best[:, 0] - best[:, 1]).tolist(), strict=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SCHEMES)
def test_packed_answers_are_those_of_the_simulation(
    tmp_path: Path, name, calibrate, export, capsys
):
    model, _ = calibrate(SCHEMES[name])
    folder = export(tmp_path / "artifact", model, SCHEMES[name])
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
