"""Images that stay encoded until a batch needs them, and what is wrong with those that cannot."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from qvlm_lightning.errors import InputError

# What PIL raises for files that are cut off, mislabelled or absurdly large.
_UNDECODABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)

Encoded = str | Path | bytes


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
        return _read(self.encoded(), self.name, lambda image: image.convert("RGB"))

    def check(self) -> None:
        """Read the whole file, at the smallest size that its format can be decoded to.

        Raises:
            InputError: the file is missing or cannot be decoded.
        """

        def smallest(image: Image.Image) -> Image.Image:
            image.draft("RGB", (1, 1))  # JPEG: an eighth of the size at a fraction of the time
            image.load()
            return image

        _read(self.encoded(), self.name, smallest)


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
    """Return an image's pixels, whichever kind it is.

    Args:
        image: an image in memory, returned as it is, or one that is decoded now.

    Raises:
        InputError: it cannot be decoded.
    """
    return image.open() if isinstance(image, LazyImage) else image


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


def check_image(image: object, what: str) -> None:
    """Check that something is an image that can be decoded.

    Args:
        image: anything.
        what: whose image it is, for messages.

    Raises:
        InputError: it is no image, or cannot be decoded.
    """
    if isinstance(image, LazyImage):
        try:
            image.check()
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        return
    if not isinstance(image, Image.Image):
        raise InputError(f"{what} is a {type(image).__name__}; allowed is a PIL image or None")
    try:
        image.load()
    except _UNDECODABLE as error:
        raise InputError(f"{what} cannot be decoded ({error}); give a readable image") from error


def _read(encoded: Encoded, name: str, use: Callable[[Image.Image], Image.Image]) -> Image.Image:
    file: str | Path | IO[bytes] = BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        with Image.open(file) as image:
            return use(image)
    except FileNotFoundError as error:
        raise InputError(f"image {name!r} does not exist") from error
    except _UNDECODABLE as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"image {name!r} cannot be decoded ({reason}); give a readable JPEG or PNG"
        ) from error
