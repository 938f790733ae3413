"""What our own API is sent and answers: the fields of a GenerationRequest under their own names, pictures in base64.

Bodies are made from the dataclasses, so that no default is written twice.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.jobs import Job, Order
from fastsd_lib.generation.picture_text import picture_bytes
from fastsd_lib.generation.request import MAX_SEED, GenerationRequest, Hires, Inpaint
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.a1111 import check_networks, translate
from fastsd_lib.webui.a1111_checks import check_area
from fastsd_lib.webui.a1111_models import Img2ImgBody, Name, Picture, Txt2ImgBody
from fastsd_lib.webui.a1111_pictures import Pictures
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext, ApiLimits

if TYPE_CHECKING:
    from PIL.Image import Image

JOB_ID = r"^[A-Za-z0-9_-]{1,64}$"
JobId = Annotated[str, Field(pattern=JOB_ID)]
_MOST = ApiLimits()
#: Names in the dataclasses -> what stands for them in a body.
_WORDS: dict[str, Any] = {"Image": Picture}


class _Strict(BaseModel):
    """A field that is not known is refused: it would be a typing error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _body_of(kind: type, name: str, base: type[BaseModel], **changed: tuple[Any, Any]) -> type[BaseModel]:
    """A body with the fields of a dataclass. Texts are as long as a prompt may be, numbers as JSON's."""
    hints = get_type_hints(kind, localns={**vars(dataclasses), **_WORDS})
    fields: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        default = ... if entry.default is dataclasses.MISSING else entry.default
        hint = hints[entry.name]
        if hint is str:
            hint = Annotated[str, Field(max_length=_MOST.prompt_letters)]
        fields[entry.name] = (hint, default)
    return create_model(name, __base__=base, __doc__=kind.__doc__, **{**fields, **changed})


InpaintBody = _body_of(Inpaint, "InpaintBody", _Strict)
HiresBody = _body_of(Hires, "HiresBody", _Strict)
ControlBody = _body_of(ControlUnit, "ControlBody", _Strict)
_WORDS |= {"Inpaint": InpaintBody, "Hires": HiresBody, "ControlUnit": ControlBody}


class _JobBody(_Strict):
    """An order: a request in our own words, or a body of /sdapi/v1/txt2img or img2img as `a1111`."""

    model: Name = Field("", description="a model by name, title or hash; empty is the current one")
    vae: Name = Field("", description="a VAE by name; empty is the model's own")
    id: JobId | None = Field(None, description="the job's id, if you want to choose it")
    at_once: int | None = Field(
        None, ge=1, le=_MOST.pictures, description="pictures to a batch; null is as it suits"
    )
    a1111: dict[str, Any] | None = Field(None, description="instead of the other fields")


JobBody = _body_of(
    GenerationRequest,
    "JobBody",
    _JobBody,
    prompt=(Annotated[str, Field(max_length=_MOST.prompt_letters)], ""),
    seed=(int | None, Field(None, ge=0, le=MAX_SEED, description="null is a random one")),
    control=(Annotated[list[ControlBody], Field(max_length=_MOST.control_units)], Field([])),
)


class Trouble(BaseModel):
    message: str
    fix: str


class PictureView(BaseModel):
    """One finished picture."""

    number: int
    seed: int
    url: str


class JobView(BaseModel):
    """A job as it stands."""

    id: str
    state: str = Field(description="waiting, drawing, done, stopped or failed")
    place: int = Field(description="0 = being drawn or over, 1 = the next one")
    kind: str
    prompt: str
    model: str
    count: int
    step: int
    steps: int
    share: float
    eta_s: float | None
    created_s: float
    started_s: float | None
    finished_s: float | None
    pictures: list[PictureView]
    notes: list[str]
    error: Trouble | None
    url: str
    events: str


def job_view(job: Job) -> JobView:
    url = f"/fastsd/v1/jobs/{job.id}"
    request, error = job.order.request, job.error
    return JobView(
        id=job.id,
        state=job.state,
        place=job.place,
        kind=job.order.kind,
        prompt=request.prompt,
        model=job.order.model,
        count=request.count,
        step=job.step,
        steps=job.steps,
        share=job.share,
        eta_s=job.eta_s,
        created_s=job.created_s,
        started_s=job.started_s,
        finished_s=job.finished_s,
        pictures=[
            PictureView(number=number, seed=one.seed, url=f"{url}/pictures/{number}")
            for number, one in enumerate(list(job.pictures))
        ],
        notes=list(job.notes),
        error=Trouble(message=error.message, fix=error.fix) if error else None,
        url=url,
        events=f"{url}/events",
    )


# ------------------------------------------------------------------ an order -> a body, a body -> an order


def body_of(order: Order) -> dict[str, Any]:
    """What to send to get this order again: every field that is not the usual one. Codes pictures."""
    given = _as_json(order.request) | {"model": order.model, "vae": order.vae, "at_once": order.at_once}
    return JobBody.model_validate(given).model_dump(mode="json", exclude_defaults=True)


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {entry.name: _as_json(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_as_json(one) for one in value]
    if hasattr(value, "getbands"):
        return base64.b64encode(picture_bytes(value, "PNG")).decode("ascii")
    return None if value == math.inf else value


def order_of(body: Any, context: ApiContext, owner: str) -> Order:
    """Decodes pictures: not for the thread that answers everybody. UserError and Refused name the field."""
    if body.a1111 is not None:
        return _order_in_a1111s_words(body, context, owner)
    request = _request_of(body, context)
    request.check()
    for unit in request.control:
        unit.check()
    _check_amounts(request, context)
    check_networks(request, context)
    for unit in request.control:
        if unit.model:
            context.service.shelf.library.controlnets.find(unit.model)
    model = a1111_settings.find_model(context, body.model, "model").name if body.model else ""
    return Order(
        request,
        model=model,
        vae=a1111_settings.find_vae(context, body.vae, "vae"),
        owner=owner,
        at_once=body.at_once,
        task_id=body.id or "",
        kind="img2img" if request.init is not None else "txt2img",
    )


def _request_of(body: Any, context: ApiContext) -> GenerationRequest:
    given = {entry.name: getattr(body, entry.name) for entry in dataclasses.fields(GenerationRequest)}
    if given["seed"] is None:
        given["seed"] = random.randint(0, MAX_SEED - min(max(body.count, 1), MAX_SEED) + 1)
    read = _reader(context)
    given["init"] = read(body.init, "init")
    given["inpaint"] = _made(Inpaint, body.inpaint, "inpaint", read)
    given["hires"] = _made(Hires, body.hires, "hires", read)
    given["control"] = tuple(
        _made(ControlUnit, unit, f"control.{number}", read) for number, unit in enumerate(body.control)
    )
    return GenerationRequest(**given)


def _reader(context: ApiContext) -> Callable[[str | None, str], Image | None]:
    pictures = Pictures(context.limits, context.flags)

    def read(text: str | None, what: str) -> Image | None:
        return None if text is None else pictures.read(text, what)

    return read


def _made(kind: type, body: Any, where: str, read: Callable[[str | None, str], Image | None]) -> Any:
    if body is None:
        return None
    given = {entry.name: getattr(body, entry.name) for entry in dataclasses.fields(kind)}
    for name in ("image", "mask"):
        if name in given:
            given[name] = read(given[name], f"{where}.{name}")
    return kind(**given)


def _check_amounts(request: GenerationRequest, context: ApiContext) -> None:
    limits, hires = context.limits, request.hires
    if request.count > limits.pictures:
        raise Refused(422, f"count is {request.count}.", f"ask for at most {limits.pictures}.")
    if request.inference_steps > limits.steps:
        raise Refused(422, f"inference_steps is {request.inference_steps}.", f"take at most {limits.steps}.")
    for name in ("width_px", "height_px"):
        side = getattr(request, name)
        if side is not None and side < 1:
            raise Refused(422, f"{name} is {side}.", "leave it out for the model's own size.")
    own = request.init.size if request.init else (8, 8)
    width, height = request.width_px or own[0], request.height_px or own[1]
    check_area(width, height, "width_px x height_px", context)
    if hires is not None:
        scale = hires.scale
        for wanted, side in ((hires.width_px, width), (hires.height_px, height)):
            scale = wanted / side if wanted and side else scale  # one side alone keeps the picture's shape
        large = hires.width_px or round(width * scale), hires.height_px or round(height * scale)
        check_area(*large, "the size of the second pass", context)
    small = request.seed_from_width_px or 8, request.seed_from_height_px or 8
    check_area(*small, "seed_from_width_px x seed_from_height_px", context)
    for name in ("prompt", "negative_prompt"):
        tags = getattr(request, name).count("<")
        if tags > limits.networks:
            raise Refused(422, f"{name} has {tags} tags <...>.", f"use at most {limits.networks}.")


def _order_in_a1111s_words(body: Any, context: ApiContext, owner: str) -> Order:
    beside = sorted(body.model_fields_set - {"a1111", "id"})
    if beside:
        raise Refused(422, f"{beside[0]} stands beside a1111.", "say everything in one of the two.")
    kind = Img2ImgBody if "init_images" in body.a1111 else Txt2ImgBody
    try:
        theirs = kind.model_validate(body.a1111)
    except ValidationError as error:
        found = [{**one, "loc": ("body", "a1111", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found) from None
    if not theirs.override_settings_restore_afterwards:
        raise Refused(
            422,
            "a1111.override_settings_restore_afterwards is false: an order changes no settings.",
            "POST them to /sdapi/v1/options.",
        )
    orders = translate(theirs, context, owner).orders
    if len(orders) != 1:
        raise Refused(
            422,
            f"a1111 asks for {len(orders)} orders.",
            "send such scripts to /sdapi/v1, or one job for each.",
        )
    return dataclasses.replace(orders[0], task_id=body.id or "")
