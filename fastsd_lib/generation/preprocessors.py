"""Pictures -> control pictures: what a ControlNet is to follow.

Those that need no network of their own, with the formulas of A1111's ControlNet extension (annotator/ and
scripts/processor.py of Mikubill/sd-webui-controlnet), which the ControlNets of its users were trained or tuned with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.generation.canny import canny
from fastsd_lib.generation.control_modules import Module, find_module

Pixels = np.ndarray  # uint8 (H, W, 3)


def preprocess(
    picture: Image.Image,
    name: str,
    *,
    resolution_px: int | None = None,
    a: float | None = None,
    b: float | None = None,
    folders: Iterable[Path] = (),
) -> Image.Image:
    """The control picture of `picture`, at the preprocessor's size.

    `resolution_px`: its short side, None = the picture's own. `a`, `b`: the preprocessor's two numbers, None or
    below 0 = its own. `folders`: models/ControlNet, for those that read a network. UserError for unknown names
    and numbers out of range.
    """
    module = find_module(name)
    values = [_value(module, place, given) for place, given in ((0, a), (1, b))]
    picture = as_rgb(picture)
    if resolution_px is not None and resolution_px > 0 and module.resolution:
        if not 16 <= resolution_px <= 4096:
            raise UserError(
                f"resolution_px of {module.name} is {resolution_px}.", fix="take 16 to 4096; 512 is usual."
            )
        picture = _short_side(picture, resolution_px)
    if module.needs:
        return _of_network(picture, _annotator(module, folders))
    made = PREPROCESSORS[module.name](np.asarray(picture), *values)
    return Image.fromarray(made if made.ndim == 3 else np.repeat(made[..., None], 3, axis=2))


def as_rgb(picture: Image.Image) -> Image.Image:
    """RGB as a viewer shows it; what is transparent is black, as drawings of lines have it."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):  # depth maps of 16 bits, and floats in [0, 1]
        levels = np.asarray(picture, dtype=np.float64) * (255 if picture.mode == "F" else 255 / 65535)
        picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "black"), over)
    return picture.convert("RGB")


def _unchanged(pixels: Pixels, a: float, b: float) -> Pixels:
    return pixels


def _invert(pixels: Pixels, a: float, b: float) -> Pixels:
    return 255 - pixels


def _threshold(pixels: Pixels, level: float, b: float) -> Pixels:
    return np.where(pixels.min(axis=2) > level, 255, 0).astype(np.uint8)


def _lineart(pixels: Pixels, a: float, b: float) -> Pixels:
    """How much darker than what is around it, against the middle one of the visible lines."""
    depth = (_blurred(pixels, 6) - pixels).min(axis=2).clip(0, 255)
    visible = depth[depth > 8]
    middle = np.median(visible) if visible.size else 0
    return (depth / max(16, middle) * 127).clip(0, 255).astype(np.uint8)


def _xdog(pixels: Pixels, level: float, b: float) -> Pixels:
    """Winnemoeller 2011, "XDoG"; the threshold is on twice the difference."""
    difference = (_blurred(pixels, 5) - _blurred(pixels, 0.5)).min(axis=2)
    dark = (255 - difference).clip(0, 255).astype(np.uint8)
    return np.where(2 * (255 - dark.astype(np.int32)) > level, 255, 0).astype(np.uint8)


def _tile(pixels: Pixels, rate: float, b: float) -> Pixels:
    height, width = pixels.shape[:2]
    smaller = max(int(width / rate), 1), max(int(height / rate), 1)
    return np.asarray(Image.fromarray(pixels).resize(smaller, Image.Resampling.BOX))


def _lightness(pixels: Pixels, gamma: float, b: float) -> Pixels:
    from skimage.color import rgb2lab

    return _with_gamma(rgb2lab(pixels)[..., 0] / 100, gamma)


def _intensity(pixels: Pixels, gamma: float, b: float) -> Pixels:
    return _with_gamma(pixels.max(axis=2) / 255, gamma)


def _with_gamma(levels: np.ndarray, gamma: float) -> np.ndarray:
    return (levels**gamma * 255).round().clip(0, 255).astype(np.uint8)


#: Name -> function of uint8 (H, W, 3) and two numbers, that gives uint8 (H, W, 3) or (H, W).
PREPROCESSORS: dict[str, Callable[[Pixels, float, float], np.ndarray]] = {
    "none": _unchanged,
    "canny": canny,
    "invert": _invert,
    "lineart_standard": _lineart,
    "scribble_xdog": _xdog,
    "threshold": _threshold,
    "blur_gaussian": lambda pixels, sigma, b: _blurred(pixels, sigma).round().clip(0, 255).astype(np.uint8),
    "tile_resample": _tile,
    "recolor_luminance": _lightness,
    "recolor_intensity": _intensity,
    "inpaint_only": _unchanged,  # the mask is laid over it where it becomes numbers
    "inpaint_global_harmonious": _unchanged,
    "reference_only": _unchanged,
}


def fitted(picture: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """A control picture at the size that is drawn: stretched, cropped, or filled up with its edges.

    Lines of one pixel stay lines when they are made smaller, and black and white stay black and white.
    """
    if picture.size == size:
        return picture
    if mode == "crop":
        wide = max(size[0] / picture.width, size[1] / picture.height)
    else:
        wide = min(size[0] / picture.width, size[1] / picture.height)
    inner = size
    if mode != "stretch":
        inner = tuple(max(round(side * wide), 1) for side in picture.size)
    result = np.asarray(_scaled(picture, inner))
    spare = [size[1] - result.shape[0], size[0] - result.shape[1]]
    if mode == "crop":
        top, left = (max(-one, 0) // 2 for one in spare)
        result = result[top : top + size[1], left : left + size[0]]
        spare = [size[1] - result.shape[0], size[0] - result.shape[1]]
    margins = [(max(one, 0) // 2, max(one, 0) - max(one, 0) // 2) for one in spare]
    padded = np.pad(result, [*margins, (0, 0)], mode="constant" if _is_drawn(picture) else "edge")
    return Image.fromarray(padded)


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if not _is_drawn(picture):
        return picture.resize(size, Image.Resampling.LANCZOS)
    from skimage.filters import threshold_otsu
    from skimage.morphology import skeletonize

    smaller = size[0] < picture.width
    gray = np.asarray(picture.convert("L"))
    thin = (gray > 127).sum() <= 1.2 * skeletonize(gray > 127).sum()
    resampling = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    levels = np.asarray(picture.convert("L").resize(size, resampling))
    if levels.min() == levels.max():
        return Image.fromarray(levels).convert("RGB")
    white = levels > threshold_otsu(levels)
    if thin:
        white = skeletonize(white)
    return Image.fromarray(white.astype(np.uint8) * 255).convert("RGB")


def _is_drawn(picture: Image.Image) -> bool:
    """Black and white alone."""
    levels = np.asarray(picture)
    return bool(((levels == 0) | (levels == 255)).all()) and bool((np.ptp(levels, axis=-1) == 0).all())


def _short_side(picture: Image.Image, side_px: int) -> Image.Image:
    factor = side_px / min(picture.size)
    size = tuple(max(round(side * factor), 1) for side in picture.size)
    if size == picture.size:
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS if factor > 1 else Image.Resampling.BOX)


def _blurred(pixels: Pixels, sigma: float) -> np.ndarray:
    """float32, Gaussian; beyond the picture's edge its mirror image."""
    from skimage.filters import gaussian

    return gaussian(pixels.astype(np.float32), sigma, mode="mirror", preserve_range=True, channel_axis=2)


def _value(module: Module, place: int, given: float | None) -> float:
    slider = (module.a, module.b)[place]
    if slider is None:
        return 0.0
    if given is None or given < 0:
        return slider.value
    if not slider.low <= given <= slider.high:
        raise UserError(
            f"threshold_{'ab'[place]} ({slider.name}) of {module.name} is {given:g}.",
            fix=f"take {slider.low:g} to {slider.high:g}; {slider.value:g} is usual.",
        )
    return given


def _annotator(module: Module, folders: Iterable[Path]) -> Path:
    places = [folder / "annotators" / module.needs for folder in folders]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise UserError(
        f"The preprocessor {module.name} needs a network that is not here.",
        fix=f"put a transformers folder (such as depth-anything/Depth-Anything-V2-Small-hf) as "
        f"{places[0] if places else f'models/ControlNet/annotators/{module.needs}'}.",
    )


def _of_network(picture: Image.Image, folder: Path) -> Image.Image:
    estimate = _depth_network(folder)
    levels = np.asarray(estimate(picture)["depth"].convert("L"))
    return Image.fromarray(levels).resize(picture.size, Image.Resampling.BICUBIC).convert("RGB")


@lru_cache(maxsize=1)
def _depth_network(folder: Path) -> Callable:
    require("transformers", group="webui")
    from transformers import pipeline

    return pipeline("depth-estimation", model=str(folder), device="cpu")
