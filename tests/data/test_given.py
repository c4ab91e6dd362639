"""Samples in every form that people have them at hand."""

import base64
import json
from io import BytesIO

import pytest
from PIL import Image

from qvlm_lightning.data.given import as_samples
from qvlm_lightning.data.image import decoded
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError

RED = Image.new("RGB", (4, 3), (255, 0, 0))
BUFFER = BytesIO()
RED.save(BUFFER, "PNG")
PNG = BUFFER.getvalue()
URI = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
ROW = {"question": "What color?", "answer": "Red"}
SAMPLE = Sample("mine", RED, "What color?", answer="Red")


def chat(image: object) -> list[dict[str, object]]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What color?"}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": "Red"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "red.png").write_bytes(PNG)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"image": "red.png"}) + "\n")
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": chat("red.png")}]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FORMS = {
    "sample": [SAMPLE],
    "row with a path": [ROW | {"image": "red.png"}],
    "row with an image": [ROW | {"image": RED}],
    "row with bytes": [ROW | {"image": PNG}],
    "row with a data URI": [ROW | {"image": URI}],
    "chat with a path": [chat("red.png")],
    "chat with an image": [chat(RED)],
    "chat with bytes": [chat(PNG)],
    "chat with a data URI": [chat(URI)],
    "messages": [{"messages": chat("red.png")}],
    "a file of lines": "rows.jsonl",
    "a file of one list": "rows.json",
    "a list of files": ["rows.jsonl"],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(folder, name):
    (sample,) = as_samples(FORMS[name])
    assert (sample.question, sample.answer) == ("What color?", "Red")
    image = decoded(sample.image)
    assert image.size == (4, 3)
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_forms_mix_and_images_are_shared(folder):
    samples = as_samples(iter([ROW | {"image": "red.png"}, chat("red.png"), SAMPLE, "rows.jsonl"]))
    assert [s.id for s in samples] == ["samples[0]", "samples[1]", "mine", "rows.jsonl:1"]
    assert samples[0].image is samples[1].image is samples[3].image


def test_a_file_elsewhere_finds_its_images(folder, monkeypatch):
    monkeypatch.chdir("/")
    (sample,) = as_samples(folder / "rows.jsonl")
    assert decoded(sample.image).size == (4, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "samples is a int"),
        (ROW, "samples is a dict"),
        (SAMPLE, "samples is a Sample"),
        (b"rows", "samples is a bytes"),
        ("nowhere.jsonl", "the file 'nowhere.jsonl', which is none"),
        ([ROW, 3], r"samples\[1\] is a int"),
        ([[]], r"samples\[0\] is a list"),
        ([RED], r"samples\[0\] is a Image"),
        ([{"prompt": "x"}], r"samples\[0\] has prompt; needed is"),
        ([ROW | {"image": 3}], r"samples\[0\] has an image of type int"),
    ],
)
def test_what_is_none_of_them_is_answered_with_an_example(folder, given, words):
    with pytest.raises(InputError, match=words) as fault:
        as_samples(given)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("name", ["../red.png", "/red.png"])
def test_a_line_of_a_file_names_no_image_outside_of_its_folder(folder, name, monkeypatch):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "rows.jsonl").write_text(json.dumps(ROW | {"image": name}))
    monkeypatch.chdir(inner)
    for path in (inner / "rows.jsonl", "rows.jsonl"):
        with pytest.raises(InputError, match="line 1 of"):
            as_samples(path)
    (sample,) = as_samples([ROW | {"image": str(folder / "red.png")}])
    assert decoded(sample.image).size == (4, 3)
