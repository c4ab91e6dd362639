import pytest
from PIL import Image

from qvlm_lightning.data.image import LazyImage, check_image, content_of, decoded, open_image
from qvlm_lightning.errors import InputError


@pytest.fixture
def noise(tmp_path):
    """A file of noise: cut anywhere, something is missing."""

    def write(kind: str, keep: float = 1.0):
        path = tmp_path / f"a.{kind}"
        Image.effect_noise((64, 64), 50).convert("RGB").save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
        return path

    return write


def test_open_image_decodes(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_every_kind_of_pixels_becomes_rgb(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").mode == "RGB"


def test_a_file_is_read_when_asked_and_not_kept(tmp_path):
    path = tmp_path / "a.png"
    image = LazyImage.of(path)
    Image.new("RGB", (8, 8), "red").save(path)
    first = image.open()
    Image.new("RGB", (8, 8), "blue").save(path)
    assert [x.getpixel((0, 0)) for x in (first, image.open())] == [(255, 0, 0), (0, 0, 255)]


def test_bytes_are_an_image_too(noise):
    path = noise("png")
    image = LazyImage.of(path.read_bytes(), "cell 7")
    image.check()
    assert image.open().tobytes() == open_image(path).tobytes()


def test_decoded_leaves_an_image_in_memory_alone():
    image = Image.new("L", (8, 8))
    assert decoded(image) is image


@pytest.mark.parametrize("read", [open_image, lambda path: LazyImage.of(path).check()])
def test_missing_image_is_named(tmp_path, read):
    with pytest.raises(InputError, match=r"nowhere\.png' does not exist"):
        read(tmp_path / "nowhere.png")


@pytest.mark.parametrize("read", [open_image, lambda path: LazyImage.of(path).check()])
@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 0.1, 0.9])
def test_a_file_that_is_cut_off_is_named(noise, read, kind, keep):
    path = noise(kind, keep)
    with pytest.raises(InputError, match=rf"a\.{kind}' cannot be decoded"):
        read(path)


def test_text_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"cannot be decoded \(it is no image\); give a readable"):
        open_image(tmp_path / "a.png")


def test_a_check_says_whose_image_it_is(noise):
    check_image(LazyImage.of(noise("jpg")), "image of 7")
    with pytest.raises(InputError, match=r"^image of 7: image '.*a\.png' cannot be decoded"):
        check_image(LazyImage.of(noise("png", 0.5)), "image of 7")
    with pytest.raises(InputError, match=r"^image of 7 cannot be decoded"):
        check_image(Image.open(noise("png", 0.5)), "image of 7")
    with pytest.raises(InputError, match=r"^image of 7 is a str; allowed is a PIL image"):
        check_image("a.png", "image of 7")


def test_bytes_that_tell_images_apart(noise):
    path = noise("png")
    data = path.read_bytes()
    assert content_of(LazyImage.of(path)) == content_of(LazyImage.of(data)) == data
    assert content_of(open_image(path)) == open_image(path).tobytes()
    assert content_of(None) == b""
