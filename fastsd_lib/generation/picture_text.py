"""Text inside picture files: PNG text chunks, and EXIF for JPEG, WEBP and AVIF. Written by us, read from anybody.

Reading never decodes pixels: a picture is asked for what it says, and a file of any origin may be asked.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.engine import GeneratedImage

MOST_BYTES = 256 << 20  # of a picture file
MOST_TEXT = 16 << 20  # of text in one picture, unpacked
MOST_CHUNKS = 100_000
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}

_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_OURS = b"fastsd\0"


def save_picture(picture: GeneratedImage, path: Path) -> Path:
    """Write a picture, whole or not at all, that carries how it was made; the format is the suffix's."""
    from fastsd_lib.generation.infotext import infotext

    format_ = FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise UserError(f"{path.name} is no name for a picture.", fix=f"end it in {', '.join(FORMATS)}.")
    data = picture_bytes(picture.image, format_, infotext(picture.record), picture.record)
    with atomic_path(path) as scratch:
        scratch.write_bytes(data)
    return path


def picture_bytes(
    image: Image, format_: str, parameters: str = "", record: Mapping[str, Any] | None = None, **options: Any
) -> bytes:
    """A picture as PNG, JPEG, WEBP or AVIF, with A1111's text and our record in it when they are given.

    `options` are Pillow's for the format: quality, lossless, compress_level.
    """
    parameters = writable(parameters)
    ours = writable(json.dumps(record, ensure_ascii=False)) if record is not None else ""
    file = io.BytesIO()
    if format_ == "PNG":
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        if parameters:
            text.add_text("parameters", parameters)
        if ours:
            text.add_text("fastsd", ours)
        image.save(file, "PNG", pnginfo=text, **options)
        return file.getvalue()
    options = {"quality": 95 if format_ == "JPEG" else 90} | options
    if not parameters and not ours:
        image.convert("RGB").save(file, format_, **options)
        return file.getvalue()
    exif = _exif(parameters, ours)
    if format_ == "JPEG" and len(exif) > 65_000:  # JPEG has no room for more
        exif = _exif(parameters, "")
        if len(exif) > 65_000:
            raise UserError("The prompts are too long to be kept in a JPEG.", fix="save it as PNG or WEBP.")
    image.convert("RGB").save(file, format_, exif=exif, **options)
    return file.getvalue()


def writable(text: str) -> str:
    """The text without the halves of letters that JSON can carry and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _exif(parameters: str, ours: str) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    private = exif.get_ifd(_EXIF_IFD)
    if parameters:  # as the EXIF library that A1111 uses writes it
        private[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be", "replace")
    if ours:
        private[_MAKER_NOTE] = _OURS + ours.encode()
    return exif.tobytes()


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a picture that `save_picture` wrote; None for any other picture."""
    try:
        record = json.loads(read_texts(path).get("fastsd", "null"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_texts(source: Path | bytes) -> dict[str, str]:
    """Every text of a picture file by its name; EXIF's user comment and a GIF's comment are "parameters".

    UserError for what is no picture, and for a file too large to be one that a program here wrote.
    """
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"The picture has {size >> 20:,} MB.", fix=f"take a file of at most {MOST_BYTES >> 20} MB."
            )
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if file.read(8) == b"\x89PNG\r\n\x1a\n":
                return dict(_png_texts(file))
            file.seek(0)
            return _pillow_texts(file)
    except OSError as error:
        name = "The picture" if isinstance(source, bytes) else str(source)
        reason = error.strerror or "no picture that can be read"
        raise UserError(f"{name}: {reason}.", fix="take a PNG, JPEG, WEBP, AVIF or GIF.") from None


def _png_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """The text chunks of a PNG, also those behind the pixels, which stay packed. A torn file says what it can."""
    left = MOST_TEXT
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf") or length > left:
            file.seek(length + 4, io.SEEK_CUR)
            continue
        data = file.read(length)
        if len(data) < length:
            return
        file.seek(4, io.SEEK_CUR)  # the checksum: a wrong one harms nobody here
        for name, text in _png_chunk(kind, data, left).items():
            left -= len(text)
            yield name, text


def _png_chunk(kind: bytes, data: bytes, most: int) -> dict[str, str]:
    if kind == b"eXIf":
        return _exif_texts(b"Exif\0\0" + data)
    name, _, rest = data.partition(b"\0")
    if kind == b"zTXt":
        rest = _unpacked(rest[1:], most)
    elif kind == b"iTXt":
        packed, (_, _, rest) = rest[:1] == b"\1", _three(rest[2:])
        rest = _unpacked(rest, most) if packed else rest
    return {name.decode("latin-1"): _decoded(rest)}


def _three(data: bytes) -> tuple[bytes, bytes, bytes]:
    """An iTXt chunk's language, translated name and text."""
    language, _, rest = data.partition(b"\0")
    translated, _, text = rest.partition(b"\0")
    return language, translated, text


def _unpacked(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""


def _decoded(data: bytes) -> str:
    """UTF-8 if it is; else Latin-1, which PNG prescribes and many programs do not keep to."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _pillow_texts(file: BinaryIO) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(file, formats=["JPEG", "WEBP", "AVIF", "GIF"]) as image:
            texts = _exif_texts(image.info.get("exif", b""))
            comment = image.info.get("comment")
    except Exception as error:  # a hostile file can make a decoder fail in any way
        raise OSError(0, "") from error
    if isinstance(comment, bytes) and comment and len(comment) <= MOST_TEXT:
        texts.setdefault("parameters", _decoded(comment))
    return texts


def _exif_texts(data: bytes) -> dict[str, str]:
    """UserComment is "parameters", MakerNote our record; "name:text" in any tag of the picture is a text."""
    from PIL import Image

    texts: dict[str, str] = {}
    if not data or len(data) > MOST_TEXT:
        return texts
    try:
        exif = Image.Exif()
        exif.load(data)
        private = exif.get_ifd(_EXIF_IFD)
        tags = [value for value in dict(exif).values() if isinstance(value, str)]
    except Exception:  # damaged EXIF: the picture says nothing
        return texts
    for value in tags:  # ComfyUI's WEBP: "prompt:{...}", "workflow:{...}"
        name, colon, text = value.partition(":")
        if colon and name.lower() in ("prompt", "workflow"):
            texts[name.lower()] = text
    comment, note = private.get(_USER_COMMENT), private.get(_MAKER_NOTE)
    if isinstance(comment, bytes) and len(comment) > 8:
        texts["parameters"] = _user_comment(comment)
    elif isinstance(comment, str) and comment:
        texts["parameters"] = comment
    if isinstance(note, bytes) and note.startswith(_OURS):
        texts["fastsd"] = _decoded(note[len(_OURS) :])
    return texts


def _user_comment(comment: bytes) -> str:
    kind, data = comment[:8], comment[8:]
    if kind != b"UNICODE\0":
        known = (b"ASCII\0\0\0", b"\0" * 8, b"JIS\0\0\0\0\0")
        return _decoded(data if kind in known else comment).rstrip("\0")
    # The byte order is not said; the one in which most letters are plain ones is right.
    readings = [data.decode(f"utf-16-{order}", "replace") for order in ("be", "le")]
    best = max(readings, key=lambda text: sum(sign.isascii() and sign != "\0" for sign in text))
    return best.lstrip("\ufeff").rstrip("\0")
