"""What image to image draws over: the inner tabs' pictures -> the fields of a request's body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111_checks import GRAIN_PX
from fastsd_lib.webui.batches import scaled
from fastsd_lib.webui.tabs.canvas import Drawn, drawn_of
from fastsd_lib.webui.tabs.form import as_base64

if TYPE_CHECKING:
    from PIL.Image import Image

Values = Mapping[str, Any]
Body = dict[str, Any]
#: The inner tabs in A1111's order, and what they are called.
LABELS = {
    "img2img": "img2img",
    "sketch": "Sketch",
    "inpaint": "Inpaint",
    "inpaint_sketch": "Inpaint sketch",
    "inpaint_upload": "Inpaint upload",
    "batch": "Batch",
}
MASKED = ("inpaint", "inpaint_sketch", "inpaint_upload", "batch")  # where the mask's choices count
SIDES = ("left", "right", "top", "bottom")
_MASK_FIELDS = ("mask_blur", "inpainting_mask_invert", "inpainting_fill", "inpaint_full_res",
                "inpaint_full_res_padding")  # fmt: skip


def read(values: Values, body: Body) -> None:
    """Put the chosen inner tab's picture and mask into the body. UserError when one is missing."""
    mode = values["mode"]
    if mode == "batch":
        return  # its pictures are put in one by one
    drawn = picture_of(values, mode)
    if drawn is None:
        raise UserError(
            f"There is no picture to draw over in the tab {LABELS[mode]}.", fix="drop one there, or paste it."
        )
    _READ[mode](values, drawn, body)
    if "mask" not in body:
        for name in _MASK_FIELDS:
            body.pop(name, None)
    if values["resize_tab"] == "by" and not _margins(values):
        body["width"], body["height"] = scaled(drawn.picture().size, values["scale"])


def picture_of(values: Values, mode: str) -> Drawn | None:
    """What the inner tab shows; None for no picture."""
    return drawn_of(values[f"{mode}_picture"])


def _plain(values: Values, drawn: Drawn, body: Body) -> None:
    margins = _margins(values)
    if margins:
        _outpaint(drawn, margins, int(values["outpaint_overlap"]), body)
    else:
        body["init_images"] = [as_base64(drawn.path)]


def _sketch(values: Values, drawn: Drawn, body: Body) -> None:
    body["init_images"] = [as_base64(drawn.sketched() if drawn.layer else drawn.path)]


def _inpaint(values: Values, drawn: Drawn, body: Body) -> None:
    body["init_images"] = [as_base64(drawn.path)]
    body["mask"] = _mask(drawn.mask())


def _inpaint_sketch(values: Values, drawn: Drawn, body: Body) -> None:
    """What was painted is drawn anew, beginning with its colours."""
    body["mask"] = _mask(drawn.mask())
    body["init_images"] = [as_base64(drawn.sketched(values["mask_alpha"] / 100))]


def _inpaint_upload(values: Values, drawn: Drawn, body: Body) -> None:
    mask = drawn_of(values["inpaint_upload_mask"])
    if mask is None:
        raise UserError(
            "There is no mask in the tab Inpaint upload.", fix="drop one there: white is drawn anew."
        )
    body["init_images"], body["mask"] = [as_base64(drawn.path)], as_base64(mask.path)


_READ: dict[str, Callable[[Values, Drawn, Body], None]] = {
    "img2img": _plain,
    "sketch": _sketch,
    "inpaint": _inpaint,
    "inpaint_sketch": _inpaint_sketch,
    "inpaint_upload": _inpaint_upload,
}


def _mask(mask: Image | None) -> str:
    if mask is None:
        raise UserError("Nothing is marked on the picture.", fix="paint over what is to be drawn anew.")
    return as_base64(mask)


def _margins(values: Values) -> dict[str, int]:
    if values["mode"] != "img2img":
        return {}
    margins = {f"{side}_px": int(values[f"outpaint_{side}"] or 0) for side in SIDES}
    return margins if any(margins.values()) else {}


def _outpaint(drawn: Drawn, margins: dict[str, int], overlap_px: int, body: Body) -> None:
    """A larger picture whose margin is the mask. Drawn as a whole, and only the margin is set in, so that the old
    pixels stay at any size."""
    from fastsd_lib.generation.canvas import outpaint

    larger, inpaint = outpaint(drawn.picture(), **margins, overlap_px=overlap_px)
    sides = [max(round(side / GRAIN_PX) * GRAIN_PX, GRAIN_PX) for side in larger.size]
    body |= {
        "init_images": [as_base64(larger)],
        "mask": as_base64(inpaint.mask),
        "mask_blur": inpaint.blur_px,
        "inpainting_fill": 1,
        "inpainting_mask_invert": 0,
        "inpaint_full_res": True,
        "inpaint_full_res_padding": 2048,
        "width": sides[0],
        "height": sides[1],
    }
