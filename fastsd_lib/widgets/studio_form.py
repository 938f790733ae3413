"""The fields of the studio, and what they say as StudioChoices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import MASK_FILLS, MAX_SEED, RESIZE_MODES, UPSCALER_LABELS
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.widgets import style
from fastsd_lib.widgets.photo_upload import forget_uploads, uploaded_files
from fastsd_lib.widgets.studio_parts import field, fields, small_button
from fastsd_lib.workflows.studio_choices import RANDOM, StudioChoices

MOST_PIXELS = 64_000_000  # of an uploaded picture


class StudioForm:
    """Widgets by the names of StudioChoices; `choices` and `fill` are each other's inverse."""

    def __init__(self, upscalers: Sequence[str] = ()) -> None:
        import ipywidgets as w

        usual = StudioChoices()
        self.last_seed = RANDOM  # of the newest picture, for ♻
        self.pictures: dict[str, Any] = {"init": None, "mask": None}
        whole = w.Layout(width="100%")
        labels = [(label, name) for name, label in UPSCALER_LABELS.items()]
        self.inputs: dict[str, Any] = {
            "prompt": w.Textarea(value=usual.prompt, rows=3, placeholder="What to draw", layout=whole),
            "negative_prompt": w.Textarea(rows=2, placeholder="What should not be in it", layout=whole),
            "sampler": w.Dropdown(options=[(one.label, name) for name, one in SAMPLERS.items()]),
            "schedule": w.Dropdown(options=[(one.label, name) for name, one in SCHEDULES.items()]),
            "inference_steps": w.BoundedIntText(min=1, max=1000),
            "guidance_scale": w.BoundedFloatText(min=0, max=100, step=0.5),
            "width_px": w.BoundedIntText(min=0, max=8192, step=8),
            "height_px": w.BoundedIntText(min=0, max=8192, step=8),
            "count": w.BoundedIntText(min=1, max=100),
            "seed": w.BoundedIntText(min=RANDOM, max=MAX_SEED),
            "clip_skip": w.BoundedIntText(min=1, max=12),
            "tiling": w.Checkbox(indent=False, description="Tiling"),
            "hires": w.Checkbox(indent=False, description="Draw a second, larger pass"),
            "hires_scale": w.BoundedFloatText(min=1, max=8, step=0.25),
            "hires_upscaler": w.Dropdown(options=[*labels, *((name, name) for name in upscalers)]),
            "hires_strength": w.BoundedFloatText(min=0, max=1, step=0.05),
            "hires_steps": w.BoundedIntText(min=0, max=1000),
            "strength": w.BoundedFloatText(min=0, max=1, step=0.05),
            "resize_mode": w.Dropdown(options=[(one.capitalize(), one) for one in RESIZE_MODES]),
            "mask_blur_px": w.BoundedIntText(min=0, max=64),
            "mask_fill": w.Dropdown(
                options=[(one.replace("_", " ").capitalize(), one) for one in MASK_FILLS]
            ),
            "mask_invert": w.Checkbox(indent=False, description="Draw where the mask is black"),
            "only_masked": w.Checkbox(indent=False, description="Draw the masked part at full size"),
        }
        self.styles = w.SelectMultiple(rows=5, layout=whole)
        for name in ("prompt", "negative_prompt"):
            self.inputs[name].add_class("fsd-prompt")
        self.uploads = {
            "init": _upload("Upload a picture", lambda: self._uploaded("init")),
            "mask": _upload("Upload a mask", lambda: self._uploaded("mask")),
        }
        self._shown = style.html()
        self.message = style.html()
        self.fill(usual)

    # --- what it says

    def choices(self, model: str = "") -> StudioChoices:
        values = {name: one.value for name, one in self.inputs.items()}
        return StudioChoices(**values, **self.pictures, model=model, styles=tuple(self.styles.value))

    def fill(self, choices: StudioChoices) -> None:
        """Show these choices; values outside a field's bounds stop at the bound."""
        for name, one in self.inputs.items():
            value = getattr(choices, name)
            options = getattr(one, "options", None)
            if options is None or value in [key for _, key in options]:
                one.value = value
        known = set(self.styles.options)
        self.styles.value = tuple(name for name in choices.styles if name in known)
        self.pictures = {"init": choices.init, "mask": choices.mask}
        self._show_pictures()

    def offer_styles(self, names: Sequence[str]) -> None:
        chosen = [name for name in self.styles.value if name in names]
        self.styles.options = list(names)
        self.styles.value = tuple(chosen)

    def insert(self, text: str) -> None:
        """Put a tag or word at the end of the prompt; take it away where it is there already."""
        prompt = self.inputs["prompt"].value
        if text in prompt:
            self.inputs["prompt"].value = prompt.replace(f" {text}", "").replace(text, "").strip()
        else:
            self.inputs["prompt"].value = f"{prompt} {text}".strip()

    def set(self, **values: Any) -> None:
        self.fill(replace(self.choices(), **values))

    # --- panes

    def usual_fields(self) -> Any:
        get = self.inputs
        seed = style.row(
            get["seed"],
            small_button("🎲", "A new seed for each order", lambda: self.set(seed=RANDOM)),
            small_button("♻", "The newest picture's seed", lambda: self.set(seed=self.last_seed)),
            flex_flow="row nowrap",
            grid_gap="4px",
        )
        get["seed"].layout.flex = "1 1 auto"
        get["seed"].layout.width = "auto"
        return style.column(
            fields(
                field("Sampler", get["sampler"], wide=True),
                field("Steps", get["inference_steps"]),
                field("Schedule", get["schedule"], wide=True),
                field("CFG scale", get["guidance_scale"], tip="0 = the model's own"),
                field("Width (px)", get["width_px"], tip="0 = the model's own"),
                field("Height (px)", get["height_px"], tip="0 = the model's own"),
                field("Pictures", get["count"]),
                field("Seed (-1 = new)", seed, wide=True),
                field("Clip skip", get["clip_skip"]),
            ),
            get["tiling"],
            style.html('<span class="fsd-help">0 as size or CFG scale: the model\'s own.</span>'),
        )

    def hires_fields(self) -> Any:
        get = self.inputs
        return style.column(
            get["hires"],
            fields(
                field("Enlarged by", get["hires_scale"]),
                field("Upscaler", get["hires_upscaler"], wide=True),
                field("Drawn anew", get["hires_strength"], tip="0 keeps the first pass, 1 ignores it"),
                field("Steps (0 = same)", get["hires_steps"]),
            ),
        )

    def picture_fields(self) -> Any:
        get = self.inputs
        note = (
            "The picture is drawn over. With a mask, only its white part is; all else stays, pixel by pixel."
        )
        clear = style.button("Leave both out", lambda: self.set(init=None, mask=None))
        return style.column(
            style.row(*self.uploads.values(), clear),
            self._shown,
            fields(
                field("Drawn anew", get["strength"], tip="0 keeps the picture, 1 ignores it"),
                field("Brought to size", get["resize_mode"]),
                field("Mask blur (px)", get["mask_blur_px"]),
                field("Under the mask", get["mask_fill"]),
            ),
            get["mask_invert"],
            get["only_masked"],
            style.html(f'<span class="fsd-help">{note}</span>'),
        )

    # --- uploads

    def _uploaded(self, name: str) -> None:
        found = uploaded_files(self.uploads[name].value)
        if not found:
            return
        try:
            self.set(**{name: open_upload(found[-1][1])})
            self.message.value = ""
        except UserError as error:
            self.message.value = style.failure(error)
        forget_uploads(self.uploads[name])

    def _show_pictures(self) -> None:
        from fastsd_lib.widgets.pictures import tile

        names = {"init": "picture", "mask": "mask"}
        shown = [
            tile(picture.copy(), f"{names[name]}, {picture.width} × {picture.height}")
            for name, picture in self.pictures.items()
            if picture is not None
        ]
        self._shown.value = f'<div class="fsd-tiles">{"".join(shown)}</div>' if shown else ""


def open_upload(data: bytes) -> Any:
    """An uploaded file as a picture, upright. UserError for what is none."""
    from PIL import Image, ImageOps

    try:
        picture = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
        if picture.width * picture.height > MOST_PIXELS:
            raise UserError(
                f"The picture has {picture.width} x {picture.height} pixels.", fix="take a smaller one."
            )
        picture.load()
        return ImageOps.exif_transpose(picture)
    except UserError:
        raise
    except Exception:  # damaged bytes make decoders raise nearly anything
        raise UserError(
            "This file is no picture that can be read.", fix="take a PNG, JPEG or WebP."
        ) from None


def _upload(label: str, on_upload: Any) -> Any:
    import ipywidgets

    made = ipywidgets.FileUpload(
        accept="image/*", multiple=False, description=label, layout=ipywidgets.Layout(width="auto")
    )
    made.observe(lambda _: on_upload(), names="value")
    return made
