"""The square of each photo that training will see: look at all of them, move any of them."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import data_uri, image_tag, tile

SHOWN_PX = 420
NUDGE = 0.05  # of the shorter side of the photo
NUDGES = (  # label, steps to the right, steps down, steps larger
    ("←", -1, 0, 0),
    ("→", 1, 0, 0),
    ("↑", 0, -1, 0),
    ("↓", 0, 1, 0),
    ("Closer", 0, 0, -1),
    ("Wider", 0, 0, 1),
)


class CropPreview(style.Shown):
    """All crops as tiles, and one photo large with its square to be moved; Save keeps the move."""

    def __init__(self, session: Any, resolution_px: int | None = None) -> None:
        """With `resolution_px`, the size of training, a crop that must be enlarged to it says so."""
        import ipywidgets

        from fastsd_lib.sessions.photos import photos
        from fastsd_lib.workflows import dreambooth

        self.session = session
        self.resolution_px = resolution_px
        self._photos: dict[str, Path] = {photo.name: photo for photo in photos(session)}
        self.crops: dict[str, Any] = dict(dreambooth.crop_photos(session))
        self._image: Any = None  # the chosen photo, whole
        self._uri = ""
        self._tile_images: dict[str, tuple[Any, Any]] = {}  # name -> (box, the crop); photos are slow to open
        self.draft: Any = None  # its box as it stands on the screen
        self._quiet = False

        self.tiles = style.html()
        self.choice = ipywidgets.Dropdown(options=list(self._photos), layout=ipywidgets.Layout(width="260px"))
        self.view = style.html()
        self.crop_view = style.html()
        self.status = style.html()
        self.sliders = {name: _slider(name) for name in ("left", "top", "size")}
        self.nudge_buttons = {
            label: style.button(label, lambda x=x, y=y, grow=grow: self.nudge(x, y, grow))
            for label, x, y, grow in NUDGES
        }
        self.save_button = style.button("Save this crop", self.save, kind="primary", disabled=True)
        self.again_button = style.button("Find again", self.find_again)
        self.previous_button = style.button("‹ Previous", lambda: self._step(-1))
        self.next_button = style.button("Next ›", lambda: self._step(1))
        self.box = self._layout()
        self.choice.observe(lambda change: self._choose(change["new"]), names="value")
        for slider in self.sliders.values():
            slider.observe(lambda _: self._dragged(), names="value")
        self._choose(self.choice.value)

    def save(self) -> None:
        """Keep the square on the screen in crops.json; one set by hand wins over later detections."""
        from fastsd_lib.images.crop import save_crops

        name = self.choice.value
        save_crops(self.session.crops_file, {self._photos[name]: self.draft}, overrule=True)
        self.crops[name] = self.draft
        self._draw("Saved.")
        self._draw_tiles()

    def find_again(self) -> None:
        """Put back the square that detection finds; once saved, it is no longer one set by hand."""
        from fastsd_lib.images.crop import find_crop

        box = find_crop(self._image)
        self._move_to(
            box, f"{_how(box)} {'Not saved yet.' if box != self.crops[self.choice.value] else ''}".strip()
        )

    def nudge(self, x: int, y: int, grow: int) -> None:
        """Move the square by a twentieth of the photo, or make it smaller or larger around its middle."""
        from fastsd_lib.images.crop import crop_by_hand

        step = max(1, round(NUDGE * min(self._image.size)))
        side = max(step, self.draft.side_px + 2 * grow * step)
        left = self.draft.left + x * step - (side - self.draft.side_px) // 2
        top = self.draft.top + y * step - (side - self.draft.side_px) // 2
        self._move_to(crop_by_hand(self._image.size, left, top, side))

    def _layout(self) -> Any:
        if not self._photos:
            return style.card(
                "Crops", style.html('<div class="fsd-help">No photos yet: add some first.</div>')
            )
        controls = style.column(
            *self.sliders.values(),
            style.row(*self.nudge_buttons.values(), grid_gap="2px"),
            style.row(self.save_button, self.again_button, grid_gap="4px"),
            self.status,
            flex="1 1 340px",
        )
        adjust = style.row(
            style.column(self.view, flex="1 1 300px"),
            style.column(self.crop_view, flex="0 0 150px"),
            controls,
            align_items="flex-start",
            grid_gap="18px",
        )
        note = "Training sees only the square. Nothing is cut from the photos themselves."
        heading = style.row(
            style.html('<span class="fsd-label">Adjust one</span>'),
            self.choice,
            self.previous_button,
            self.next_button,
        )
        return style.card("Crops", self.tiles, heading, adjust, note=note)

    def _choose(self, name: str | None) -> None:
        from fastsd_lib.images.load import open_photo

        if name is None:
            return
        try:
            self._image = open_photo(self._photos[name])
        except UserError as error:
            self.status.value = style.failure(error)
            return
        self._uri = data_uri(self._image, SHOWN_PX)
        self.draft = self.crops[name]
        width, height = self._image.size
        self._quiet = True
        for slider, limit in (("left", width), ("top", height), ("size", min(width, height))):
            self.sliders[slider].max = limit
        self._quiet = False
        self._move_to(self.draft, _how(self.draft))
        self._draw_tiles()

    def _dragged(self) -> None:
        from fastsd_lib.images.crop import crop_by_hand

        if not self._quiet:
            left, top, size = (self.sliders[name].value for name in ("left", "top", "size"))
            self._move_to(crop_by_hand(self._image.size, left, top, size))

    def _move_to(self, box: Any, message: str = "Not saved yet.") -> None:
        self.draft = box
        self._quiet = True
        for name, value in (("left", box.left), ("top", box.top), ("size", box.side_px)):
            self.sliders[name].value = value
        self._quiet = False
        self._draw(message)

    def _draw(self, message: str) -> None:
        from fastsd_lib.images.crop import crop_to, enlargement

        name, box = self.choice.value, self.draft
        width, height = self._image.size
        place = (
            f"left:{100 * box.left / width:.3f}%;top:{100 * box.top / height:.3f}%;"
            f"width:{100 * box.side_px / width:.3f}%;height:{100 * box.side_px / height:.3f}%"
        )
        self.view.value = (
            f'<div class="fsd-crop"><img src="{self._uri}" alt="{escape(name, quote=True)}" '
            f'style="max-height:{SHOWN_PX}px"><i style="{place}"></i></div>'
        )
        cropped = crop_to(self._image, box, 150)
        larger = enlargement(box, self.resolution_px) if self.resolution_px else 0.0
        size = f"{box.side_px} px" + (f", enlarged {larger:.1f}x" if larger > 1 else "")
        self.crop_view.value = (
            f"{image_tag(cropped, 150, alt='crop', style='width:150px;border-radius:8px')}"
            f'<div class="fsd-help">{size}</div>'
        )
        self.save_button.disabled = box == self.crops[name]
        self.status.value = f'<span class="fsd-help">{escape(message)}</span>'

    def _draw_tiles(self) -> None:
        cells = [tile(self._cropped(name), name, chosen=name == self.choice.value) for name in self.crops]
        self.tiles.value = f'<div class="fsd-tiles">{"".join(cells)}</div>'

    def _cropped(self, name: str) -> Any:
        from fastsd_lib.images.crop import crop_to
        from fastsd_lib.images.load import open_photo

        known, image = self._tile_images.get(name, (None, None))
        if known != self.crops[name]:
            image = crop_to(open_photo(self._photos[name]), self.crops[name], 160)
            self._tile_images[name] = (self.crops[name], image)
        return image

    def _step(self, by: int) -> None:
        names = list(self._photos)
        self.choice.value = names[(names.index(self.choice.value) + by) % len(names)]


def _slider(name: str) -> Any:
    import ipywidgets

    return ipywidgets.IntSlider(
        min=0 if name != "size" else 1,
        max=1,
        description=name.capitalize(),
        continuous_update=True,
        style={"description_width": "44px"},
        layout=ipywidgets.Layout(width="320px", max_width="100%"),
    )


def _how(box: Any) -> str:
    return {
        "face": "Found by the face.",
        "saliency": "Found by what stands out.",
        "detail": "Found by where the detail is.",
        "centre": "The middle of the photo.",
        "by hand": "Set by hand.",
    }.get(box.reason, "")
