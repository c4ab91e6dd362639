"""``qvlm generate`` streams what the model answers and says what it took."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qvlm_lightning.__main__ import main
from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.commands import _generating
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.answering import Answering, Prompt
from qvlm_lightning.models.tiny import generate
from qvlm_lightning.quant.scheme import Scheme
from tests.artifact.conftest import calibrate_tiny, export_tiny


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    scheme = Scheme.parse("w4a8")
    model, _ = calibrate_tiny(scheme)
    return export_tiny(tmp_path_factory.mktemp("generate") / "artifact", model, scheme)


@pytest.fixture
def question(tmp_path):
    sample = generate("test", 1)[0]
    sample.image.save(tmp_path / "image.png")
    return sample, tmp_path / "image.png"


def test_the_answer_is_streamed_with_its_figures(artifact, question, tmp_path, capsys):
    sample, image = question
    given = ["--artifact", str(artifact), "--image", str(image), "--prompt", sample.question]
    assert main(["generate", *given, "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    loaded = load_artifact(artifact)
    (expected,) = Answering(loaded.model, loaded.processor)([Prompt(sample.question, sample.image)])
    assert figures["text"] == expected != ""
    assert said.startswith(expected)
    quantized = len(loaded.structure.quantized)
    assert sum(figures["kernels"].values()) >= quantized
    for kernel, count in figures["kernels"].items():
        assert f"{kernel} in {count} layers" in said
        assert count == sum(kernel in x["kernels"] for x in figures["layers"].values())
    assert 0 < figures["packed_bytes"] < figures["peak_bytes"]
    assert f"{figures['prompt_tokens']} prompt tokens, {figures['tokens']} new ones" in said


def test_what_an_answer_does_not_need_takes_no_memory(artifact, question):
    """Lightning, torchmetrics and matplotlib are 55 MiB, a tenth of a small packed model's peak."""
    sample, image = question
    given = ["--artifact", str(artifact), "--image", str(image), "--prompt", sample.question]
    code = (
        "import sys; from qvlm_lightning.__main__ import main\n"
        f"assert main({['generate', *given, '--max-new-tokens', '1']!r}) == 0\n"
        "found = {'lightning', 'torchmetrics', 'matplotlib', 'datasets'} & {*sys.modules}\n"
        "assert not found, found"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_simulated_layers_have_no_kernels(artifact, question, capsys):
    sample, image = question
    given = ["--artifact", str(artifact), "--image", str(image), "--prompt", sample.question]
    assert main(["generate", *given, "--simulate", "--max-new-tokens", "1"]) == 0
    said = capsys.readouterr().out
    assert "kernels: none, weights are fake-quantized" in said
    assert "1 new ones: too few to have a speed" in said


def test_head_and_stored_keys_can_be_smaller(artifact, question, tmp_path, capsys):
    sample, image = question
    given = ["--artifact", str(artifact), "--image", str(image), "--prompt", sample.question]
    figures = {}
    for name, more in (("full", []), ("small", ["--kv-cache", "int8", "--head-bits", "8"])):
        out = tmp_path / f"{name}.json"
        told = [*given, *more, "--max-new-tokens", "1", "--json", str(out)]
        assert main(["generate", *told]) == 0
        figures[name] = json.loads(out.read_text())
    full, small = figures["full"], figures["small"]
    assert 0 < small["key_value_bytes"] < 0.5 * full["key_value_bytes"]
    head = load_artifact(artifact).model.get_output_embeddings()
    assert small["packed_bytes"] - full["packed_bytes"] >= head.in_features * head.out_features
    assert sum(small["kernels"].values()) > sum(full["kernels"].values())


def test_a_head_of_another_width_is_refused_before_anything_is_read(capsys):
    told = ["generate", "--artifact", "nowhere", "--prompt", "what ?", "--head-bits", "9"]
    with pytest.raises(SystemExit) as ended:
        main(told)
    assert ended.value.code == 2
    assert "--head-bits 9 is not allowed; allowed: 2 to 8" in capsys.readouterr().err


def test_text_is_shown_once_and_never_in_half_characters():
    """A character of several tokens is shown when its last one is there."""
    texts = {(1,): "a", (1, 2): "a\ufffd", (1, 2, 3): "aé", (): ""}
    tokenizer = SimpleNamespace(decode=lambda tokens, **_: texts[tuple(tokens)])
    shown: list[str] = []
    stream = _generating._Stream(tokenizer, {9}, shown.append)
    for tokens in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 9]):
        assert stream(tokens) is False
    assert [text for text in shown if text] == ["a", "é"]
    assert stream.text == "aé"


def test_speed_is_that_behind_the_first_token():
    stream = _generating._Stream(None, set(), print)
    stream.start, stream.times = 10.0, [12.0, 12.5, 13.0]
    assert stream.rate() == (2.0, 2.0)
    stream.times = [11.0]
    assert stream.rate() == (1.0, None)


def test_an_answer_that_ends_at_once_has_no_speed(artifact, monkeypatch):
    loaded = load_artifact(artifact, packed=True)
    ends = set(range(loaded.model.get_output_embeddings().out_features))
    monkeypatch.setattr(_generating, "end_tokens_of", lambda *_: ends)
    with torch.no_grad():
        figures = _generating.answer(loaded, Sample("a", None, "what ?"), 4, 1.5, print)
    assert (figures.text, figures.tokens, figures.tokens_per_second) == ("", 0, None)
    assert figures.load_seconds == 1.5
