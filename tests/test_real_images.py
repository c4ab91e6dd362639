"""Models answer questions about real images; what they say is up to them, the path is real."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from qvlm_lightning.data.base import QuestionBatches
from qvlm_lightning.data.controls import shuffle_images
from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.evaluation.generate import generate
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.evaluation.run import evaluate
from qvlm_lightning.models import Llava, Tiny
from qvlm_lightning.models.processors import image_only
from qvlm_lightning.models.qwen2_vl import Qwen2VL
from qvlm_lightning.tasks import Source, TaskData
from qvlm_lightning.tasks.find import find_task

CONFIGS = Path(__file__).parents[1] / "configs"
CHAT = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}{% if c.type == 'image' "
    "%}IMAGE\n{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}ASSISTANT: "
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def words(*special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and a few merges: it reads any text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["Answer the question using a single word or phrase."], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=list(special),
    )  # fmt: skip


def save(model: torch.nn.Module, processor, folder: Path) -> str:
    for parameter in model.parameters():  # the default is next to nothing: one word for ever
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def random_llava(folder: Path) -> Llava:
    tokenizer = words("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            image_size=28, patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **SIZES),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    side = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side), tokenizer,
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return Llava(save(LlavaForConditionalGeneration(config), processor, folder))


def random_qwen2_vl(folder: Path) -> Qwen2VL:
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = words(*names)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(names))
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        text_config={"vocab_size": len(tokenizer), "rope_parameters": rope, **SIZES},
        image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    processor = image_only(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}),
        tokenizer, chat_template=CHAT.replace("IMAGE", "".join((names[0], names[2], names[1]))),
    )  # fmt: skip
    return Qwen2VL(save(Qwen2VLForConditionalGeneration(config), processor, folder))


@pytest.fixture(scope="module", params=["tiny", "llava", "qwen2_vl"])
def family(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    made = {"tiny": lambda _: Tiny(), "llava": random_llava, "qwen2_vl": random_qwen2_vl}
    return made[request.param](folder)


def answer(family, data: TaskData, root: Path):
    """Evaluate as ``eval.py`` does, without the controls."""
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root,
    )  # fmt: skip
    return evaluate(trainer, VQAEvaluation(family, max_new_tokens=4), data, controls=False)


def questions(family, test_data, name: str, split=None, **options) -> TaskData:
    source = Source(str(test_data / name), split)
    return TaskData(family, find_task(name)(), source, images="only", **options)


def check(found, data: TaskData) -> None:
    assert found.ids == data.evaluation_ids
    assert all(isinstance(text, str) for text in found.texts)
    assert torch.isfinite(found.log_probs.logsumexp(-1)).all()
    scores = data.scores(data.evaluation, found.texts)
    assert 0 <= scores["overall"] <= 100
    assert not any(math.isnan(value) for value in scores.values())


@pytest.mark.parametrize(
    ("name", "split"),
    [("scienceqa", "test"), ("vqa_rad", "test"), ("nlvr", "dev"), ("easy_vqa", "test")],
)
def test_a_few_questions_about_real_images(family, test_data, name, split, tmp_path):
    data = questions(family, test_data, name, split, evaluation_count=6, evaluation_batch_size=4)
    assert all(sample.image is not None for sample in data.evaluation)
    check(answer(family, data, tmp_path), data)


def test_another_image_is_another_input(family, test_data):
    data = questions(family, test_data, "scienceqa", evaluation_count=6)
    model, told = family.load_model(), []
    for samples in (data.evaluation, shuffle_images(data.evaluation)):
        batch = QuestionBatches(samples, data.processor, 6).make(range(6))
        told.append(generate(model, batch, {1}, 1).log_probs)
    assert ((told[0] - told[1]).abs().amax(1) > 1e-4).all()


@pytest.mark.slow
def test_all_pairs_of_scienceqa(family, test_data, tmp_path):
    count = 0
    for split in ("train", "val", "test"):
        data = questions(family, test_data, "scienceqa", split, evaluation_batch_size=10)
        check(answer(family, data, tmp_path / split), data)
        count += len(data.evaluation)
    assert count == 250


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("vqa_rad", 235), ("nlvr", 989), ("easy_vqa", 7764)])
def test_whole_folders(test_data, name, count, tmp_path):
    data = questions(Tiny(), test_data, name, evaluation_batch_size=64)
    found = answer(Tiny(), data, tmp_path)
    check(found, data)
    assert len(found.ids) == count


def test_the_embedded_model_sees_the_images(test_data, tmp_path):
    """It was never shown easy-VQA, but knows colors: with the images of others it does not."""
    presets = ("eval/task.yaml", "tasks/easy_vqa.yaml", "models/tiny.yaml")
    eval_main(
        [
            *(f"--config={CONFIGS / name}" for name in presets),
            f"--data.evaluation.path={test_data / 'easy_vqa'}",
            f"--data.calibration.path={test_data / 'easy_vqa'}",
            "--data.task.prompt=bare",
            "--data.evaluation_count=200",
            "--data.evaluation_batch_size=50",
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    stored = [json.loads(p.read_text()) for p in (tmp_path / "predictions").glob("*.json")]
    scores = {about["control"]: about["scores"]["kind/colour"] for about in stored}
    assert set(scores) == {"", "blind", "shuffled"}
    assert scores[""] > max(scores["blind"], scores["shuffled"])
