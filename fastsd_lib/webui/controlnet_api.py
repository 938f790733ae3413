"""The routes of A1111's ControlNet extension: what there is, control pictures made on their own, poses drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_modules import MODULES, UNKNOWN_NETWORKS, Module, find_module
from fastsd_lib.webui.a1111_models import Body, Name, Picture
from fastsd_lib.webui.a1111_pictures import in_base64, read_picture
from fastsd_lib.webui.api_errors import Refused, answers, one_line
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.errands import Errands

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.openpose import Person

VERSION = 3
MOST_PICTURES = 64  # of one request
MOST_PEOPLE = 100
USUAL_RESOLUTION_PX = 512

# A1111's groups in its order -> what a model's file name holds when it belongs to one.
CONTROL_TYPES: dict[str, tuple[str, ...]] = {
    "All": ("",),
    "Canny": ("canny",),
    "Depth": ("depth",),
    "NormalMap": ("normal",),
    "OpenPose": ("openpose", "densepose", "dw_openpose"),
    "MLSD": ("mlsd",),
    "Lineart": ("lineart",),
    "SoftEdge": ("softedge", "hed", "pidi"),
    "Scribble": ("scribble", "sketch"),
    "Segmentation": ("seg",),
    "Shuffle": ("shuffle",),
    "Tile": ("tile", "blur"),
    "Inpaint": ("inpaint",),
    "InstructP2P": ("ip2p", "instructp2p"),
    "Reference": (),
    "Recolor": ("recolor",),
    "Revision": (),
    "T2I-Adapter": ("t2iadapter", "t2i-adapter"),
    "IP-Adapter": ("ip-adapter", "ip_adapter"),
    "Instant-ID": ("instant_id", "instant-id"),
    "SparseCtrl": ("sparsectrl",),
}

Numbers = Annotated[list[Annotated[float, Field(ge=-1e5, le=1e5)]], Field(max_length=3 * 70)]


class Version(BaseModel):
    version: int


class ModelList(BaseModel):
    model_list: list[str]


class ModuleList(BaseModel):
    module_list: list[str]
    module_detail: dict[str, dict[str, Any]]


class ControlTypes(BaseModel):
    control_types: dict[str, dict[str, Any]]


class ControlSettings(BaseModel):
    control_net_unit_count: int


class DetectBody(Body):
    """A preprocessor and the pictures that it is to be used on."""

    controlnet_module: Name = "none"
    controlnet_input_images: list[Picture] = Field([], max_length=MOST_PICTURES)
    controlnet_processor_res: int = Field(USUAL_RESOLUTION_PX, le=4096, description="-1 is the usual one")
    controlnet_threshold_a: float = Field(-1, description="-1 is the preprocessor's own")
    controlnet_threshold_b: float = -1
    controlnet_masks: list[Picture] = Field([], max_length=MOST_PICTURES)
    low_vram: bool = False

    @model_validator(mode="before")
    @classmethod
    def _clients_name(cls, given: Any) -> Any:
        """The webuiapi package sends `controlnet_images`."""
        if isinstance(given, dict) and "controlnet_images" in given:
            return {"controlnet_input_images": given["controlnet_images"], **given}
        return given


class Detected(BaseModel):
    info: str
    images: list[str]


class PersonBody(Body):
    """x, y and confidence of each point, one after another; in pixels, or as shares of the canvas."""

    pose_keypoints_2d: Numbers = Field([])
    face_keypoints_2d: Numbers = Field([])
    hand_left_keypoints_2d: Numbers = Field([])
    hand_right_keypoints_2d: Numbers = Field([])


class PoseBody(Body):
    """One picture, in the JSON that OpenPose writes."""

    people: list[PersonBody] = Field([], max_length=MOST_PEOPLE)
    animals: list[Any] = Field([], max_length=0, description="not drawn here")
    canvas_width: int = Field(ge=8, le=4096)
    canvas_height: int = Field(ge=8, le=4096)


def router(context: ApiContext) -> APIRouter:
    routes, errands = APIRouter(prefix="/controlnet", tags=["ControlNet"]), Errands()

    @routes.get("/version")
    async def version() -> Version:
        """Of the extension's API that this one is like."""
        return Version(version=VERSION)

    @routes.get("/model_list")
    async def model_list(update: bool = True) -> ModelList:
        """The ControlNets by title; `update`: look into the folders again."""
        return ModelList(model_list=await errands.run(_models, context, update))

    @routes.get("/module_list")
    async def module_list(alias_names: bool = False) -> ModuleList:
        """The preprocessors and their sliders; `alias_names`: as they are shown to people."""
        named = {_shown(module) if alias_names else module.name: module.detail for module in MODULES.values()}
        return ModuleList(module_list=list(named), module_detail=named)

    @routes.get("/control_types")
    async def control_types() -> ControlTypes:
        """Preprocessors and ControlNets by what they are for."""
        models = await errands.run(_models, context, False)
        return ControlTypes(control_types={kind: of_type(kind, models) for kind in CONTROL_TYPES})

    @routes.get("/settings")
    async def settings() -> ControlSettings:
        return ControlSettings(control_net_unit_count=context.options["control_net_unit_count"])

    @routes.post("/detect", responses=answers(413, 429))
    async def detect(body: DetectBody) -> Detected:
        """Make control pictures."""
        module = module_of(body)
        images = []
        for number, image in enumerate(body.controlnet_input_images):
            mask = body.controlnet_masks[number] if body.controlnet_masks else None
            images.append(await errands.run(detected, body, module, image, mask, number, context))
        return Detected(info="Success", images=images)

    @routes.post("/render_openpose_json", responses=answers(429))
    async def render_openpose_json(
        poses: Annotated[list[PoseBody], Field(max_length=MOST_PICTURES)],
    ) -> Detected:
        """Draw skeletons."""
        images = [await errands.run(_pose, pose, number, context) for number, pose in enumerate(poses)]
        return Detected(info="Success", images=images)

    return routes


# ------------------------------------------------------------------ what there is


def _models(context: ApiContext, update: bool) -> list[str]:
    library = getattr(context.service.shelf.library, "controlnets", None)
    if library is None:  # a shelf on bare folders
        return []
    if update:
        library.refresh()
    return [info.title for info in library.models()]


def _shown(module: Module) -> str:
    return next((alias for alias in module.aliases if "(" in alias), module.name)


def of_type(kind: str, titles: list[str]) -> dict[str, Any]:
    every = kind == "All"
    modules = [module.name for module in MODULES.values() if every or kind in module.control_types]
    modules = list(dict.fromkeys(["none", *modules]))
    models = [title for title in titles if any(word in title.lower() for word in CONTROL_TYPES[kind])]
    return {
        "module_list": modules,
        "model_list": ["None", *models],
        "default_option": "none" if every or len(modules) == 1 else modules[1],
        "default_model": "None" if every or not models else models[0],
    }


# ------------------------------------------------------------------ control pictures


def module_of(body: DetectBody) -> Module:
    """The preprocessor, once it is clear that there is enough to use it on."""
    try:
        module = find_module(body.controlnet_module)
    except UserError as error:
        wanted = body.controlnet_module.lower()
        known = any(start in wanted for start in UNKNOWN_NETWORKS)  # by the extension, and not here
        raise Refused(
            422, f"Module not {'supported' if known else 'available'}: {error.message}", error.fix
        ) from None
    images, masks = len(body.controlnet_input_images), len(body.controlnet_masks)
    if not images:
        raise Refused(422, "No image selected: controlnet_input_images is empty.", "send pictures in base64.")
    if module.name.startswith("inpaint") and not masks:
        raise Refused(422, f"{module.name} needs masks.", "send controlnet_masks, one for each picture.")
    if masks and masks != images:
        raise Refused(422, f"There are {images} pictures and {masks} masks.", "send one for each picture.")
    return module


def detected(
    body: DetectBody, module: Module, image: str, mask: str | None, number: int, context: ApiContext
) -> str:
    from fastsd_lib.generation.preprocessors import preprocess

    picture = read_picture(image, f"controlnet_input_images.{number}", context.limits, context.flags)
    resolution_px = body.controlnet_processor_res
    try:
        made = preprocess(
            picture,
            module.name,
            resolution_px=resolution_px if resolution_px > 0 else USUAL_RESOLUTION_PX,
            a=body.controlnet_threshold_a,
            b=body.controlnet_threshold_b,
            folders=context.service.shelf.folders.controlnets,
        )
    except UserError as error:
        if module.needs:
            raise Refused(422, f"Module not supported: {one_line(error)}") from None
        raise
    if mask is not None and module.name.startswith("inpaint"):
        shade = read_picture(mask, f"controlnet_masks.{number}", context.limits, context.flags)
        made = _without(made, shade)
    return in_base64(made, context.options)


def _without(picture: Image, mask: Image) -> Image:
    """Black where the mask is white."""
    from PIL import Image

    white = mask.convert("RGB").convert("L").resize(picture.size, Image.Resampling.NEAREST)
    hidden = white.point(lambda level: 255 * (level >= 128))
    return Image.composite(Image.new("RGB", picture.size), picture.convert("RGB"), hidden)


# ------------------------------------------------------------------ poses


def _pose(body: PoseBody, number: int, context: ApiContext) -> str:
    from fastsd_lib.generation.openpose import Pose, draw_pose

    people = [_person(person, f"{number}.people.{which}") for which, person in enumerate(body.people)]
    drawn = draw_pose(Pose(body.canvas_width, body.canvas_height, people))
    return in_base64(drawn, context.options)


def _person(person: PersonBody, where: str) -> Person:
    from fastsd_lib.generation.openpose import BODY, FACE, HAND, Person, points_of

    return Person(
        points_of(person.pose_keypoints_2d, BODY, f"{where}.pose_keypoints_2d"),
        points_of(person.hand_left_keypoints_2d, HAND, f"{where}.hand_left_keypoints_2d"),
        points_of(person.hand_right_keypoints_2d, HAND, f"{where}.hand_right_keypoints_2d"),
        points_of(person.face_keypoints_2d, FACE, f"{where}.face_keypoints_2d"),
    )
