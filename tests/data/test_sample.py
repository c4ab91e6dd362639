from dataclasses import replace

import pytest
from PIL import Image

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.sample import Sample, check_disjoint, check_samples
from qvlm_lightning.errors import InputError


def image(color: str = "red") -> Image.Image:
    return Image.new("RGB", (8, 8), color)


def talk(name: str, *further: tuple[str, str]) -> Sample:
    return Sample(name, None, "q", answer="x", further=further)


def test_undecodable_image_of_a_sample_is_found_before_work(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    lazy = Sample("7", Image.open(tmp_path / "a.png"), "what?", answer="x")
    with pytest.raises(InputError, match=r"image of calibration sample '7' cannot be decoded"):
        check_samples([lazy], "calibration", 1, answers=True)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], r"calibration set has no samples \(it is empty\), but 2 were asked for"),
        ([Sample("a", None, "q", answer="x")], "has 1 samples, but 2 were asked for"),
        ([Sample("a", None, "q", answer="x")] * 2, "id 'a' twice"),
        ([Sample("a", None, "q", answer="x"), Sample("b", None, "q")], "sample 'b' has no answer"),
        ([Sample("a", "a.png", "q", answer="x"), Sample("b", None, "q", answer="x")], "is a str"),
        ([talk("a", ("q", "x")), talk("b", ("q", " "))], "'b' has an empty question or answer in"),
        ([talk("a", ("q", "x"), ("", "x")), talk("b")], "'a' has an empty question or answer in"),
    ],
)
def test_unusable_samples_are_refused(samples, message):
    with pytest.raises(InputError, match=message):
        check_samples(samples, "calibration", 2, answers=True)


def test_overlap_by_id():
    with pytest.raises(InputError, match=r"1 calibration samples are also evaluated, such as 'b'"):
        check_disjoint([Sample("a", None, "p"), Sample("b", None, "q")], [Sample("b", None, "r")])


def test_overlap_by_content_under_another_id():
    with pytest.raises(InputError, match=r"'z' has question and image of calibration sample 'a'"):
        check_disjoint([Sample("a", image(), "q")], [Sample("z", image(), "q")])


def test_overlap_by_content_of_encoded_images(tmp_path):
    for name in ("a.png", "b.png"):
        image().save(tmp_path / name)
    first, second = (LazyImage.of(tmp_path / name) for name in ("a.png", "b.png"))
    with pytest.raises(InputError, match=r"'z' has question and image of calibration sample 'a'"):
        check_disjoint([Sample("a", first, "q")], [Sample("z", second, "q")])


def test_overlap_with_a_later_question_of_a_dialogue():
    talked = Sample("a", image(), "p", answer="x", further=(("q", "y"), ("r", "z")))
    for question in "pqr":
        with pytest.raises(InputError, match=r"question and image of calibration sample 'a'"):
            check_disjoint([talked], [Sample("z", image(), question)])
    check_disjoint([talked], [Sample("z", image("blue"), "q"), Sample("y", image(), "x")])


def test_a_dialogue_needs_its_first_answer():
    mute = Sample("a", None, "q", further=(("q", "x"),))
    with pytest.raises(InputError, match="'a' has an empty question or answer in its dialogue"):
        check_samples([mute], "calibration", 1, answers=False)


def test_answers_are_only_demanded_where_they_are_needed():
    check_samples([Sample("a", None, "q")], "calibration", 1, answers=False)


def test_same_question_about_another_image_is_no_overlap():
    check_disjoint([Sample("a", image(), "q")], [Sample("z", image("blue"), "q")])
    check_disjoint([Sample("a", image(), "q")], [Sample("z", image(), "other")])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"question": "a \ud83d"}, "question"),
        ({"answer": "\udc00 b"}, "answer"),
        ({"choices": ("x", "\ud83d")}, "choice 2"),
        ({"further": (("q", "a"), ("q", "\ud83d"))}, "answer 3"),
        ({"id": "\ud83d"}, "id"),
    ],
)
def test_half_a_character_is_refused(change, name):
    sample = replace(Sample("7", None, "what?", answer="x"), **change)
    with pytest.raises(InputError, match=f"^{name} of calibration sample .* half a character, '"):
        check_samples([sample], "calibration", 1, answers=False)
    whole = replace(sample, **{key: Sample("7", None, "é 🙂").__dict__[key] for key in change})
    assert check_samples([whole], "calibration", 1, answers=False) == []


def test_a_text_is_a_text():
    with pytest.raises(InputError, match=r"answer of calibration sample '7' is of type int; "):
        check_samples([Sample("7", None, "what?", answer=3)], "calibration", 1, answers=True)


def test_one_picture_stored_twice_is_one(tmp_path):
    image = Image.effect_noise((8, 8), 50).convert("RGB")
    for kind in ("png", "bmp"):
        image.save(tmp_path / f"a.{kind}")
    first, second = (LazyImage.of(tmp_path / f"a.{kind}") for kind in ("png", "bmp"))
    with pytest.raises(InputError, match="'b' has question and image of calibration sample 'a'"):
        check_disjoint([Sample("a", first, "what?")], [Sample("b", second, "what?")])
    turned = image.transpose(Image.Transpose.ROTATE_90)
    check_disjoint([Sample("a", first, "what?")], [Sample("b", turned, "what?")])


def test_a_text_without_end_is_refused_at_once():
    long = replace(SAMPLE_OF_ONES_OWN, question="x" * 1_000_001)
    with pytest.raises(InputError, match=r"question of .* has 1,000,001 characters; allowed are"):
        check_samples([long], "calibration", 1, answers=False)


SAMPLE_OF_ONES_OWN = Sample("a", None, "why?", answer="so")
