"""Open any photo as upright 8-bit RGB, or say in plain words why not."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import HEAD_BYTES, PICTURE_KINDS, UNKNOWN, kind_of, with_article
from fastsd_lib.core.text import escaped

WHITE = (255, 255, 255)
_SEVERAL_BUT_ONE_PHOTO = {"MPO", "ICO", "PSD", "HEIF"}  # previews, sizes, layers


class PhotoError(UserError):
    """A photo that cannot be used. `code` is one word for programs, the message a line for people."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.code = code


@dataclass(frozen=True)
class PhotoLimits:
    """What is refused: by size before a pixel is decoded, so that a 12 kB file cannot fill the memory."""

    min_side_px: int = 64  # smaller ones teach nothing
    max_aspect: float = 8.0  # long side : short side
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = PhotoLimits()


@dataclass(frozen=True)
class Photo:
    """An upright RGB picture without metadata, and what had to be done to get it."""

    image: Image.Image
    kind: str  # "JPEG", "HEIC": the format found, whatever the name says
    notes: tuple[str, ...] = ()  # "animated: the first of 4 frames is used"

    @property
    def lossy(self) -> bool:
        return self.kind in {"JPEG", "HEIC", "AVIF", "WebP", "JPEG 2000"}


def open_photo(path: Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The photo as RGB, upright; transparent parts show `background`. Raises PhotoError."""
    return read_photo(path, background).image


def read_photo(
    path: Path,
    background: tuple[int, int, int] = WHITE,
    limits: PhotoLimits = DEFAULT_LIMITS,
    max_side_px: int | None = None,
) -> Photo:
    """Open one photo by its content, not by its name; the original is only read.

    With `max_side_px`, a larger photo is brought down to that long side, a JPEG already while it is decoded,
    so that a 50 MP one never stands in memory whole. Raises PhotoError.
    """
    kind = photo_kind(path)
    need_plugin_for(kind, path)
    notes: list[str] = []
    with as_photo_errors(path, kind, limits), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bomb and EXIF warnings: our limits speak instead
        picture, whole_px = _decode(path, kind, background, limits, max_side_px, notes)
    if max_side_px and max(picture.size) > max_side_px:
        scale = max_side_px / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if max(picture.size) < whole_px:
        notes.append(f"brought down to {picture.width}x{picture.height} pixels")
    picture.info = {}  # GPS, camera, comments and profile end here
    if all(low == high for low, high in picture.getextrema()):
        notes.append("every pixel has the same colour")
    return Photo(picture, kind, tuple(notes))


@contextmanager
def as_photo_errors(path: Path, kind: str, limits: PhotoLimits = DEFAULT_LIMITS) -> Iterator[None]:
    """Whatever a decoder raises becomes a PhotoError that speaks of the file `path`."""
    try:
        yield
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels("more than 178", limits, path) from None
    except UnidentifiedImageError:
        raise _not_readable(path, kind) from None
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise _damaged(path, kind, error) from None


def _decode(
    path: Path,
    kind: str,
    background: tuple[int, int, int],
    limits: PhotoLimits,
    max_side_px: int | None,
    notes: list[str],
) -> tuple[Image.Image, int]:
    """(the picture upright in RGB, the long side it has in its file)."""
    with Image.open(path) as image:
        refuse_by_size(image.size, limits, path)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in _SEVERAL_BUT_ONE_PHOTO:
            what = "several pages" if kind == "TIFF" else "animated"
            notes.append(f"{what}: the first of {frames} is used")
        whole_px = max(image.size)
        if max_side_px and whole_px > max_side_px:
            # A tenth of slack lets an 8160-px phone photo be halved for 4096 while it is decoded.
            scale = 0.9 * max_side_px / whole_px
            image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
        image.load()
        return to_rgb(upright(image, notes), background, notes), whole_px


_FIX_DAMAGED = "open it in a picture viewer and save it again, or download it again."
_FIX_KIND = "use photos as JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF."


def photo_kind(path: Path) -> str:
    """The picture format by the first bytes, without decoding; PhotoError for whatever is no picture."""
    try:
        if not path.is_file():
            code = "missing" if not path.exists() else "not_a_file"
            what = "is not there" if code == "missing" else "is not a file"
            raise PhotoError(code, f"{_shown(path)} {what}.", "check the path.")
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except PhotoError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise PhotoError(
            "unreadable", f"{_shown(path)} cannot be read: {reason}.", "check its permissions."
        ) from None
    return kind_of_photo(head, path)


def kind_of_photo(head: bytes, path: Path) -> str:
    """The picture format by the first bytes; PhotoError, naming `path`, for whatever is no picture."""
    kind = kind_of(head)
    if kind == "empty file":
        raise PhotoError("empty", f"{_shown(path)} is an empty file (0 bytes).", "copy or download it again.")
    # Pillow knows formats that have no signature of their own, such as TGA; it may try on unknown data.
    if kind not in PICTURE_KINDS and kind != UNKNOWN:
        raise PhotoError(
            "not_a_picture", f"{_shown(path)} is not a photo: it is {with_article(kind)}.", _FIX_KIND
        )
    return kind


def need_plugin_for(kind: str, path: Path) -> None:
    """HEIC is read by pillow-heif; AVIF by Pillow itself where it was built so."""
    from PIL import features

    if kind == "HEIC":
        if importlib.util.find_spec("pillow_heif") is None:
            raise PhotoError(
                "needs_plugin",
                f"{_shown(path)} is a HEIC photo; reading it needs the package pillow-heif.",
                "run the Install cell, or: python3 -m fastsd_lib install core",
            )
        import pillow_heif

        pillow_heif.register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        raise PhotoError(
            "needs_plugin",
            f"{_shown(path)} is an AVIF photo; this Pillow cannot read AVIF.",
            "install pillow 11.3 or newer.",
        )


def refuse_by_size(size: tuple[int, int], limits: PhotoLimits, path: Path) -> None:
    width, height = size
    shape = f"{width}x{height}"
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{shape}, {width * height / 1e6:.0f}", limits, path)
    if min(size) < limits.min_side_px:
        raise PhotoError(
            "too_small",
            f"{_shown(path)} is {shape} pixels; the shorter side must have {limits.min_side_px}.",
            "use a larger version of it.",
        )
    if max(size) > limits.max_aspect * min(size):
        raise PhotoError(
            "too_long",
            f"{_shown(path)} is {shape} pixels, longer than {limits.max_aspect:g}:1.",
            "crop it closer to a square.",
        )


def _too_many_pixels(found: str, limits: PhotoLimits, path: Path) -> PhotoError:
    return PhotoError(
        "too_large",
        f"{_shown(path)} has {found} megapixels; the limit is {limits.max_pixels / 1e6:.0f}.",
        "make it smaller first.",
    )


def _damaged(path: Path, kind: str, error: Exception) -> PhotoError:
    if isinstance(error, MemoryError):
        return PhotoError("too_large", f"{_shown(path)} does not fit into memory.", "make it smaller first.")
    text = str(error).lower()
    if "truncated" in text or "end of file" in text or isinstance(error, EOFError):
        return PhotoError(
            "truncated", f"{_shown(path)} ends too early: a part of the {kind} is missing.", _FIX_DAMAGED
        )
    if isinstance(error, PermissionError):
        return PhotoError(
            "unreadable", f"{_shown(path)} cannot be read: permission denied.", "check its permissions."
        )
    reason = escaped(str(error).splitlines()[0][:100]) if str(error) else type(error).__name__
    return PhotoError("damaged", f"{_shown(path)} is damaged ({kind}): {reason}.", _FIX_DAMAGED)


def _not_readable(path: Path, kind: str) -> PhotoError:
    if kind == UNKNOWN:
        return PhotoError(
            "not_a_picture", f"{_shown(path)} is not a photo: it is {with_article(kind)}.", _FIX_KIND
        )
    message = f"{_shown(path)} begins like {with_article(kind)} but cannot be read as one."
    return PhotoError("damaged", message, _FIX_DAMAGED)


def upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Turn and mirror as the camera's orientation tag (1-8) says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block must not cost the photo
        notes.append("its EXIF block is damaged: shown as it was stored")
        return image


def to_rgb(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> Image.Image:
    """8-bit sRGB from any mode. Wide grey is rescaled: a plain convert() clips it to white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float32) / 65535.0)
    if image.mode in {"I", "F"}:
        return _grey(_unit_range(np.asarray(image).astype(np.float64), notes))
    if image.mode == "CMYK":
        return _by_profile(image, profile, notes) or image.convert("RGB")
    if image.mode == "LAB":
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB")
    if image.has_transparency_data or image.mode in {"PA", "La", "RGBa"}:
        if image.mode in {"La", "RGBa"}:  # premultiplied
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    else:
        image = image.copy()  # a plain Image: no open file, no lazy EXIF
    return _by_profile(image, profile, notes) or image


def _by_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image | None:
    """Colours brought to sRGB by the photo's own ICC profile; None when it has none that fits."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != image.mode:
            return None
        if "srgb" in (source.profile.profile_description or "").lower():
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("its colour profile is damaged: colours are taken as sRGB")
        return None


def _unit_range(values: np.ndarray, notes: list[str]) -> np.ndarray:
    """32-bit integer or float grey as [0, 1]: by what the numbers look like, since no tag says it."""
    finite = np.isfinite(values)
    if not finite.any():
        raise PhotoError("damaged", "This picture holds no numbers, only NaN.", "export it again as PNG.")
    if not finite.all():
        notes.append(f"{int((~finite).sum())} pixels are not numbers: shown black")
    low, high = float(values[finite].min()), float(values[finite].max())
    values = np.where(finite, values, low)
    for full in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= full:
            return values / full
    notes.append(f"grey values {low:.4g} to {high:.4g} are stretched to black and white")
    return (values - low) / (high - low)


def _grey(unit: np.ndarray) -> Image.Image:
    """RGB from grey (H, W) in [0, 1]."""
    return Image.fromarray((unit * 255.0 + 0.5).astype(np.uint8)).convert("RGB")


def _shown(path: Path) -> str:
    return escaped(path.name) or escaped(str(path))
