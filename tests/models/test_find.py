"""Families by model type and by class path; processors that need what is not there."""

import json

import pytest
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.find import class_at, family_for, known
from qvlm_lightning.models.loaded import loaded
from qvlm_lightning.models.qwen2_5_vl import Qwen25VL
from qvlm_lightning.models.smolvlm import SmolVLM


@pytest.mark.parametrize("model_type", known())
def test_every_known_model_type_has_its_family(model_type):
    assert family_for(model_type).model_types == (model_type,)


@pytest.mark.parametrize("model_type", ["llama", "hub", "../llava", "", "qwen2-vl", "models.llava"])
def test_other_model_types_are_refused_with_those_that_are_known(model_type):
    with pytest.raises(InputError, match=r"model was given; allowed: 'gemma3', .*'llava', "):
        family_for(model_type)


def test_a_class_path_leads_to_a_family_or_says_why_not():
    assert class_at("qvlm_lightning.models.qwen2_5_vl.Qwen25VL") is Qwen25VL
    for path in ("torch.nn.Linear", "qvlm_lightning.models.hub.named_layers"):
        with pytest.raises(InputError, match="is not a family of models"):
            class_at(path)
    for path in ("no.such.Thing", "Llava", "qvlm_lightning.models.llava.Missing"):
        with pytest.raises(InputError, match="cannot be imported"):
            class_at(path)


def test_a_model_in_memory_keeps_its_family(small):
    model, family = small.model(), loaded(small.model(), small.processor)
    assert isinstance(family, small.family)
    assert family.of_artifact() is small.family
    assert family.load_processor() is small.processor
    assert type(family.load_model()) is type(model)
    with pytest.raises(InputError, match="cannot be streamed"):
        family.streamed()


def test_something_else_in_memory_is_refused():
    with pytest.raises(InputError, match="a 'Linear' model was given"):
        loaded(nn.Linear(2, 2), None)


@pytest.mark.parametrize("small", ["smolvlm"], indirect=True)
def test_a_processor_says_what_to_install(tmp_path, small, monkeypatch):
    small.model().save_pretrained(tmp_path)
    small.processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    named = json.loads(path.read_text()) | {"processor_class": "SmolVLMProcessor"}
    path.write_text(json.dumps(named))
    monkeypatch.setattr(
        "transformers.models.smolvlm.processing_smolvlm.is_num2words_available", lambda: False
    )
    with pytest.raises(InputError, match="pip install num2words"):
        SmolVLM(str(tmp_path)).load_processor()


def test_a_folder_without_a_processor_is_refused(tmp_path, small):
    small.model().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no usable processor"):
        small.family(str(tmp_path)).load_processor()
