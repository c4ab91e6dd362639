"""The table of the joined model: what it is told, and what only the built model can show."""

import argparse
import json
import math
from pathlib import Path
from statistics import mean

import pytest
import torch
import yaml
from PIL import Image

from qvlm_lightning.commands._table_plan import planned_variants
from qvlm_lightning.data.photographs import photographs
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.fidelity import FidelityInputs, FidelityMeter
from qvlm_lightning.models.llava import Llava
from tools.joined import checks, table

ROOT = Path(__file__).parents[2]
JOINED = ROOT / "runs" / "joined"
MODES = ("static_tensor", "static_channel", "dynamic_token")


@pytest.fixture
def given(tmp_path, monkeypatch) -> argparse.Namespace:
    """A command line; the model is there by name only."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return argparse.Namespace(
        data=Path("questions"),
        photographs=["one", "two"],
        model=tmp_path / "model",
        config=table.PLAN,
        root=str(tmp_path / "run"),
        row=None,
        questions=None,
        development=False,
    )


def test_without_the_model_one_sentence_says_what_makes_it(tmp_path, capsys):
    options = ["--data=x", "--photographs=y", f"--model={tmp_path}"]
    with pytest.raises(SystemExit) as end:
        table.main(options)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told == f"error: the joined model is not in {str(tmp_path)!r}; run `make joined` first\n"


def test_choices_are_made_on_pictures_that_nobody_trained_on_or_reports(given, tmp_path):
    data = tmp_path / "easy"
    for part, count in (("train", 20), ("test", 3)):
        (data / part / "images").mkdir(parents=True)
        asked = [[f"{part} {n}?", "yes", n] for n in range(count)]
        (data / part / "questions.json").write_text(json.dumps(asked))
        for n in range(count):
            Image.new("RGB", (2, 2), (n, 0, 0)).save(data / part / "images" / f"{n}.png")
    given.data, given.development = data, True
    plan = table.plan_of(given)
    assert plan.root == f"{given.root}-development"
    folder = Path(plan.root, "easy_vqa")
    assert f"--data.init_args.evaluation.path={folder}" in plan.sources
    chosen = {
        part: {(q, n) for q, _, n in json.loads((folder / part / "questions.json").read_text())}
        for part in ("train", "test")
    }
    assert (len(chosen["train"]), len(chosen["test"])) == (18, 2)
    assert chosen["train"] | chosen["test"] == {(f"train {n}?", n) for n in range(20)}
    (number,) = {n for _, n in chosen["test"]} - {max(n for _, n in chosen["test"])}
    with Image.open(folder / "test" / "images" / f"{number}.png") as image:
        assert image.getpixel((0, 0)) == (number, 0, 0)
    given.root = None
    (data / "train" / "questions.json").unlink()
    with pytest.raises(InputError, match="is missing; give the data folder"):
        table.plan_of(given)


def test_folders_of_the_command_line_reach_the_plan(given):
    plan = table.plan_of(given)
    assert f"--model.init_args.family.init_args.path={given.model}" in plan.sources
    for part in ("evaluation", "calibration"):
        assert f"--data.init_args.{part}.path=questions" in plan.sources
    assert plan.fidelity is not None
    assert plan.fidelity.photographs == ["one", "two"]
    assert plan.root == given.root
    assert plan.results is None


def test_more_questions_for_some_rows(given):
    title = "rtn w8a8_language dynamic_token"
    given.row, given.questions = [title], 2000
    plan = table.plan_of(given)
    assert [variant.title for variant in planned_variants(plan)] == [title]
    assert (plan.questions, plan.results) == (2000, "questions2000")
    given.row = ["rtn w3a3"]
    with pytest.raises(InputError, match=r"row is 'rtn w3a3'; allowed are 'rtn w8a8_language"):
        table.plan_of(given)


def test_every_width_has_every_mode_whole_and_language_only(given):
    titles = {variant.title for variant in planned_variants(table.plan_of(given))}
    for scheme in ("w8a8", "w6a6", "w4a4"):
        for part in ("", "_language"):
            for mode in MODES:
                assert f"rtn {scheme}{part} {mode}" in titles


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_language_only_leaves_tower_and_projector_alone(bits):
    file = ROOT / "configs" / "schemes" / f"w{bits}a{bits}_language.yaml"
    scheme = yaml.safe_load(file.read_text())["model"]["init_args"]["scheme"]
    assert scheme["language"] == {"weight_bits": bits, "activation_bits": bits}
    for part in ("vision", "projector"):
        assert scheme[part] == {"weight_bits": 16, "activation_bits": 16}


@pytest.mark.slow
def test_the_passage_is_read_as_a_message(test_data, tmp_path):
    if not (JOINED / "config.json").is_file():
        pytest.skip("runs/joined is not there: make joined")
    family = Llava(str(JOINED), dtype="float32")
    model, processor = family.load_model(), family.load_processor()
    folder = test_data / "vqa_rad" / "images"
    prompts = photographs([folder], ["Describe the image in detail."], 2)
    inputs = FidelityInputs(prompts, checks.PASSAGE.read_text(encoding="utf-8"), batch_size=2)
    meter = FidelityMeter(inputs, tmp_path / "reference", family.fingerprint(model), processor)
    meter.store_reference(model)
    text = f"<|im_start|>user\n{inputs.passage}<|im_end|>\n<|im_start|>assistant\n"
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    losses = [-float(logits[t].log_softmax(-1)[ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
    assert meter.reference_perplexity()[0] == pytest.approx(math.exp(mean(losses)), rel=1e-4)
    found = meter.measure(model)
    assert max(found.kl) < 1e-5
    assert found.first_differences == [None, None]
