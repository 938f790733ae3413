"""From what a request holds to pixels: base64 or bytes, never a path; sizes are refused before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.transform import Transform
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.fetching import fetch_picture
from fastsd_lib.webui.vit_server.config import ServeConfig

if TYPE_CHECKING:
    import numpy as np

#: Decoders of pictures alone: no EPS, PDF or WMF, which would start programs or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FIX = "send a JPEG, PNG or WEBP, in base64 or as the body itself."
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def file_of(text: str, what: str, config: ServeConfig) -> bytes:
    """The bytes that a text of the body stands for. Refused for what is no base64, and for addresses unless allowed."""
    text = text.strip()
    if _ADDRESS.match(text[:20]):
        if not config.fetch_urls:
            raise Refused(422, f"{what} is an address ({text[:60]!r}), and this server fetches none.", FIX)
        return fetch_picture(text, config.body_mib << 20)
    prefix = _DATA_URI.match(text[:200])
    encoded = text[prefix.end() :] if prefix else text
    try:
        encoded = "".join(encoded.split()).rstrip("=")
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{what} ({text[:40]!r}) is no base64.", FIX) from None


def pixels_of(data: bytes, what: str, transform: Transform, config: ServeConfig) -> np.ndarray:
    """(3, H, W) float32 as the model wants them. Refused for what is no picture, or too large a one."""
    check_size(data, what, config.picture_pixels, config.picture_side_px)
    try:
        return transform.open_and_apply(data)
    except UserError as error:
        raise Refused(422, f"{what}: {error.message}", error.fix or FIX) from None
    except MemoryError:
        raise
    except Exception:  # damaged bytes make decoders raise nearly anything
        raise _no_picture(what) from None


def check_size(data: bytes, what: str, most_pixels: int, most_side_px: int) -> None:
    """Refused unless the head of `data` is that of a picture of at most this size."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: our limit speaks instead
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise _too_large(what, "more than 178 million pixels", most_pixels, most_side_px) from None
    except Exception:
        raise _no_picture(what) from None
    if width * height > most_pixels or max(width, height) > most_side_px:
        raise _too_large(what, f"{width} x {height} pixels", most_pixels, most_side_px)


def _no_picture(what: str) -> Refused:
    return Refused(422, f"{what} is no picture that can be read.", FIX)


def _too_large(what: str, found: str, pixels: int, side_px: int) -> Refused:
    most = f"{pixels / 1e6:.0f} million pixels and {side_px} on a side"
    return Refused(422, f"{what} has {found}; the most is {most}.", "send a smaller one.")
