"""Pictures as A1111's API carries them: base64 in, never a path; base64 out, with the infotext inside."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import TYPE_CHECKING, Any

from fastsd_lib.generation.picture_text import picture_bytes
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiFlags, ApiLimits
from fastsd_lib.webui.fetching import fetch_picture

if TYPE_CHECKING:
    from PIL.Image import Image

READ_FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"]
WRITTEN_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF"}
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
FIX = "send a PNG, JPEG or WEBP in base64, bare or as data:image/png;base64,..."


def read_picture(text: str, what: str, limits: ApiLimits, flags: ApiFlags) -> Image:
    """A picture that was sent in the field `what`, decoded. Refused for anything else, before it costs memory."""
    return open_picture(picture_data(text, what, limits, flags), what, limits)


class Pictures:
    """The pictures of one request: each is decoded once, and they do not fill the memory together."""

    def __init__(self, limits: ApiLimits, flags: ApiFlags) -> None:
        self._limits, self._flags = limits, flags
        self._read: dict[str, Image] = {}
        self._pixels = 0

    def read(self, text: str, what: str) -> Image:
        """As `read_picture`; the same text is the same picture."""
        if text not in self._read:
            picture = read_picture(text, what, self._limits, self._flags)
            self._pixels += picture.width * picture.height
            if self._pixels > (most := self._limits.request_pixels):
                said = f"The pictures up to {what} have more than {most / 1e6:.0f} million pixels together."
                raise Refused(422, said, "send fewer or smaller ones.")
            self._read[text] = picture
        return self._read[text]


def picture_data(text: str, what: str, limits: ApiLimits, flags: ApiFlags) -> bytes:
    """The bytes of a picture's file: from base64, or from an https address where that is switched on."""
    text = text.strip()
    if re.match(r"[a-z][a-z0-9+.-]*://", text[:20], re.IGNORECASE):
        if not flags.fetch_urls:
            raise Refused(422, f"{what} is an address ({text[:80]!r}), and this server fetches none.", FIX)
        return fetch_picture(text, limits.picture_bytes)
    prefix = _DATA_URI.match(text[:200])
    encoded = text[prefix.end() :] if prefix else text
    if len(encoded) > limits.picture_bytes * 4 // 3 + 4:
        raise Refused(413, f"{what} is larger than {limits.picture_bytes >> 20} MB.", "send a smaller one.")
    if not encoded:
        raise Refused(422, f"{what} is empty.", FIX)
    try:
        encoded = "".join(encoded.split()).rstrip("=")
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"Invalid encoded image: {what} ({text[:40]!r}) is no base64.", FIX) from None


def open_picture(data: bytes, what: str, limits: ApiLimits) -> Image:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data), formats=READ_FORMATS)
        _check_size(picture.size, what, limits)  # before a pixel is decoded
        picture.load()
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise _too_large("more than 178 million pixels", what, limits) from None
    except Exception:  # damaged bytes make decoders raise nearly anything
        raise Refused(422, f"Invalid encoded image: {what} is no picture that can be read.", FIX) from None
    return picture


def _check_size(size: tuple[int, int], what: str, limits: ApiLimits) -> None:
    if size[0] * size[1] > limits.picture_pixels or max(size) > limits.picture_side_px:
        raise _too_large(f"{size[0]} x {size[1]} pixels", what, limits)


def _too_large(found: str, what: str, limits: ApiLimits) -> Refused:
    most = f"{limits.picture_pixels / 1e6:.0f} million pixels and {limits.picture_side_px} on a side"
    return Refused(422, f"{what} has {found}; the most is {most}.", "send a smaller one.")


def in_base64(image: Image, settings: Any, parameters: str = "") -> str:
    """The picture in the format of the settings' `samples_format`, in base64."""
    return base64.b64encode(file_bytes(image, settings, parameters)).decode("ascii")


def file_bytes(image: Image, settings: Any, parameters: str = "", grid: bool = False) -> bytes:
    """`settings`: the options by their A1111 names. PNG is packed quickly: level 6 takes five times as long."""
    format_ = WRITTEN_FORMATS[settings["grid_format" if grid else "samples_format"]]
    choices: dict[str, Any] = {}
    if format_ == "PNG":
        choices["compress_level"] = 1
    elif format_ == "WEBP" and settings["webp_lossless"]:
        choices["lossless"] = True
    else:
        choices["quality"] = settings["jpeg_quality"]
    return picture_bytes(image, format_, parameters if settings["enable_pnginfo"] else "", **choices)
