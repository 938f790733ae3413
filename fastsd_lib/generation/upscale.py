"""Larger pictures: by plain resampling, or by networks from the user's folders of upscalers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.library import find_files
from fastsd_lib.generation.request import UPSCALER_LABELS
from fastsd_lib.generation.upscale_nets import ENDINGS, Net, load_net, scale_of
from fastsd_lib.generation.vae import out_of_memory, release

TILE_PX = 256  # of the small picture, at once
CONTEXT_PX = 32  # what a tile sees beyond its own part on each side, so that no seam shows
MOST_PASSES = 3  # of one network; what is missing then is resampled
MOST_PIXELS = 8192 * 8192


@dataclass(frozen=True)
class Upscaler:
    """One way to enlarge, by its name in lists."""

    name: str
    path: Path | None = None  # of its network
    resampling: Image.Resampling | None = None  # of those without one

    @property
    def scale(self) -> int:
        """By how much its network enlarges at once; 4 for those that take any scale, as lists show it."""
        return scale_of(self.path) if self.path else 4


#: "None" leaves a picture as it is.
BUILT_IN = {
    "None": Upscaler("None"),
    "Lanczos": Upscaler("Lanczos", resampling=Image.Resampling.LANCZOS),
    "Nearest": Upscaler("Nearest", resampling=Image.Resampling.NEAREST),
}


def upscalers(folders: Iterable[Path]) -> dict[str, Upscaler]:
    """All of them by name: those built in, then the files in `folders`, whether or not they can be read."""
    files = find_files(folders, ENDINGS)
    return BUILT_IN | {
        name: Upscaler(name, file.path) for name, file in files.items() if name not in BUILT_IN
    }


def find_upscaler(name: str | None, folders: Iterable[Path]) -> Upscaler:
    """By name in any case, with or without the file's ending; None and "" are "None". UserError for another one."""
    known = upscalers(folders)
    found = _called(known.values(), name or "None")
    if found is None:
        near = difflib.get_close_matches(name or "", known, n=3, cutoff=0.5)
        fix = f"nearest: {', '.join(near)}." if near else f"there are: {', '.join(list(known)[:20])}."
        raise UserError(f"There is no upscaler {name!r}.", fix=fix)
    return found


def hires_network(name: str, folders: Iterable[Path]) -> Upscaler:
    """The network of this name, for a second pass. UserError for a name that is neither one nor built in there."""
    networks = [one for one in upscalers(folders).values() if one.path]
    found = _called(networks, name)
    if found is None:
        known = ", ".join([*UPSCALER_LABELS, *(one.name for one in networks)])
        raise UserError(f"hires.upscaler is {name!r}.", fix=f"take one of: {known}.")
    return found


def _called(known: Iterable[Upscaler], name: str) -> Upscaler | None:
    for upscaler in known:
        names = {upscaler.name.casefold(), upscaler.path.name.casefold() if upscaler.path else ""}
        if name.casefold() in names:
            return upscaler
    return None


def upscale(
    picture: Image.Image,
    upscaler: Upscaler,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    told: Callable[[float], None] = lambda share: None,
) -> Image.Image:
    """`picture` at `size` (width, height), as RGB, or RGBA when it is transparent; "None" returns it as it came.

    A network enlarges as often as it takes, and what is then too large is resampled to `size`. `told` hears the
    share that is done, from 0 to 1; what it raises ends the work. UserError for a size nobody can hold.
    """
    if upscaler.path is None and upscaler.resampling is None:
        return picture
    _check_size(size)
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    picture = picture.convert("RGB")
    if upscaler.path is not None:
        picture = _by_network(load_net(upscaler.path, device), picture, size, told)
    if picture.size != size:
        nearest = upscaler.resampling == Image.Resampling.NEAREST
        picture = picture.resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS)
    if alpha is not None:
        picture.putalpha(alpha.resize(size, Image.Resampling.LANCZOS))
    told(1.0)
    return picture


def blended(first: Image.Image, second: Image.Image, share: float) -> Image.Image:
    """Both pictures, of one size and mode, the second one visible by `share` from 0 to 1."""
    return Image.blend(first, second, share) if share else first


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise UserError(
            f"The enlarged picture would have {size[0]} x {size[1]} px.",
            fix=f"take a smaller scale: at most {MOST_PIXELS / 1e6:.0f} million pixels together.",
        )


def _by_network(
    net: Net, picture: Image.Image, size: tuple[int, int], told: Callable[[float], None]
) -> Image.Image:
    needed = max(wanted / there for wanted, there in zip(size, picture.size, strict=True))
    passes = 1  # also where the picture is large enough: it was asked for
    if net.scale > 1:
        passes = min(max(math.ceil(math.log(max(needed, 1)) / math.log(net.scale) - 1e-9), 1), MOST_PASSES)
    for number in range(passes):
        if picture.width * picture.height * net.scale**2 > MOST_PIXELS:
            break  # resampling does the rest
        picture = _enlarged(net, picture, lambda share, done=number: told((done + share) / passes))
    return picture


def _enlarged(net: Net, picture: Image.Image, told: Callable[[float], None]) -> Image.Image:
    """One pass; on a GPU that is full, with ever smaller tiles."""
    tile_px = TILE_PX
    while True:
        try:
            return enlarge(net, picture, tile_px, CONTEXT_PX, told)
        except RuntimeError as error:
            if not out_of_memory(error) or tile_px <= CONTEXT_PX:
                raise
            release()
            tile_px //= 2


@torch.inference_mode()
def enlarge(
    net: Net,
    picture: Image.Image,
    tile_px: int = TILE_PX,
    context_px: int = CONTEXT_PX,
    told: Callable[[float], None] = lambda share: None,
) -> Image.Image:
    """RGB (W, H) -> RGB (W * scale, H * scale), tile by tile.

    Each tile is drawn with its surroundings and cut to its own part: the result is that of the whole picture at
    once where the network sees no farther than `context_px`, and differs unseen where it does.
    """
    device = next(net.parameters()).device
    levels = np.asarray(picture.convert("RGB"))
    height, width = levels.shape[:2]
    scale = net.scale
    result = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
    tiles = [(rows, columns) for rows in _spans(height, tile_px) for columns in _spans(width, tile_px)]
    for number, ((top, bottom), (left, right)) in enumerate(tiles):
        told(number / len(tiles))
        above, before = max(top - context_px, 0), max(left - context_px, 0)
        seen = levels[above : bottom + context_px, before : right + context_px]
        pixels = torch.from_numpy(seen.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        drawn = net(pixels)[0].clamp_(0, 1).mul_(255).round_().to(torch.uint8)  # (3, h, w)
        own = drawn[
            :,
            (top - above) * scale : (bottom - above) * scale,
            (left - before) * scale : (right - before) * scale,
        ]
        result[top * scale : bottom * scale, left * scale : right * scale] = (
            own.permute(1, 2, 0).cpu().numpy()
        )
    return Image.fromarray(result)


def _spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Even parts of `length`, none longer than `most`, each beginning at a multiple of 4: some networks pack pixels."""
    parts = max(math.ceil(length / most), 1)
    step = math.ceil(length / parts / 4) * 4
    for start in range(0, length, step):
        yield start, min(start + step, length)
