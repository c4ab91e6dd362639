from PIL import Image

from qvlm_lightning.data.controls import blind_answers, shuffle_images
from qvlm_lightning.data.image import LazyImage, decoded
from qvlm_lightning.data.sample import Sample

A, B, C = (Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue"))


def test_guesser_knows_the_majority_of_the_text_then_of_the_family():
    known = [
        Sample("1", A, "color?", answer="red", family="f"),
        Sample("2", A, "color?", answer="blue", family="f"),
        Sample("3", A, "color?", answer="blue", family="f"),
        Sample("4", A, "size?", answer="red", family="f"),
        Sample("5", A, "shape?", answer="red", family="f"),
    ]
    asked = [Sample("6", B, q, family="f") for q in ("color?", "size?", "new?")]
    assert blind_answers(known, asked) == ["blue", "red", "red"]
    assert blind_answers(known, [Sample("7", B, "new?", family="other")]) == [""]


def test_every_question_gets_another_image_and_texts_are_left_out():
    samples = [Sample(str(i), image, "q") for i, image in enumerate([A, A, None, B, C, A])]
    shuffled = shuffle_images(samples)
    assert [s.id for s in shuffled] == ["0", "1", "3", "4", "5"]
    assert [s.image for s in shuffled] == [B, B, C, A, B]


def test_one_image_cannot_be_shuffled():
    assert shuffle_images([Sample("0", A, "q")]) == []
    assert shuffle_images([Sample("0", A, "q"), Sample("1", A.copy(), "q")]) == []
    assert shuffle_images([Sample("0", None, "q")]) == []


def test_another_image_has_other_pixels(tmp_path):
    """Equal pictures in two files, or twice in memory, are no other image to show."""
    A.save(tmp_path / "a.png")
    A.save(tmp_path / "a.bmp")
    same = [A.copy(), *(LazyImage.of(tmp_path / f"a.{kind}") for kind in ("png", "bmp"))]
    shown = [same[0], B, same[1], same[2], C, B.copy()]
    samples = [Sample(str(i), image, "q") for i, image in enumerate(shown)]
    colors = [decoded(s.image).getpixel((0, 0)) for s in shuffle_images(samples)]
    red, green, blue = (image.getpixel((0, 0)) for image in (A, B, C))
    assert colors == [green, blue, green, green, red, blue]
