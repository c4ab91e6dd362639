"""Images that stay encoded until a batch needs them, and what is wrong with those that cannot.

What a model sees is what transformers' ``load_image`` shows: RGB, turned as EXIF says. Only grey
images of 16 bits differ: there everything above 255 would be white; here they are scaled.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from qvlm_lightning.errors import InputError

# What PIL raises for files that are cut off, mislabelled, absurdly large or have broken EXIF data.
_UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_TO_EIGHT_BITS = 257  # 65535 / 255
_NO_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}

Encoded = str | Path | bytes
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LazyImage:
    """An image that is decoded each time it is asked for, and never kept.

    A set of any size then costs the memory of one batch. Questions about one image share the
    object: by that, batches know which work can be shared.
    """

    name: str
    """What messages call it."""
    encoded: Callable[[], Encoded]
    """Returns the path of its file, or the file's bytes."""

    @classmethod
    def of(cls, encoded: Encoded, name: str = "") -> "LazyImage":
        """Make one of a path, or of a file's bytes.

        Args:
            encoded: path or bytes.
            name: what messages call it; the path by default.
        """
        return cls(name or str(encoded), lambda: encoded)

    def open(self) -> Image.Image:
        """Decode as RGB.

        Raises:
            InputError: the file is missing or cannot be decoded.
        """
        return _read(self.encoded(), self.name, lambda image: shown(image, self._called))

    def check(self) -> bool:
        """Read the whole file, at the smallest size that its format can be decoded to.

        Returns:
            Whether its grey values have 16 bits, and are scaled to 8.

        Raises:
            InputError: the file is missing or cannot be decoded, or has pixels of no known range.
        """
        deep: list[bool] = []

        def smallest(image: Image.Image) -> Image.Image:
            image.draft("RGB", (1, 1))  # JPEG: an eighth of the size at a fraction of the time
            deep.append(is_deep(image))
            return shown(image, self._called)

        _read(self.encoded(), self.name, smallest)
        return deep[0]

    @property
    def _called(self) -> str:
        return f"image {self.name!r}"


def open_image(path: str | Path) -> Image.Image:
    """Read an image file into memory as RGB.

    Args:
        path: an image file in a format that PIL reads.

    Returns:
        The decoded image.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    return LazyImage.of(path).open()


def decoded(image: Image.Image | LazyImage) -> Image.Image:
    """Return an image's pixels as a model sees them (:func:`shown`), whichever kind it is.

    Args:
        image: an image in memory, or one that is decoded now.

    Raises:
        InputError: it cannot be decoded, or has pixels of no known range.
    """
    return image.open() if isinstance(image, LazyImage) else shown(image, "an image in memory")


def shown(image: Image.Image, what: str) -> Image.Image:
    """Return an image as a model sees it: upright, RGB, 8 bits per channel.

    Args:
        image: with or without an EXIF orientation; one that is upright and RGB is returned itself.
        what: what messages call it.

    Raises:
        InputError: its pixels are 32-bit integers or floating-point numbers: nothing says which of
            them is white.
    """
    image.load()  # the file may be closed before anybody looks at the pixels
    if is_deep(image):
        eight = np.rint(np.asarray(image).astype(np.float32) / _TO_EIGHT_BITS)
        grey = Image.fromarray(eight.astype(np.uint8))
        grey.getexif().update(image.getexif())
        image = grey
    elif image.mode in _NO_RANGE:
        raise InputError(
            f"{what} has pixels that are {_NO_RANGE[image.mode]}, of which nothing says what white "
            "is; convert it to 8 or 16 bits per channel"
        )
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has grey values of 16 bits."""
    # decoders of these two formats say "I" for 16 bits, some versions of them
    return image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))


def size_of(image: Image.Image | LazyImage) -> tuple[int, int]:
    """Return width and height; of one that stays encoded, only the beginning is read.

    Args:
        image: the image; an EXIF orientation may swap both.

    Raises:
        InputError: it cannot be decoded.
    """
    if isinstance(image, LazyImage):
        return _read(image.encoded(), image.name, lambda opened: opened.size)
    return image.size


def pixel_digest(image: Image.Image | LazyImage | None) -> str:
    """Return a hash of what a model sees of an image, the same however the image is stored.

    Args:
        image: the image, or None.

    Raises:
        InputError: it cannot be decoded.
    """
    if image is None:
        return ""
    pixels = decoded(image)
    return hashlib.blake2b(f"{pixels.size}".encode() + pixels.tobytes(), digest_size=16).hexdigest()


def content_of(image: Image.Image | LazyImage | None) -> bytes:
    """Return bytes that tell images apart: the file as it is, or the pixels of one in memory.

    Args:
        image: an image that stays encoded, because decoding would cost more; one in memory; or
            None, which gives nothing.
    """
    if isinstance(image, LazyImage):
        encoded = image.encoded()
        return encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
    return b"" if image is None else image.tobytes()


def check_image(image: object, what: str) -> bool:
    """Check that something is an image that can be decoded.

    Args:
        image: anything.
        what: whose image it is, for messages.

    Returns:
        Whether its grey values have 16 bits, and are scaled to 8.

    Raises:
        InputError: it is no image, or cannot be decoded, or has pixels of no known range.
    """
    if isinstance(image, LazyImage):
        try:
            return image.check()
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
    if not isinstance(image, Image.Image):
        raise InputError(f"{what} is a {type(image).__name__}; allowed is a PIL image or None")
    try:
        image.load()
        shown(image, what)
    except InputError:
        raise
    except _UNDECODABLE as error:
        raise InputError(f"{what} cannot be decoded ({error}); give a readable image") from error
    return is_deep(image)


def inside(root: Path, name: str | Path, where: str, hint: str = "") -> Path:
    """Return the path of an image that a row of data names, inside the folder of the data.

    Links inside the folder are followed; a name with ``..`` or an absolute one may not leave it.

    Args:
        root: the folder.
        name: as the row has it.
        where: the row's place, for messages.
        hint: how to allow it all the same, for messages.

    Raises:
        InputError: it lies outside.
    """
    path, given = root / name, Path(name)
    plain = not given.is_absolute() and ".." not in given.parts
    if not plain and not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{where} names the image {str(name)!r}, which is not in {str(root)!r}; allowed are "
            f"files inside that folder{hint}"
        )
    return path


def _read(encoded: Encoded, name: str, use: Callable[[Image.Image], T]) -> T:
    file: str | Path | IO[bytes] = BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        with Image.open(file) as image:
            return use(image)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"image {name!r} does not exist") from error
    except _UNDECODABLE as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"image {name!r} cannot be decoded ({reason}); give a readable JPEG or PNG"
        ) from error
