"""A1111's routes for pictures that exist already: enlarging them, asking how they were made and what they show."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.generation.other_programs import PictureHistory, read_history
from fastsd_lib.models import registry
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.a1111_models import Body, Name, Picture, Share
from fastsd_lib.webui.a1111_pictures import in_base64, open_picture, picture_data, read_picture
from fastsd_lib.webui.api_errors import Refused, answers
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.errands import Errands

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.upscale import Upscaler

MOST_PICTURES = 256  # of one batch
MOST_ANSWER_BYTES = 512 * 2**20  # of a batch: all of it is held until the last picture is done
LARGEST_SCALE = 16.0
LONGEST_S = 1800.0  # of one picture's enlarging; large networks are slow without a GPU
Side = Annotated[int, Field(ge=1, le=16_384)]


class ExtrasBody(Body):
    """What is done to every picture."""

    resize_mode: Literal[0, 1] = Field(0, description="0 by upscaling_resize, 1 to upscaling_resize_w x _h")
    show_extras_results: bool = True
    gfpgan_visibility: Share = 0.0
    codeformer_visibility: Share = 0.0
    codeformer_weight: Share = 0.0
    upscaling_resize: float = Field(2.0, gt=0, le=LARGEST_SCALE)
    upscaling_resize_w: Side = 512
    upscaling_resize_h: Side = 512
    upscaling_crop: bool = Field(True, description="cut what is beyond the size; else one side is longer")
    upscaler_1: Name = Field("None", description="one of /sdapi/v1/upscalers; None leaves the size as it is")
    upscaler_2: Name = Field("None", description="blended over the first one")
    extras_upscaler_2_visibility: Share = 0.0
    upscale_first: bool = Field(False, description="before faces are restored")


class OnePicture(ExtrasBody):
    image: Picture = ""


class NamedPicture(Body):
    data: Picture
    name: Name = ""


class ManyPictures(ExtrasBody):
    imageList: list[NamedPicture] = Field(max_length=MOST_PICTURES)  # A1111's spelling


class Enlarged(BaseModel):
    html_info: str
    image: str


class AllEnlarged(BaseModel):
    html_info: str
    images: list[str]


class PictureAsked(Body):
    image: Picture = ""


class PictureInfo(BaseModel):
    """`info`: A1111's text. `items`: the other texts in the file. `parameters`: the settings by A1111's names."""

    info: str
    items: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    program: str = Field("", description="what drew it, as far as it says so")


class InterrogateBody(Body):
    image: Picture = ""
    model: Name = "clip"


class Caption(BaseModel):
    caption: str


def router(context: ApiContext) -> APIRouter:
    routes, errands = APIRouter(tags=["pictures"]), Errands()

    @routes.post("/sdapi/v1/extra-single-image", responses=answers(413, 429))
    async def extra_single_image(body: OnePicture) -> Enlarged:
        """Enlarge one picture."""
        if not body.image.strip():
            raise Refused(422, "image is empty.", "send the picture in base64.")
        info, image = await errands.run(_enlarged, body, body.image, "image", context)
        return Enlarged(html_info=_as_html(info), image=image)

    @routes.post("/sdapi/v1/extra-batch-images", responses=answers(413, 429))
    async def extra_batch_images(body: ManyPictures) -> AllEnlarged:
        """Enlarge several pictures alike; one that cannot be read refuses all of them."""
        if not body.imageList:
            raise Refused(422, "imageList is empty.", 'send [{"data": ..., "name": ...}, ...].')
        done, held = [], 0
        for number, one in enumerate(body.imageList):  # one errand each: others come between
            done.append(await errands.run(_enlarged, body, one.data, f"imageList.{number}.data", context))
            held += len(done[-1][1])
            if held > MOST_ANSWER_BYTES:
                raise Refused(
                    413,
                    f"The first {number + 1} of {len(body.imageList)} pictures are {held / 2**20:.0f} MiB already,"
                    f" and an answer has at most {MOST_ANSWER_BYTES / 2**20:.0f}.",
                    "send fewer of them at once, or enlarge less.",
                )
        return AllEnlarged(html_info=_as_html(done[-1][0]), images=[image for _, image in done])

    @routes.post("/sdapi/v1/png-info", responses=answers(413, 429))
    async def png_info(body: PictureAsked) -> PictureInfo:
        """How a picture was made: as A1111, ComfyUI, InvokeAI, NovelAI and this program write it into their files."""
        if not body.image.strip():
            return PictureInfo(info="")
        return await errands.run(_asked, body.image, context)

    @routes.post("/sdapi/v1/interrogate", responses=answers(404, 413, 429))
    async def interrogate(body: InterrogateBody) -> Caption:
        """What a picture shows, in a few words."""
        if not body.image.strip():
            raise Refused(404, "Image not found: image is empty.", "send the picture in base64.")
        if body.model.lower() != "clip":
            raise Refused(404, f"Model not found: there is no model {body.model!r} here.", 'take "clip".')
        return Caption(caption=await errands.run(caption_of, body.image, context))

    return routes


# ------------------------------------------------------------------ larger


def _enlarged(body: ExtrasBody, text: str, what: str, context: ApiContext) -> tuple[str, str]:
    """(what was done, the picture in base64)."""
    data = picture_data(text, what, context.limits, context.flags)
    result, info, parameters = enlarged(body, data, what, context, patience())
    return info, in_base64(result, context.options, parameters)


def enlarged(
    body: ExtrasBody, data: bytes, what: str, context: ApiContext, told: Callable[[float], None]
) -> tuple[Image, str, str]:
    """A picture's file, enlarged: (the picture, what was done, the text for its file).

    `what` names it in errors; `told` hears the share that is done of each upscaler, and may raise to end it.
    """
    from PIL import ImageOps

    from fastsd_lib.generation.upscale import blended, upscale

    _refuse_faces(body)
    first, second = (_upscaler(body, name, context) for name in ("upscaler_1", "upscaler_2"))
    picture = ImageOps.exif_transpose(open_picture(data, what, context.limits))  # as viewers show it
    info = _done(body, first, second)
    result = picture
    if first.name != "None":
        size = _size(body, picture.size, context)
        device = _device(context)
        result = upscale(picture, first, size, device, told)
        if second.name != "None" and body.extras_upscaler_2_visibility > 0:
            result = blended(
                result, upscale(picture, second, size, device, told), body.extras_upscaler_2_visibility
            )
        if body.resize_mode == 1 and body.upscaling_crop:
            result = _cut(result, (body.upscaling_resize_w, body.upscaling_resize_h))
    history = history_of(data)
    parameters = ", ".join(part for part in (history.parameters if history else "", info) if part)
    return result, info, parameters


def patience() -> Callable[[float], None]:
    """Hears how far the enlarging is, and ends it when it takes too long."""
    end = time.monotonic() + LONGEST_S

    def told(share: float) -> None:
        if time.monotonic() > end:
            text = f"Enlarging this picture takes longer than {LONGEST_S:g} s; {share:.0%} were done."
            raise Refused(422, text, "send a smaller one, or take Lanczos.")

    return told


def _refuse_faces(body: ExtrasBody) -> None:
    for name, visibility in (("GFPGAN", body.gfpgan_visibility), ("CodeFormer", body.codeformer_visibility)):
        if visibility > 0:
            raise Refused(
                422,
                f"{name.lower()}_visibility is {visibility:g}, but this server has no {name} to restore faces.",
                "send 0.",
            )


def _upscaler(body: ExtrasBody, field: str, context: ApiContext) -> Upscaler:
    from fastsd_lib.generation.upscale import find_upscaler

    try:
        return find_upscaler(getattr(body, field), context.service.shelf.folders.upscalers)
    except UserError as error:
        raise Refused(422, f"{field}: {error.message}", error.fix) from None


def _size(body: ExtrasBody, size: tuple[int, int], context: ApiContext) -> tuple[int, int]:
    """By the factor; or so that the size asked for is covered. Refused for more than the server draws."""
    scale = body.upscaling_resize
    if body.resize_mode == 1:
        wanted = body.upscaling_resize_w, body.upscaling_resize_h
        scale = max(side / there for side, there in zip(wanted, size, strict=True))
    larger = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    if body.resize_mode == 1:  # not a pixel short by rounding
        larger = max(larger[0], wanted[0]), max(larger[1], wanted[1])
    limits = context.limits
    if larger[0] * larger[1] > limits.picture_pixels or max(larger) > limits.picture_side_px:
        most = f"{limits.picture_pixels / 1e6:.0f} million pixels and {limits.picture_side_px} on a side"
        raise Refused(422, f"The picture would have {larger[0]} x {larger[1]} pixels; the most is {most}.",
                      "take a smaller upscaling_resize.")  # fmt: skip
    return larger


def _cut(picture: Image, size: tuple[int, int]) -> Image:
    """The middle of the picture."""
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def _done(body: ExtrasBody, first: Upscaler, second: Upscaler) -> str:
    """As A1111 writes it behind a picture's text."""
    if first.name == "None":
        return ""
    by = {"Postprocess upscale by": f"{body.upscaling_resize:g}"}
    if body.resize_mode == 1:
        by = {"Postprocess upscale to": f"{body.upscaling_resize_w}x{body.upscaling_resize_h}"}
        by |= {"Postprocess crop to": "True"} if body.upscaling_crop else {}
    by["Postprocess upscaler"] = first.name
    if second.name != "None" and body.extras_upscaler_2_visibility > 0:
        by |= {"Postprocess upscaler 2": second.name}
    return ", ".join(f"{key}: {value}" for key, value in by.items())


def history_of(data: bytes) -> PictureHistory | None:
    """What the file says of how it was made; None when it can say nothing."""
    try:
        return read_history(data)
    except UserError:  # a BMP, which has no room for texts, or no picture at all
        return None


def _as_html(info: str) -> str:
    return f"<p>{html.escape(info)}</p>" if info else ""


def _device(context: ApiContext) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and context.service.shelf.device != "cpu" else "cpu"


# ------------------------------------------------------------------ asked


def _asked(text: str, context: ApiContext) -> PictureInfo:
    data = picture_data(text, "image", context.limits, context.flags)
    history = history_of(data)
    if history is None:
        open_picture(data, "image", context.limits)  # says what is wrong with it
        return PictureInfo(info="")
    items = {name: value for name, value in history.texts.items() if name != "parameters"}
    parameters = read_infotext(history.parameters, known_styles(context))
    return PictureInfo(info=history.parameters, items=items, parameters=parameters, program=history.program)


def caption_of(text: str, context: ApiContext) -> str:
    from fastsd_lib.generation.interrogate import caption

    picture = read_picture(text, "image", context.limits, context.flags)
    shelf = context.service.shelf
    embedded = registry.EMBEDDED_FOLDER if shelf.current == registry.EMBEDDED else None
    return caption(picture, shelf.folders.captioners, embedded)
