import numpy as np
import pytest
from PIL import ExifTags, Image
from transformers.image_utils import load_image

from qvlm_lightning.data.image import (
    LazyImage,
    check_image,
    content_of,
    decoded,
    inside,
    open_image,
    pixel_digest,
)
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


def test_decoded_leaves_what_is_shown_as_it_is_alone():
    image = Image.new("RGB", (8, 8))
    assert decoded(image) is image
    assert decoded(Image.new("L", (8, 8), 7)).getpixel((0, 0)) == (7, 7, 7)


def turned(path, orientation: int) -> Image.Image:
    """Save an image whose quarters differ, with an EXIF orientation, and return its pixels."""
    image = Image.new("RGB", (6, 4))
    for place, shade in enumerate((250, 180, 90)):
        image.paste((shade, 0, shade), (2 * place, 0, 2 * place + 2, 2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)
    return image


def as_camera_says(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF 2.32, section 4.6.4 A says of each orientation: where row 0 and column 0 are."""
    height, width = pixels.shape[:2]
    rows, columns = (height, width) if orientation < 5 else (width, height)
    out = np.zeros((rows, columns, *pixels.shape[2:]), pixels.dtype)
    for y in range(height):
        for x in range(width):
            right, bottom = width - 1 - x, height - 1 - y
            place = {
                1: (y, x),
                2: (y, right),
                3: (bottom, right),
                4: (bottom, x),
                5: (x, y),
                6: (x, bottom),
                7: (right, bottom),
                8: (right, y),
            }[orientation]
            out[place] = pixels[y, x]
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_an_image_is_turned_as_its_camera_says(tmp_path, orientation, kind):
    path = tmp_path / f"a.{kind}"
    stored = np.asarray(turned(path, orientation))
    expected = as_camera_says(stored, orientation)
    in_memory = Image.open(path)
    for image in (LazyImage.of(path), LazyImage.of(path.read_bytes()), in_memory):
        assert np.array_equal(np.asarray(decoded(image)), expected)
    assert np.array_equal(np.asarray(load_image(str(path))), expected), "as transformers does"


def test_a_photograph_is_shown_as_transformers_shows_it(tmp_path):
    path = tmp_path / "a.jpg"
    turned(path, 6)
    ours, theirs = open_image(path), load_image(str(path))
    assert (ours.size, ours.tobytes()) == (theirs.size, theirs.tobytes())
    assert ours.size == (4, 6)


def ramp(depth: int) -> np.ndarray:
    return np.linspace(0, 2**depth - 1, 64 * 64).round().reshape(64, 64)


@pytest.mark.parametrize("kind", ["png", "tif", "jp2"])
def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    values = ramp(16).astype("uint16")
    options = {"irreversible": False} if kind == "jp2" else {}
    Image.fromarray(values).save(path, **options)
    assert LazyImage.of(path).check()
    assert check_image(Image.open(path), "an image")
    for image in (LazyImage.of(path), Image.open(path)):
        pixels = np.asarray(decoded(image))
        assert pixels.shape == (64, 64, 3)
        assert (pixels == np.rint(values / 257)[..., None]).all()


def test_eight_bits_of_grey_are_not_scaled(tmp_path):
    Image.fromarray(ramp(8).astype("uint8")).save(tmp_path / "a.png")
    assert not LazyImage.of(tmp_path / "a.png").check()
    assert (np.asarray(open_image(tmp_path / "a.png"))[..., 0] == ramp(8)).all()


def test_sixteen_bits_are_turned_as_well(tmp_path):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("I;16", (6, 4), 65535).save(path, exif=exif)
    assert open_image(path).size == (4, 6)


@pytest.mark.parametrize(
    ("kind", "words"), [("float32", "floating-point numbers"), ("int32", "32-bit integers")]
)
def test_pixels_of_no_known_range_are_refused(tmp_path, kind, words):
    path = tmp_path / "a.tif"
    Image.fromarray(ramp(16).astype(kind)).save(path)
    sentence = f"a.tif' has pixels that are {words}, .* convert it to 8 or 16 bits"
    for read in (open_image, lambda path: LazyImage.of(path).check()):
        with pytest.raises(InputError, match=sentence):
            read(path)
    with pytest.raises(InputError, match=f"^image of 7 has pixels that are {words}"):
        check_image(Image.open(path), "image of 7")


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "LA", "PA"])
def test_a_check_finds_what_cannot_be_shown(mode):
    """Every mode that PIL converts is shown; the check says so before any work."""
    image = Image.new(mode, (4, 4))
    check_image(image, "an image")
    assert decoded(image).mode == "RGB"
    with pytest.raises(InputError, match="cannot be decoded"):
        check_image(Image.new("La", (4, 4)), "an image")


def test_equal_pixels_have_one_digest_however_they_are_stored(tmp_path):
    image = Image.effect_noise((8, 6), 50).convert("RGB")
    for kind in ("png", "bmp"):
        image.save(tmp_path / f"a.{kind}")
    lazy = [LazyImage.of(tmp_path / f"a.{kind}") for kind in ("png", "bmp")]
    assert len({pixel_digest(x) for x in (image, *lazy)}) == 1
    others = [image.resize((6, 8)), Image.frombytes("RGB", (6, 8), image.tobytes()), None]
    assert len({pixel_digest(x) for x in (image, *others)}) == 4


def test_a_name_may_not_lead_out_of_the_folder(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for name in ("a.png", "images/a.png", "images/../a.png", root / "images" / "a.png"):
        assert inside(root, name, "line 1") == root / name
    (root / "linked").symlink_to(tmp_path)  # of whoever made the folder, not of a row
    assert inside(root, "linked/a.png", "line 1") == root / "linked" / "a.png"
    for name in ("../a.png", "images/../../a.png", "/etc/a.png", "linked/../a.png"):
        with pytest.raises(InputError, match=r"^line 1 names the image .* files inside that.*, or"):
            inside(root, name, "line 1", ", or else")


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
