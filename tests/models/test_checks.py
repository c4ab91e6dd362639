"""Processors and folders that cannot make prompts, and weights that are no numbers, are named."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

import qvlm_lightning.models.offline
from qvlm_lightning.data import Sample
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.loaders import QuestionBatches
from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.models.checks import check_processor
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.loaded import loaded
from qvlm_lightning.models.offline import stored_if_unreachable
from qvlm_lightning.models.processors import image_words
from qvlm_lightning.models.saved import check_saving
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.weights.shards import Shards
from qvlm_lightning.weights.streamed import StreamedWeights

LIGHT = shutil.ignore_patterns("*.safetensors", "training_log*")
ASKED = [
    Sample("a", Image.new("RGB", (48, 48), "red"), "what color is the circle?", answer="red"),
    Sample("b", None, "which number is largest?", answer="A"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model without its weights."""
    return shutil.copytree(WEIGHTS, tmp_path / "model", ignore=LIGHT)


def edit(file: Path, **changes: Any) -> None:
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def blind_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")


def no_end(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


BROKEN: dict[Callable[[Path], None], str] = {
    no_template: "the processor of .* has no chat template; needed is a chat_template.jinja",
    blind_template: "the chat template of .* leaves images out",
    broken_template: "the chat template of .* cannot write a question with .*: roles must altern",
    no_end: "the tokenizer of .* has no eos_token, which answers end with",
    no_tokenizer: "no usable processor in ",
}


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_processor_that_makes_no_prompts_is_named_with_its_folder(
    folder: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    with pytest.raises(InputError, match=f"^{BROKEN[change]}") as fault:
        Llava(str(folder)).load_processor()
    assert str(folder) in str(fault.value)
    assert "\n" not in str(fault.value)


def before_4_45(folder: Path) -> None:
    """Store the processor as transformers did when it took the size of a patch from the model."""
    made = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    old = made["image_processor"] | {"processor_class": "LlavaProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))


def test_an_old_processor_takes_its_patches_from_the_model(folder: Path) -> None:
    expected = collate(ASKED, Llava(str(folder)).load_processor(), with_answer=True)
    before_4_45(folder)
    found = collate(ASKED, Llava(str(folder)).load_processor(), with_answer=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["llava", "llava_siglip", "llava_dinov2", "llava_next"])
def test_patches_of_every_tower_are_counted(kind: str, make_small: Any) -> None:
    """Class tokens are CLIP's and DINOv2's, and the strategy is that of the model."""
    small = make_small(kind)
    known = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    expected = [getattr(small.processor, name) for name in known]
    small.processor.patch_size = small.processor.vision_feature_select_strategy = None
    small.processor.num_additional_image_tokens = 0
    check_processor(small.processor, "it", lambda: small.config)
    assert [getattr(small.processor, name) for name in known] == expected
    small.processor.num_additional_image_tokens = 0  # as some versions stored it
    check_processor(small.processor, "it", lambda: small.config)
    assert [getattr(small.processor, name) for name in known] == expected


def test_patches_that_nobody_knows_are_refused(make_small: Any) -> None:
    processor = make_small("llava").processor
    processor.patch_size = None
    with pytest.raises(
        InputError, match=r"^the processor of 'x' has no patch_size, nor has config"
    ):
        check_processor(processor, "'x'", lambda: SimpleNamespace(vision_config=None))


def test_a_tokenizer_is_no_processor(make_small: Any) -> None:
    small = make_small("llava")
    for other in (None, small.processor.tokenizer, small.processor.image_processor):
        with pytest.raises(InputError, match=r"^the model in memory has a .*, which does not take"):
            loaded(small.model(), other)


def test_a_model_that_is_quantized_already_is_refused(folder: Path, make_small: Any) -> None:
    given = {"quant_method": "gptq", "bits": 4}
    family = Llava(str(folder))
    edit(folder / "config.json", quantization_config=given)
    for load in (family.load_model, family.weightless):
        with pytest.raises(InputError, match=r"quantized already \(gptq\); give the model in full"):
            load()
    small = make_small("llava")
    model = small.model()
    model.config.text_config.quantization_config = given
    with pytest.raises(InputError, match=r"^model holds a model that is quantized already \(gptq"):
        loaded(model, small.processor)


def test_words_that_stand_for_an_image_are_refused(small: Any) -> None:
    """Of every family; whoever types one would otherwise get a traceback, or another image."""
    words = image_words(small.processor)
    assert small.processor.image_token in words
    for word in words:
        asked = Sample("q7", None, f"what is {word} ?", answer="x")
        told = Sample("q7", None, "what ?", answer=f"a {word}")
        for sample in (asked, told):
            with pytest.raises(InputError, match=r"^sample 'q7' has .* in its text, which stands"):
                collate([ASKED[1], sample], small.processor, with_answer=True)
        with pytest.raises(InputError, match=r"^sample 'q7' has "):
            QuestionBatches([ASKED[1], asked], small.processor, 2)


def test_an_image_that_a_processor_refuses_is_named_with_its_sample(make_small: Any) -> None:
    processor = make_small("qwen2_vl").processor
    strip = Sample("strip", Image.new("RGB", (2000, 4)), "what color ?", answer="red")
    sentence = r"^the model's processor cannot read sample 'strip' with its image of 2000 x 4: "
    with pytest.raises(InputError, match=sentence):
        collate([*ASKED, strip], processor, with_answer=True)
    with pytest.raises(InputError, match=sentence):
        QuestionBatches([*ASKED, strip], processor, 2).check(None)


def test_images_that_do_not_fit_in_one_batch_are_named(make_small: Any) -> None:
    processor = make_small("llava").processor
    processor.image_processor.do_resize = processor.image_processor.do_center_crop = False
    shown = [Sample(n, Image.new("RGB", (s, s)), "what ?") for n, s in (("p", 16), ("q", 24))]
    with pytest.raises(InputError, match=r"^images of samples 'p' to 'q' do not fit in one batch"):
        collate(shown, processor, with_answer=False)


def test_pixels_that_are_no_numbers_are_named(make_small: Any) -> None:
    processor = make_small("llava").processor
    processor.image_processor.image_std = [0.0, 1.0, 1.0]
    with pytest.raises(InputError, match=r"sample 'a' has NaN or infinite values in pixel_values"):
        collate(ASKED[:1], processor, with_answer=False)


def test_prompts_beyond_the_positions_of_a_model_are_told(make_small: Any) -> None:
    processor = make_small("llava").processor
    asked = [*ASKED, Sample("long", None, "what color is " * 20), Sample("e", ASKED[0].image, "a")]
    batches = QuestionBatches(asked, processor, 2)
    lengths = {
        s.id: int(collate([s], processor, with_answer=False)["attention_mask"].sum()) for s in asked
    }
    positions = sorted(lengths.values())[-2]
    assert positions < lengths["long"]
    assert batches.check(None) == batches.check(lengths["long"]) == []
    (note,) = batches.check(positions)
    assert note.startswith(
        f"1 of 4 questions have more tokens than the model has positions, {positions}"
    )
    assert "such as 'long'" in note
    assert "4 of 4 questions" in batches.check(2)[0]


def test_positions_of_a_model(make_small: Any) -> None:
    model, family = make_small("llava").model(), Llava("somewhere")
    model.config.text_config.max_position_embeddings = 77
    assert family.positions(model) == 77
    assert family.positions(torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_none_are_counted(value: float, dtype: torch.dtype) -> None:
    tensors = {"ids": torch.tensor([3]), "empty": torch.zeros(0), "a": torch.ones(2, 3).to(dtype)}
    check_finite(tensors.items(), "it")
    check_finite([("m", torch.empty(2, device="meta"))], "it")
    tensors["a"][1, 2] = value
    with pytest.raises(InputError, match=r"^it has NaN or infinite values in a \(1 of 6\)"):
        check_finite(tensors.items(), "it")


def test_a_weight_that_is_none_is_never_loaded(tmp_path: Path, make_small: Any) -> None:
    small = make_small("llava")
    model = small.model()
    model.save_pretrained(tmp_path)
    small.processor.save_pretrained(tmp_path)
    family = Llava(str(tmp_path))
    family.load_model()
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][3, 5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"^model '{tmp_path}' has NaN .*layers.1.mlp.up_proj.we"):
        family.load_model()
    empty, places = family.streamed()
    weights = StreamedWeights(empty, Shards(places), torch.device("cpu"))
    inner = next(n for n in places if n.endswith("layers.0.mlp.up_proj.weight"))
    broken = next(n for n in places if n.endswith("layers.1.mlp.up_proj.weight"))
    assert weights.read(inner).isfinite().all()
    with pytest.raises(
        InputError, match=r"model.safetensors' has NaN or infinite values in .*up_pr"
    ):
        weights.read(broken)
    model.get_parameter(broken).data[3, 5] = float("inf")
    with pytest.raises(InputError, match=r"^the model in memory has NaN or infinite values in "):
        loaded(model, small.processor)


def test_settings_that_transformers_will_not_save_are_named(make_small: Any) -> None:
    small = make_small("llava")
    model = small.model()
    check_saving(model, small.processor)
    model.generation_config = GenerationConfig(do_sample=False)
    model.generation_config.temperature = 0.9
    with pytest.raises(InputError, match=r"^the generation_config of the model cannot .*temperatu"):
        check_saving(model, small.processor)
    config = copy.copy(model.config)
    config.to_json_file = None  # type: ignore[method-assign]
    model.generation_config, model.config = None, config
    with pytest.raises(InputError, match=r"^the configuration of the model cannot be saved"):
        check_saving(model, small.processor)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    other = SimpleNamespace(HF_HUB_OFFLINE=False)
    asked: list[tuple[Any, ...]] = []

    def head(*where: Any, timeout: float) -> None:
        asked.append(where)
        assert timeout < 10
        raise OSError("no route")

    session = SimpleNamespace(head=head)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    with pytest.raises(InputError, match="no such model on the hub"):
        Llava("nobody/nothing").load_model()
    assert len(asked) == 1, "transformers was not let try it again and again"
    with stored_if_unreachable(other):
        assert (constants.HF_HUB_OFFLINE, other.HF_HUB_OFFLINE) == (True, True)
    assert (constants.HF_HUB_OFFLINE, other.HF_HUB_OFFLINE) == (False, False)
    session.head = lambda *where, timeout: None
    with stored_if_unreachable(other):
        assert (constants.HF_HUB_OFFLINE, other.HF_HUB_OFFLINE) == (False, False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(qvlm_lightning.models.offline, "_answers", lambda: pytest.fail("asked"))
    with stored_if_unreachable():
        assert constants.HF_HUB_OFFLINE
