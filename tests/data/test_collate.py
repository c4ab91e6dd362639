from dataclasses import replace

import pytest
import torch
from PIL import Image

from qvlm_lightning.data.collate import IGNORED, collate, prompt_lengths
from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.models import Llava
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.models.tiny import WEIGHTS

RED = Image.new("RGB", (48, 48), "red")
BLUE = Image.new("RGB", (48, 48), "blue")
SEEN = Sample("a", RED, "what color is the circle?", answer="red")
LONG = Sample("b", BLUE, "what color is the object left of the red circle?", answer="blue")
READ = Sample("c", None, "which number is largest? (A) 17 (B) 25 (C) 11", answer="B")


@pytest.fixture(scope="module")
def processor():
    return Llava(str(WEIGHTS)).load_processor()


def words(processor, ids) -> list[str]:
    return [t for t in processor.tokenizer.convert_ids_to_tokens(ids.tolist()) if t != "<image>"]


def test_answer_and_end_of_sequence_are_labelled_and_nothing_else(processor):
    batch = collate([SEEN, LONG], processor, with_answer=True)
    counted = batch["labels"] != IGNORED
    assert counted.sum(1).tolist() == [2, 2]
    assert words(processor, batch["labels"][counted]) == ["red", "</s>", "blue", "</s>"]
    assert (batch["input_ids"][counted] == batch["labels"][counted]).all()


def test_a_sample_without_an_answer_has_no_labels(processor):
    mute = Sample("d", RED, "what color is the circle?")
    batch = collate([mute, LONG], processor, with_answer=True)
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [0, 2]
    prompt = collate([mute], processor, with_answer=False)["input_ids"][0]
    assert torch.equal(batch["input_ids"][0][batch["attention_mask"][0].bool()], prompt)


def test_encoded_images_are_decoded_once_per_batch(processor, tmp_path):
    RED.save(tmp_path / "red.png")
    reads = []
    lazy = LazyImage("red", lambda: reads.append(1) or tmp_path / "red.png")
    twice = [replace(SEEN, image=lazy), LONG, replace(SEEN, image=lazy)]
    batch = collate(twice, processor, with_answer=True)
    assert len(reads) == 1
    assert batch["image_index"].tolist() == [0, 1, 0]
    expected = collate([SEEN, LONG, SEEN], processor, with_answer=True)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


class Packing:
    """A processor that gives packed patches: 4 and 8 of them, of 6 values each."""

    image_token = "<image>"

    def __init__(self, processor):
        self.tokenizer = processor.tokenizer
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, text, images=(), padding=False):
        ids = self.tokenizer(text)["input_ids"]
        grids = [[1, 2, 2 * (place + 1)] for place, _ in enumerate(images)]
        made = {
            "input_ids": ids,
            "mm_token_type_ids": [[int(x == ids[0][0]) for x in r] for r in ids],
        }
        if images:
            rows = sum(h * w for _, h, w in grids)
            made |= {"pixel_values": [[0.5] * 6] * rows, "image_grid_thw": grids}
        return made


def test_packed_patches_come_with_their_grids(processor):
    batch = collate([SEEN, READ, LONG], Packing(processor), with_answer=True)
    assert batch["pixel_values"].shape == (12, 6)
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4]]
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    assert {"image_grid_thw", "mm_token_type_ids"} <= set(model_inputs(batch))


def test_calibration_pads_right_and_generation_left(processor):
    right = collate([SEEN, LONG], processor, with_answer=True)["attention_mask"]
    left = collate([SEEN, LONG], processor, with_answer=False)["attention_mask"]
    assert right[0].tolist() == sorted(right[0].tolist(), reverse=True)
    assert left[0].tolist() == sorted(left[0].tolist())
    assert right[0].min() == left[0].min() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_depend_on_the_tokenizers_own_side(processor, side):
    expected = collate([SEEN, LONG], processor, with_answer=False)
    before, processor.tokenizer.padding_side = processor.tokenizer.padding_side, side
    got = collate([SEEN, LONG], processor, with_answer=False)
    processor.tokenizer.padding_side = before
    assert torch.equal(got["input_ids"], expected["input_ids"])


def test_prompt_is_the_chat_template_without_the_answer(processor):
    batch = collate([READ], processor, with_answer=False)
    tokens = words(processor, batch["input_ids"][0])
    assert tokens[:2] == ["<s>", "USER:"]
    assert tokens[-1] == "ASSISTANT:"
    assert "labels" not in batch
    assert "pixel_values" not in batch


def test_prompt_of_generation_is_the_start_of_calibration(processor):
    ask = collate([SEEN], processor, with_answer=False)["input_ids"][0]
    tell = collate([SEEN], processor, with_answer=True)["input_ids"][0]
    assert torch.equal(tell[: len(ask)], ask)


def test_samples_with_and_without_image_share_a_batch(processor):
    batch = collate([READ, SEEN, LONG, SEEN], processor, with_answer=True, first_index=5)
    assert batch["has_image"].tolist() == [False, True, True, True]
    assert batch["sample_index"].tolist() == [5, 6, 7, 8]
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert batch["image_index"].tolist() == [0, 1, 0]
    assert set(model_inputs(batch)) == {"input_ids", "attention_mask", "pixel_values"}


def test_lengths_are_those_of_the_prompts_but_for_the_image(processor):
    asked = [SEEN, LONG]
    batch = collate(asked, processor, with_answer=False)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    kept = batch["attention_mask"].bool() & (batch["input_ids"] != image_token)
    assert prompt_lengths(asked, processor) == [n + 1 for n in kept.sum(1).tolist()]
