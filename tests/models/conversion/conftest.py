"""Folders as the authors of LLaVA and MoE-LLaVA publish them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from tests.models.conversion.originals import TOWER, Original, llava, moe_llava


def make_tokenizer(special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["what color is the square ?"] * 8, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def write_tower(folder: Path, tower: CLIPVisionModel) -> None:
    """Write the folder that a checkpoint refers to: a whole CLIP, its text half included."""
    folder.mkdir(parents=True)
    settings = {"model_type": "clip", "vision_config": {**TOWER, "model_type": "clip_vision_model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    weights = {f"vision_model.{n}": t for n, t in tower.state_dict().items()}
    weights |= {"logit_scale": torch.ones(()), "visual_projection.weight": torch.ones(8, 8)}
    weights |= {"text_model.embeddings.token_embedding.weight": torch.ones(9, 8)}
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(weights, folder / "pytorch_model.bin")


def write(
    folder: Path, original: Original, form: str = "bin", shards: int = 2, inside: str = ""
) -> Path:
    """Write the authors' folder; ``inside`` is the prefix of the tower's names, if it is in it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(original.settings))
    weights = dict(original.weights)
    if inside:
        weights |= {f"{inside}{n}": t for n, t in original.tower.state_dict().items()}
    names, where = list(weights), {}
    stem, kind = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    for number in range(shards):
        part = {n: weights[n].contiguous().clone() for n in names[number::shards]}
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{kind}"
        torch.save(part, folder / file) if form == "bin" else save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = f"{stem}.{kind}.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    special = ("<im_patch>", "<im_start>", "<im_end>")
    wrapped = original.settings.get("mm_use_im_start_end")
    make_tokenizer(special if wrapped else ()).save_pretrained(folder)
    return folder


PLAIN = len(make_tokenizer())
KINDS = {
    "v1.5": lambda: llava(single=False, vocabulary=PLAIN),
    "v1.3": lambda: llava(single=True, vocabulary=PLAIN + 3),
    "stablelm": lambda: moe_llava("stablelm", vocabulary=PLAIN + 6),
    "phi": lambda: moe_llava("phi", vocabulary=PLAIN + 6),
}


@pytest.fixture
def original(request: pytest.FixtureRequest) -> Original:
    """A checkpoint in parts, of the kind that the test names."""
    return KINDS[request.param]()


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint to ``in`` and its tower to ``clip``."""

    def put(original: Original | str, inside: str = "", form: str = "bin", **settings: Any) -> Path:
        made = KINDS[original]() if isinstance(original, str) else original
        made.settings |= settings
        write_tower(tmp_path / "clip", made.tower)
        return write(tmp_path / "in", made, form, inside=inside)

    return put


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with nothing but a tokenizer."""
    make_tokenizer().save_pretrained(tmp_path / "words")
    return tmp_path / "words"
