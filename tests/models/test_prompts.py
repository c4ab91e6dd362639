"""Prompts that we write are those the model's own processor writes."""

from typing import Any

from PIL import Image
from transformers import PaliGemmaProcessor

from qvlm_lightning.data.collate import prompt_text
from qvlm_lightning.data.sample import Sample


def test_paligemma_asks_as_its_processor_does(make_small: Any) -> None:
    """Image, start, question, end of line, behind which the answer begins."""
    small = make_small("paligemma")
    sample = Sample("a", Image.new("RGB", (20, 20), "red"), "what color ?", answer="red")
    ours = prompt_text(sample, small.processor)
    assert ours == f"<image>{small.processor.tokenizer.bos_token}what color ?\n"
    _, (theirs,), *_ = PaliGemmaProcessor.prepare_inputs_layout(
        small.processor, images=[sample.image], text="<image>what color ?"
    )
    assert ours == theirs
