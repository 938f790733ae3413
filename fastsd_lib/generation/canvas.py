"""The picture that is drawn over: brought to size, masked, filled, and put back around what was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import GenerationRequest, Inpaint

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Canvas:
    """What the model draws over, at the size it draws in, and where that belongs."""

    picture: Image.Image  # RGB at the working size, filled under the mask where that was asked
    original: Image.Image  # RGB: the result's size and, outside the mask, its pixels
    mask: Image.Image | None = None  # L at the working size, 255 = drawn anew
    blend: Image.Image | None = (
        None  # L at the original's size: how much of the new shows, 0 outside the mask
    )
    box: Box | None = None  # the part of the original that is drawn; None = all of it

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The original with what was drawn in its place. Where `blend` is 0, its pixels are the original's."""
        if self.blend is None:
            return drawn
        left, top, right, bottom = self.box or (0, 0, *self.original.size)
        whole = self.original.copy()
        fitted = drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        whole.paste(fitted, (left, top))
        return Image.composite(whole, self.original, self.blend)


def make_canvas(request: GenerationRequest, factor: int, side_px: int) -> Canvas:
    """Bring `request.init` and its mask to the size that is drawn in, a multiple of `factor` pixels.

    UserError for a mask that marks nothing.
    """
    picture = upright(request.init)
    inpaint = request.inpaint
    own = None if inpaint and inpaint.only_masked else picture.size
    width_px = request.width_px or (own[0] // factor * factor or factor if own else side_px)
    height_px = request.height_px or (own[1] // factor * factor or factor if own else side_px)
    size = width_px, height_px
    if inpaint is None:
        return Canvas(_resized(picture, size, request.resize_mode), picture)
    mask = _mask_of(inpaint, picture.size)
    box = None
    if inpaint.only_masked:
        box = _surroundings(mask, inpaint.padding_px, size)
        original, blend = picture, _feathered(mask, inpaint.blur_px)
        picture = picture.crop(box).resize(size, Image.Resampling.LANCZOS)
        mask = _touched(mask.crop(box).resize(size, Image.Resampling.BOX))
    else:
        picture = original = _resized(picture, size, request.resize_mode)
        mask = _touched(_resized(mask, size, request.resize_mode, Image.Resampling.BOX))
        blend = _feathered(mask, inpaint.blur_px)
    if inpaint.fill == "fill":
        picture = filled(picture, mask)
    return Canvas(picture, original, mask, blend, box)


def latent_mask(mask: Image.Image, factor: int) -> np.ndarray:
    """(h, w) float32: 1 where a latent's patch holds any masked pixel, for what is masked is drawn anew."""
    pixels = np.asarray(mask, dtype=np.uint8) > 0
    height, width = pixels.shape
    patches = pixels.reshape(height // factor, factor, width // factor, factor)
    return patches.any(axis=(1, 3)).astype(np.float32)


def _touched(mask: Image.Image) -> Image.Image:
    """A pixel is masked when any part of it was."""
    return mask.point(lambda level: 255 * (level > 0))


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The masked part coloured by what surrounds it, ever more smoothly towards its middle."""
    known = np.asarray(mask, dtype=np.float32) == 0
    if not known.any():
        return picture
    colours = np.asarray(picture, dtype=np.float32)
    result = np.broadcast_to(colours[known].mean(axis=0), colours.shape).copy()
    for radius_px in (128, 64, 32, 16, 8, 4, 2):  # from far to near: the nearest colour known wins
        share = _blurred(known.astype(np.float32), radius_px)
        near = [_blurred(colours[..., band] * known, radius_px) for band in range(3)]
        there = share > 0.01
        for band in range(3):
            result[..., band][there] = (near[band] / np.maximum(share, 1e-6))[there]
    result[known] = colours[known]
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))


def outpaint(
    picture: Image.Image,
    *,
    left_px: int = 0,
    right_px: int = 0,
    top_px: int = 0,
    bottom_px: int = 0,
    overlap_px: int = 8,
    blur_px: int = 8,
) -> tuple[Image.Image, Inpaint]:
    """A larger canvas around `picture`: the `init` and `inpaint` of a request that draws what is new.

    The new margin begins with the colours of the nearest edge; `overlap_px` of the old picture are drawn
    over, so that the seam is the model's own.
    """
    margins = {"left_px": left_px, "right_px": right_px, "top_px": top_px, "bottom_px": bottom_px}
    for name, margin_px in {**margins, "overlap_px": overlap_px}.items():
        if not 0 <= margin_px <= 4096:
            raise UserError(f"{name} is {margin_px}.", fix="take 0 to 4096.")
    if not any(margins.values()):
        raise UserError(
            "Nothing is to be added on any side.", fix="give left_px, right_px, top_px or bottom_px."
        )
    rows = ((top_px, bottom_px), (left_px, right_px))
    larger = Image.fromarray(np.pad(np.asarray(upright(picture)), (*rows, (0, 0)), mode="edge"))
    inner = [
        edge + overlap_px * bool(margin) * sign
        for edge, margin, sign in (
            (left_px, left_px, 1),
            (top_px, top_px, 1),
            (left_px + picture.width, right_px, -1),
            (top_px + picture.height, bottom_px, -1),
        )
    ]
    mask = Image.new("L", larger.size, 255)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        mask.paste(0, tuple(inner))
    return larger, Inpaint(mask, blur_px=min(blur_px, overlap_px), fill="original")


def upright(picture: Image.Image) -> Image.Image:
    """RGB as a viewer shows it; what is transparent stands on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return picture.convert("RGB")


def _mask_of(inpaint: Inpaint, size: tuple[int, int]) -> Image.Image:
    mask = inpaint.mask.convert("RGBA" if inpaint.mask.mode == "P" else inpaint.mask.mode).convert("L")
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BOX)
    mask = (ImageChops.invert(mask) if inpaint.invert else mask).point(lambda level: 255 * (level >= 128))
    if mask.getbbox() is None:
        raise UserError(
            "The mask marks nothing to draw.", fix="paint white what is to change, or turn invert round."
        )
    return mask


def _feathered(mask: Image.Image, blur_px: int) -> Image.Image:
    """From 0 outside to 255 deep inside, over `blur_px`; a thin part is full along its middle.

    Each pixel's depth (how many erosions it survives) over the greatest depth near it.
    """
    if not blur_px:
        return mask
    depth = np.zeros((mask.height, mask.width), dtype=np.float32)
    left = np.pad(np.asarray(mask) > 0, 1, mode="edge")
    for _ in range(blur_px + 1):
        depth += left[1:-1, 1:-1]
        inner = left[1:-1, 1:-1].copy()
        for rows, columns in ((slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1)),
                              (slice(1, -1), slice(2, None)), (slice(1, -1), slice(None, -2))):  # fmt: skip
            inner &= left[rows, columns]
        left = np.pad(inner, 1, mode="edge")
    near = Image.fromarray(depth.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * blur_px + 1))
    deepest = np.asarray(near, dtype=np.float32)
    return Image.fromarray((255 * depth / np.maximum(deepest, 1)).round().astype(np.uint8))


def _surroundings(mask: Image.Image, padding_px: int, shape: tuple[int, int]) -> Box:
    """The mask's box with its padding, widened to the proportions of `shape` as far as the picture goes."""
    left, top, right, bottom = mask.getbbox()
    box = [left - padding_px, top - padding_px, right + padding_px, bottom + padding_px]
    sides = [box[2] - box[0], box[3] - box[1]]
    wanted = shape[0] / shape[1]
    if sides[0] / sides[1] < wanted:
        sides[0] = round(sides[1] * wanted)
    else:
        sides[1] = round(sides[0] / wanted)
    for axis, limit in enumerate(mask.size):
        middle = (box[axis] + box[axis + 2]) / 2
        length = min(sides[axis], limit)
        start = round(min(max(middle - length / 2, 0), limit - length))
        box[axis], box[axis + 2] = start, start + length
    return tuple(box)


def _resized(
    picture: Image.Image,
    size: tuple[int, int],
    mode: str,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Stretch to `size`; or crop to its proportions; or fit within, the margins continuing the edge."""
    if picture.size == size:
        return picture
    if mode == "crop":
        return ImageOps.fit(picture, size, resampling)
    if mode != "fill":
        return picture.resize(size, resampling)
    inner = ImageOps.contain(picture, size, resampling)
    across, down = size[0] - inner.width, size[1] - inner.height
    margins = [(down // 2, down - down // 2), (across // 2, across - across // 2)]
    return Image.fromarray(
        np.pad(np.asarray(inner), margins + [(0, 0)] * (picture.mode == "RGB"), mode="edge")
    )


def _blurred(levels: np.ndarray, radius_px: int) -> np.ndarray:
    """The mean over a square of `radius_px` to each side; beyond the picture's edge there is 0."""
    for axis in (0, 1):
        margin = [(0, 0), (0, 0)]
        margin[axis] = (radius_px + 1, radius_px)
        sums = np.cumsum(np.pad(levels, margin), axis=axis, dtype=np.float64)
        after = np.split(sums, [2 * radius_px + 1], axis=axis)[1]
        before = np.split(sums, [levels.shape[axis]], axis=axis)[0]
        levels = (after - before) / (2 * radius_px + 1)
    return levels
