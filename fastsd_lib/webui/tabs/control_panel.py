"""The ControlNet units below a form, as A1111's extension shows them; they are sent as its API's clients send them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_modules import MODULES, RESOLUTION, find_module
from fastsd_lib.generation.control_request import (
    CONTROL_MODE_LABELS,
    CONTROL_PASS_LABELS,
    CONTROL_RESIZE_LABELS,
)
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.controlnet_api import CONTROL_TYPES, DetectBody, detected, module_of, of_type
from fastsd_lib.webui.tabs.canvas import Drawn, canvas, drawn_of
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, icon_button, told
from fastsd_lib.webui.tabs.form import Form, as_base64

if TYPE_CHECKING:
    from fastsd_lib.generation.shelf_files import ModelInfo

WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}  # of the text that a family's U-Net reads
#: Fields of a unit's body; `picture` holds its image and mask.
SENT = ("enabled", "pixel_perfect", "picture", "module", "model", "weight", "guidance_start", "guidance_end",
        "processor_res", "threshold_a", "threshold_b", "control_mode", "resize_mode", "hr_option")  # fmt: skip
NUMBERS = ("processor_res", "threshold_a", "threshold_b")  # a module's sliders, in its order


@dataclass(frozen=True)
class Unit:
    """The components of one unit: those in SENT by their names there, and what serves them."""

    number: int
    parts: dict[str, gr.Component]

    def name(self, part: str) -> str:
        return f"controlnet_{self.number}_{part}"

    def body(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As `alwayson_scripts.ControlNet.args` carries it. UserError for a picture that did not arrive."""
        own = {part: values[self.name(part)] for part in SENT}
        drawn = drawn_of(own.pop("picture"))
        if not own["enabled"]:
            return {"enabled": False}
        own["image"] = drawn and {"image": as_base64(drawn.path), "mask": _mask(drawn)}
        shown = _sliders(own["module"])
        return own | {name: -1 for name, slider in zip(NUMBERS, shown, strict=True) if slider is None}


def build(desk: Desk, form: Form) -> list[Unit]:
    """Lay out the units inside the current block; the form sends those that are enabled."""
    count = desk.context.options["control_net_unit_count"]
    titles = fitting(desk.context)
    units = []
    with (
        gr.Accordion("ControlNet", open=False, elem_id=f"{form.kind}_controlnet"),
        gr.Tabs(elem_classes="controlnet-units"),
    ):
        for number in range(count):
            with gr.Tab(f"Unit {number}") as tab:
                unit = Unit(number, _lay_out(f"{form.kind}_controlnet_{number}", form.kind, titles))
                _wire(unit, tab, desk.context, form)
            form.extras.update({unit.name(part): unit.parts[part] for part in SENT})
            units.append(unit)
    form.readers.append(partial(_read, units))
    return units


def _read(units: list[Unit], values: Mapping[str, Any], body: dict[str, Any]) -> None:
    args = [unit.body(values) for unit in units]
    if any(arg["enabled"] for arg in args):
        body.setdefault("alwayson_scripts", {})["ControlNet"] = {"args": args}


# ------------------------------------------------------------------ what stands where


def _lay_out(prefix: str, kind: str, titles: list[str]) -> dict[str, gr.Component]:
    with gr.Row(elem_classes="controlnet-head"):
        enabled = gr.Checkbox(False, label="Enable", elem_id=f"{prefix}_enable", min_width=100)
        perfect = gr.Checkbox(False, label="Pixel Perfect", elem_id=f"{prefix}_perfect", min_width=120)
    with gr.Row(equal_height=False, elem_classes="controlnet-pictures"):
        about = "The picture of this unit" + (
            "; none = the one that is drawn over" if kind == "img2img" else ""
        )
        picture = canvas("mask", f"{prefix}_picture", about, tall_px=300)
        preview = gr.Image(
            label="Preprocessor preview", interactive=False, visible=False, height=300, format="png",
            elem_id=f"{prefix}_preview", buttons=["download", "fullscreen"],
        )  # fmt: skip
    kinds = _kinds(titles)
    type_ = gr.Radio(kinds, value="All", label="Control Type", elem_id=f"{prefix}_type")
    with gr.Row(elem_classes=["with-tool", "controlnet-model"]):
        module = gr.Dropdown(
            list(MODULES),
            value="none",
            label="Preprocessor",
            elem_id=f"{prefix}_module",
            scale=5,
            min_width=140,
        )
        explode = icon_button("Show what the preprocessor makes of the picture", "spark", f"{prefix}_run")
        model = gr.Dropdown(
            ["None", *titles],
            value="None",
            label="Model",
            elem_id=f"{prefix}_model",
            scale=5,
            min_width=140,
        )
        again = icon_button("Look for ControlNets again", "again", f"{prefix}_refresh")
    with gr.Row():
        bare: dict[str, Any] = {"buttons": [], "min_width": 110}
        weight = gr.Slider(0, 2, 1, step=0.05, label="Weight", elem_id=f"{prefix}_weight", **bare)
        start = gr.Slider(0, 1, 0, step=0.01, label="Starts at", elem_id=f"{prefix}_start", **bare)
        end = gr.Slider(0, 1, 1, step=0.01, label="Ends at", elem_id=f"{prefix}_end", **bare)
    numbers = [
        gr.Slider(64, 2048, 512, step=1, label=RESOLUTION.name, visible=False, buttons=[],
                  elem_id=f"{prefix}_{name}")
        for name in NUMBERS
    ]  # fmt: skip
    mode = gr.Radio(list(CONTROL_MODE_LABELS.values()), value="Balanced", label="Control Mode")
    resize = gr.Radio(list(CONTROL_RESIZE_LABELS.values()), value="Crop and Resize", label="Resize Mode")
    passes = gr.Radio(
        list(CONTROL_PASS_LABELS.values()), value="Both", label="Hires. fix pass", visible=kind == "txt2img"
    )
    return {
        "enabled": enabled, "pixel_perfect": perfect, "picture": picture, "preview": preview, "type": type_,
        "module": module, "explode": explode, "model": model, "again": again, "weight": weight,
        "guidance_start": start, "guidance_end": end, **dict(zip(NUMBERS, numbers, strict=True)),
        "control_mode": mode, "resize_mode": resize, "hr_option": passes,
    }  # fmt: skip


# ------------------------------------------------------------------ what happens


def _wire(unit: Unit, tab: gr.Tab, context: ApiContext, form: Form) -> None:
    part = unit.parts
    numbers = [part[name] for name in NUMBERS]

    def looked_again(kind: str, chosen: str) -> tuple[Any, Any]:
        titles = fitting(context, update=True)
        kinds = _kinds(titles)
        kind = kind if kind in kinds else "All"
        models = of_type(kind, titles)["model_list"]
        return gr.Radio(choices=kinds, value=kind), gr.Dropdown(
            choices=models, value=chosen if chosen in models else "None"
        )

    part["enabled"].change(
        lambda enabled: gr.Tab(label=f"Unit {unit.number}{' ●' if enabled else ''}"),
        part["enabled"],
        tab,
        **AT_ONCE,
    )
    part["type"].input(
        lambda kind: _of_kind(kind, context), part["type"], [part["module"], part["model"]], **QUIET
    )
    part["module"].change(_shown_numbers, part["module"], [*numbers, part["model"]], **QUIET)
    part["again"].click(looked_again, [part["type"], part["model"]], [part["type"], part["model"]], **QUIET)
    shown = [part[name] for name in ("picture", "module", *NUMBERS, "pixel_perfect", "resize_mode")]
    part["explode"].click(
        partial(_preview, context),
        [*shown, form.fields["width"], form.fields["height"]],
        part["preview"],
        show_progress="minimal",
        api_visibility="private",
    )


def _of_kind(kind: str, context: ApiContext) -> tuple[Any, Any]:
    """What A1111 offers for this control type, of what is here and fits the current checkpoint."""
    offered = of_type(kind, fitting(context))
    return (
        gr.Dropdown(choices=offered["module_list"], value=offered["default_option"]),
        gr.Dropdown(choices=offered["model_list"], value=offered["default_model"]),
    )


def _shown_numbers(module: str) -> list[Any]:
    """The module's sliders with their own limits; the model is of no use to one that needs none."""
    updates = [
        gr.Slider(visible=False)
        if slider is None
        else gr.Slider(
            visible=True, label=slider["name"], value=slider["value"],
            minimum=slider["min"], maximum=slider["max"], step=slider.get("step", 1),
        )
        for slider in _sliders(module)
    ]  # fmt: skip
    return [*updates, gr.Dropdown(interactive=not find_module(module).model_free)]


def _preview(
    context: ApiContext, picture: Any, module: str, resolution_px: float, a: float, b: float,
    perfect: bool, resize_mode: str, width_px: float, height_px: float,
) -> Any:  # fmt: skip
    """What the preprocessor makes of the picture, as /controlnet/detect answers it."""
    from PIL import Image

    try:
        drawn = drawn_of(picture)
        if drawn is None:
            raise UserError("There is no picture for the preprocessor.", fix="choose one in this unit.")
        if perfect:
            from fastsd_lib.generation.control import pixel_perfect

            resolution_px = pixel_perfect(
                drawn.picture().size, (int(width_px), int(height_px)), _our(resize_mode)
            )
        shown = _sliders(module)
        body = DetectBody(
            controlnet_module=module,
            controlnet_input_images=[as_base64(drawn.path)],
            controlnet_masks=[mask] if (mask := _mask(drawn)) else [],
            controlnet_processor_res=int(resolution_px) if shown[0] else -1,
            controlnet_threshold_a=a if shown[1] else -1,
            controlnet_threshold_b=b if shown[2] else -1,
        )
        made = detected(body, module_of(body), *_first(body), 0, context)
    except UserError as error:
        raise told(error) from None
    return gr.Image(value=Image.open(io.BytesIO(base64.b64decode(made))), visible=True)


def _first(body: DetectBody) -> tuple[str, str | None]:
    return body.controlnet_input_images[0], next(iter(body.controlnet_masks), None)


# ------------------------------------------------------------------ what there is


def fitting(context: ApiContext, update: bool = False) -> list[str]:
    """The titles of the ControlNets made for the current checkpoint; `update` looks into the folders again."""
    library = getattr(context.service.shelf.library, "controlnets", None)
    if library is None:
        return []
    if update:
        library.refresh()
    width = text_width(context.service.shelf.find())
    return [info.title for info in library.models() if width in (None, info.control.text_width)]


def text_width(model: ModelInfo) -> int | None:
    """How wide the text is that the model's U-Net reads, which its ControlNets share; None = it is not known."""
    try:
        files = model.model_files
        config = files.path / "unet" / "config.json"
        if files.layout == "diffusers" and config.is_file():
            return json.loads(config.read_text(encoding="utf-8"))["cross_attention_dim"]
        if files.path.suffix == ".safetensors":
            from fastsd_lib.core.tensor_file import read_tensor_file

            tensors = read_tensor_file(files.path).tensors
            shapes = (one.shape for name, one in tensors.items() if name.endswith("attn2.to_k.weight"))
            return next((shape[1] for shape in shapes), WIDTHS.get(files.family))
        return WIDTHS.get(files.family)
    except (UserError, OSError, ValueError, KeyError):  # drawing will say what is wrong with the file
        return None


def _kinds(titles: list[str]) -> list[str]:
    """A1111's control types, those for which there is something here."""
    offered = {kind: of_type(kind, titles) for kind in CONTROL_TYPES}
    return [kind for kind, one in offered.items() if len(one["module_list"]) + len(one["model_list"]) > 2]


def _sliders(module: str) -> list[Any]:
    """Resolution and two thresholds of a module, None where it has none."""
    return (find_module(module).sliders + [None] * 3)[:3]


def _our(resize_label: str) -> str:
    return next(name for name, label in CONTROL_RESIZE_LABELS.items() if label == resize_label)


def _mask(drawn: Drawn) -> str | None:
    mask = drawn.mask()
    return None if mask is None else as_base64(mask)
