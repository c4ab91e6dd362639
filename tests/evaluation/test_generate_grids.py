"""A random Qwen2-VL, whose images come as packed patches with positions in three axes."""

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from qvlm_lightning.evaluation.generate import generate

PAD, END, START, IMAGE = 0, 1, 2, 4
PATCH = 3 * 2 * 4 * 4  # channels, frames, height, width


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2,
                       "mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2},
        text_config={"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32,
                     "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                     "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": END,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                         "rope_theta": 1e4}},
        image_token_id=IMAGE, vision_start_token_id=START, vision_end_token_id=3,
        video_token_id=5,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # the default is next to nothing: one word for ever
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config.pad_token_id = PAD
    return model


def batch(*grids: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    """Left-padded prompts, each with an image of so many patches, or without one."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for place, grid in enumerate(grids):
        image = [START, *[IMAGE] * (grid[0] * grid[1] // 4), 3] if grid else []
        rows.append([7 + place, *image, *range(10, 14 + place)])
    width = max(map(len, rows))
    kept = [grid for grid in grids if grid]
    made = {
        "input_ids": torch.tensor([[PAD] * (width - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        "has_image": torch.tensor([grid is not None for grid in grids]),
        "image_index": torch.zeros(len(kept), dtype=torch.long),
        "image_grid_thw": torch.tensor([[1, *grid] for grid in kept]),
        "pixel_values": torch.randn(sum(h * w for h, w in kept), PATCH, generator=generator),
    }
    return made | {"mm_token_type_ids": (made["input_ids"] == IMAGE).long()}


@pytest.mark.parametrize("grids", [[(4, 4)], [(4, 6), (2, 2), None], [(2, 4), (2, 4)]])
def test_answers_are_those_of_the_models_own_generate(model, grids):
    asked = batch(*grids)
    found = generate(model, asked, {END}, 6, image_token=IMAGE)
    inputs = {k: v for k, v in asked.items() if k not in ("has_image", "image_index")}
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    expected = expected[:, asked["input_ids"].shape[1] :]
    for row, length in enumerate(found.lengths.tolist()):
        assert found.tokens[row, :length].tolist() == expected[row, :length].tolist()
    assert len(set(found.tokens.flatten().tolist())) > 2
