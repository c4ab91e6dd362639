"""The verb: what it prints, and that it fails in one sentence."""

import json

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from qvlm_lightning.__main__ import main
from qvlm_lightning.commands import verbs
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS


@pytest.fixture
def folder(tmp_path):
    """A LLaVA-1.5 of its authors' form with the embedded model's tokenizer."""
    source = tmp_path / "in"
    source.mkdir()
    text = {
        "vocab_size": 700,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    language = LlamaForCausalLM(LlamaConfig(**text))
    weights = dict(language.state_dict())
    for name, width in (("0", 8), ("2", 16)):
        weights[f"model.mm_projector.{name}.weight"] = torch.randn(16, width)
        weights[f"model.mm_projector.{name}.bias"] = torch.randn(16)
    torch.save(weights, source / "pytorch_model.bin")
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    tower.save_pretrained(tmp_path / "clip")
    settings = {"model_type": "llava", "mm_vision_tower": str(tmp_path / "clip")}
    settings |= {"mm_projector_type": "mlp2x_gelu"}
    (source / "config.json").write_text(json.dumps({**text, **settings}))
    return source


def test_a_folder_is_converted_and_loads(tmp_path, folder, capsys) -> None:
    target = tmp_path / "out"
    assert main(["convert", str(folder), str(target), "--tokenizer", str(WEIGHTS)]) == 0
    told = capsys.readouterr().out
    assert f"{target}: llava, " in told
    model = Llava(str(target)).load_model()
    assert f" {len(model.state_dict())} tensors, " in told
    assert "lm_head.weight" in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard-gb", "0"], "--shard-gb 0.0 is not allowed"),
        (["--vision-tower", "nowhere"], "'nowhere' has no config.json"),
        (["--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_faults_are_one_sentence(tmp_path, folder, capsys, options, message) -> None:
    with pytest.raises(SystemExit) as left:
        main(["convert", str(folder), str(tmp_path / "out"), "--tokenizer", str(WEIGHTS), *options])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_the_verb_is_listed() -> None:
    assert verbs()["convert"].startswith("Convert LLaVA")
