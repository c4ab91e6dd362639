"""How rows of data name their images, and keys that would lose one in silence."""

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.errors import InputError

ImageName = str | LazyImage | Image.Image
"""Name of a file, or an image."""

IMAGE_KEYS = ("image", "path", "url", "image_url", "base64")
"""Keys of an image part of a message that hold its image."""

_PICTURE = re.compile("image|img|picture|photo|pixel", re.IGNORECASE)
_FILES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_DATA_URI = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SHOWN = 60  # characters of a name in messages


def image_of(value: Any, where: str, key: str = "image") -> ImageName:
    """Read an image as a row has it.

    Args:
        value: a path, a ``file://`` address, a data URI in base64, the bytes of a file, or an
            image; under ``image_url`` also an object with such a ``url``.
        where: the row's place, for messages.
        key: what it stands under; under ``base64`` a text is the bytes of a file.

    Returns:
        The image, or the path of its file.

    Raises:
        InputError: it is of another type, lies on a network, or is no base64.

    Example:
        >>> image_of("file:///my/a%20b.png", "line 1"), image_of({"url": "a.png"}, "", "image_url")
        ('/my/a b.png', 'a.png')
    """
    if key == "image_url" and isinstance(value, Mapping):
        return image_of(value.get("url"), where)
    if isinstance(value, bytes):
        return LazyImage.of(value, f"of {where}")
    if isinstance(value, LazyImage | Image.Image):
        return value
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InputError(f"{where} has an image of type {kind}; needed is the name of its file")
    if key == "base64":
        return _decoded(value, where)
    if (uri := _DATA_URI.match(value)) is not None:
        return _decoded(value[uri.end() :], where)
    if _SCHEME.match(value) is None:
        return value
    address = urlsplit(value)
    if address.scheme.lower() != "file" or address.netloc not in ("", "localhost"):
        raise InputError(
            f"{where} has its image at {value[:_SHOWN]!r}; nothing is fetched from a network: "
            "store it and name its file"
        )
    return unquote(address.path)


def stray_image(given: Mapping[str, Any], read: Collection[str]) -> str | None:
    """Return the key that carries an image and is not read, if there is one.

    Args:
        given: a row, a message or a part of one.
        read: keys that are read, or known to be something else.

    Example:
        >>> stray_image({"id": 1, "img": "a.png"}, ("id",)), stray_image({"img": None}, ())
        ('img', None)
    """
    # a row that says "image": null has none, whatever its other keys are called
    said = any(key in given and not given[key] for key in ("image", "images"))
    for key, value in given.items():
        if key in read or value is None:
            continue
        if _is_image(value) or (not said and value and _PICTURE.search(str(key))):
            return str(key)
    return None


def _is_image(value: Any) -> bool:
    """Return whether a value is an image, or the name of an image file."""
    if isinstance(value, list):
        return any(map(_is_image, value))
    if isinstance(value, str):
        return PurePath(value).suffix.lower() in _FILES or value[:11].lower() == "data:image/"
    return isinstance(value, LazyImage | Image.Image | bytes)


def _decoded(text: str, where: str) -> LazyImage:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where} has an image that is not in base64 ({error})") from error
    return LazyImage.of(data, f"of {where}")
