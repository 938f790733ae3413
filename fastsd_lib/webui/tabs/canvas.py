"""A picture that can be drawn on, in its own pixels: the mask of an inpainting, the colours of a sketch.

The browser's side is page/canvas.js. Gradio's ImageEditor draws through WebGL, scales the picture to its own
canvas and sends it back in new pixels; here the file that was given is the file that is used.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111_pictures import open_picture
from fastsd_lib.webui.context import ApiLimits

if TYPE_CHECKING:
    from PIL.Image import Image

Mode = Literal["view", "mask", "colour"]
SHADE = "#6366f1"  # the mask as it is shown; only where it is counts
_PREFIX = "data:image/png;base64,"
_LIMITS = ApiLimits()


@dataclass(frozen=True)
class Drawn:
    """What a canvas holds: the file as it was given, and what was drawn on it."""

    path: Path
    layer: Image | None = None  # RGBA, the picture's shape as viewers show it; None = nothing was drawn

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    def picture(self, what: str = "the picture") -> Image:
        """RGB as a viewer shows it. Refused when the file is no picture."""
        from fastsd_lib.generation.canvas import upright

        return upright(open_picture(self.data, what, _LIMITS))

    def mask(self) -> Image | None:
        """L at the picture's size, 255 where something was drawn; None = nowhere."""
        if self.layer is None:
            return None
        return self._fitting(self.layer.getchannel("A")).point(lambda level: 255 * (level >= 128))

    def sketched(self, transparency: float = 0.0) -> Image:
        """RGB: the picture with what was drawn over it; `transparency` 0 to 1 lets the picture through."""
        from PIL import Image

        picture = self.picture()
        if self.layer is None:
            return picture
        layer = self._fitting(self.layer)
        shares = layer.getchannel("A").point(lambda level: round(level * (1 - transparency)))
        return Image.composite(layer.convert("RGB"), picture, shares)

    def _fitting(self, layer: Image) -> Image:
        """A browser that could not hold the whole picture drew on a smaller one."""
        from PIL import Image

        size = self.picture().size
        return layer if layer.size == size else layer.resize(size, Image.Resampling.NEAREST)


def canvas(mode: Mode, elem_id: str, about: str, tall_px: int = 480, **more: Any) -> gr.HTML:
    """The component; read its value with `drawn_of`, give it one with `value_of`."""
    return gr.HTML(
        None,
        html_template=f'<div class="fsd-canvas" data-mode="{mode}" style="--tall: {tall_px}px"></div>',
        js_on_load="window.fastsdCanvas(element, props, trigger, upload, watch)",
        apply_default_css=False,
        elem_id=elem_id,
        label=about,
        mode=mode,
        about=about,
        shade=SHADE,
        **more,
    )


def drawn_of(value: Any) -> Drawn | None:
    """None = no picture. UserError for a value that no canvas of ours makes.

    Gradio has looked whether a file that says it is one was uploaded; anything else is not opened.
    """
    if not value:
        return None
    picture = value.get("picture") if isinstance(value, dict) else None
    if not isinstance(picture, dict) or (picture.get("meta") or {}).get("_type") != "gradio.FileData":
        raise UserError("The picture did not arrive.", fix="choose it again.")
    layer = value.get("layer")
    return Drawn(Path(picture["path"]), _layer(layer) if layer else None)


def _layer(text: str) -> Image:
    try:
        data = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        raise UserError("What was drawn did not arrive.", fix="draw it again.") from None
    return open_picture(data, "what was drawn", _LIMITS).convert("RGBA")


def value_of(path: Path | str | None) -> dict[str, Any] | None:
    """What to send to a canvas so that it shows this file with nothing drawn on it; None empties it."""
    if path is None:
        return None
    return {"picture": gr.FileData(path=str(path)).model_dump(), "layer": None}
