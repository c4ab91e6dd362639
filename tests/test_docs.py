"""The examples of the documents run as they are printed."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    SiglipVisionConfig,
)

from qvlm_lightning.cli import train_main
from qvlm_lightning.data import Source
from qvlm_lightning.models import Tiny
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.tasks import TaskData

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def as_module(tmp_path, monkeypatch):
    """Import a printed file under the name it would have in the project."""

    def load(name: str, source: str) -> ModuleType:
        path = tmp_path / f"{name.rpartition('.')[2]}.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        package = importlib.import_module(name.rpartition(".")[0])
        monkeypatch.setattr(package, name.rpartition(".")[2], module, raising=False)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_method_of_the_document_calibrates(as_module, tmp_path) -> None:
    (source,) = blocks("docs/adding_a_method.md", "python")
    (preset,) = blocks("docs/adding_a_method.md", "yaml")
    as_module("qvlm_lightning.methods.naive_gptq", source)
    (tmp_path / "naive_gptq.yaml").write_text(preset, encoding="utf-8")
    rooms = ("schemes/w4a4", "models/tiny", "data/tiny")
    train_main(
        [
            "fit",
            f"--config={CONFIGS / 'base.yaml'}",
            f"--config={tmp_path / 'naive_gptq.yaml'}",
            *(f"--config={CONFIGS / room}.yaml" for room in rooms),
            "--trainer.accelerator=cpu",
            "--trainer.fast_dev_run=true",
            "--data.init_args.calibration_pairs=8",
            "--data.init_args.search_pairs=4",
            "--data.init_args.batch_size=4",
            f"--trainer.default_root_dir={tmp_path / 'run'}",
        ]
    )


def test_the_family_of_the_document_names_the_parts(as_module) -> None:
    (source,) = blocks("docs/adding_a_model.md", "python")
    family = as_module("qvlm_lightning.models.aya_vision", source).AyaVision("in memory")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = AyaVisionForConditionalGeneration(
        AyaVisionConfig(
            vision_config=SiglipVisionConfig(
                **sizes, num_hidden_layers=3, image_size=16, patch_size=4
            ),
            text_config=Cohere2Config(**sizes, num_hidden_layers=2, vocab_size=20),
            vision_feature_layer=-2,
            vision_feature_select_strategy="full",
            downsample_factor=2,
            image_token_index=3,
        )
    ).eval()
    batch = {
        "input_ids": torch.tensor([[1, *[3] * 8, 5], [1, *[3] * 4, 5, 6, 7, 8, 9]]),
        "pixel_values": torch.randn(3, 3, 16, 16),
        "has_image": torch.tensor([True, True]),
    }
    assert family.image_rows(model, batch) == [2, 1]
    with torch.no_grad():
        before = model(**model_inputs(batch)).logits
        structure = quantize_model(
            model, family, Scheme.parse("w4a4", activation_mode="static_channel")
        )
        assert torch.equal(model(**model_inputs(batch)).logits, before)
    layers = {name: len(tower.units) for name, tower in structure.towers.items()}
    assert layers == {"vision": 2, "projector": 1, "language": 2}
    assert structure.towers["vision"].sites[0].quantizer.low.shape == ()
    assert any("pooling head" in reason for reason in structure.ignored.values())


def test_the_overrides_of_the_document_give_the_widths_it_says() -> None:
    (block,) = blocks("docs/large_models.md", "yaml")
    scheme = Scheme.parse("w8a8", **yaml.safe_load(block)["model"]["scheme"])
    names = [f"model.language_model.layers.{i}.mlp.down_proj" for i in range(30)]
    wide = [i for i, n in enumerate(names) if scheme.widths("language", n).activation_bits == 16]
    assert wide == [1, 2, 11]
    (hashed,) = set(re.findall(r"w8a8\+a16_\w{4}", (ROOT / "docs/large_models.md").read_text()))
    assert Scheme.parse("w8a8", overrides={"down_proj": {"activation_bits": 16}}).name == hashed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_and_commands_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(r"`?((?:configs|docs|tests|qvlm_lightning)/[\w/]+\.(?:yaml|md|py))", text)
    examples = ("naive_gptq", "aya_vision", "counting")
    named = [name for name in named if not any(example in name for example in examples)]
    missing = [x for x in links if not (document.parent / x).exists()]
    missing += [x for x in named if not (ROOT / x).exists()]
    assert missing == []
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets


def test_the_task_of_the_document_scores(as_module, tmp_path) -> None:
    (source,) = blocks("docs/adding_a_task.md", "python")
    module = as_module("qvlm_lightning.tasks.counting", source)
    row = '{"id": 1, "image": "x.png", "question": "How many?", "answer": 2, "kind": "cups"}'
    (tmp_path / "test.jsonl").write_text(row)
    task = module.Counting("close")
    (question,) = task.read(tmp_path)
    assert task.text(question) == "How many?\nAnswer with a number."
    assert task.scores(["3"], [question.target])["kind/cups"] == 50.0


def test_the_yaml_of_the_added_task_evaluates_and_calibrates(as_module, tmp_path: Path) -> None:
    """Step 2 of adding a task: both programs take the file as it stands."""
    (source,) = blocks("docs/adding_a_task.md", "python")
    (settings,) = blocks("docs/adding_a_task.md", "yaml")
    module = as_module("qvlm_lightning.tasks.counting", source)
    given = yaml.safe_load(settings)["data"]["init_args"]["task"]
    assert given["class_path"] == "qvlm_lightning.tasks.counting.Counting"
    (tmp_path / "images").mkdir()
    for place, split in enumerate(("test", "train")):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / "images" / f"{split}.png")
        row = {"id": split, "image": f"{split}.png", "question": "?", "answer": 2, "kind": "cups"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    lies = Source(str(tmp_path))
    sizes = {"calibration_pairs": 1, "search_pairs": 1}
    data = TaskData(Tiny(), module.Counting(**given["init_args"]), lies, lies, **sizes)
    data.setup("fit")
    assert (data.calibration_ids, data.evaluation_ids) == (["train"], ["test"])


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
