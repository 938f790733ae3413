"""The bodies of AUTOMATIC1111's drawing routes, field by field with its defaults. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fastsd_lib.generation.request import MAX_SEED
from fastsd_lib.webui.context import ApiLimits

_MOST = ApiLimits()
# A1111 draws what it is asked for until memory ends; these are refused at once. Areas are checked in a1111.py.
Side = Annotated[int, Field(ge=8, le=_MOST.side_px)]
Steps = Annotated[int, Field(ge=1, le=_MOST.steps)]
Seed = Annotated[int, Field(ge=-1, le=MAX_SEED)]
Text = Annotated[str, Field(max_length=_MOST.prompt_letters)]
Name = Annotated[str, Field(max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=_MOST.pictures)]
Picture = Annotated[str, Field(description="base64, bare or as data URI: PNG, JPEG, WEBP, GIF, BMP or AVIF")]


class Body(BaseModel):
    """A body in which null is the same as leaving a field out, as in A1111."""

    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {name: value for name, value in given.items() if value is not None}
        return given


class DrawingBody(Body):
    """What text to image and image to image share."""

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: list[Name] = Field([], max_length=100)
    seed: Seed = Field(-1, description="-1 is a random one, told in `info`")
    subseed: Seed = -1
    subseed_strength: Share = 0.0
    seed_resize_from_h: int = Field(-1, le=_MOST.side_px)
    seed_resize_from_w: int = Field(-1, le=_MOST.side_px)
    sampler_name: Name | None = None
    sampler_index: Annotated[Name, BeforeValidator(str)] = Field(
        "Euler", description="a name, too: used when sampler_name is not given"
    )
    scheduler: Name | None = Field(
        None, description="a sigma schedule by label or name; null is the sampler's own"
    )
    batch_size: Count = 1
    n_iter: Count = 1
    steps: Steps = 50
    cfg_scale: float = Field(7.0, ge=0, le=100)
    width: Side = 512
    height: Side = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: float | None = Field(None, ge=0, le=2)
    s_churn: float | None = Field(None, ge=0, le=1000)
    s_tmin: float | None = Field(None, ge=0, le=1000)
    s_tmax: float | None = Field(None, ge=0, description="0 is no bound")
    s_noise: float | None = Field(None, ge=0, le=2)
    s_min_uncond: float | None = None
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: Name | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    script_name: Name | None = None
    script_args: list[Any] = Field([], max_length=_MOST.script_args)
    alwayson_scripts: dict[str, Any] = Field({}, description='{"ControlNet": {"args": [unit, ...]}}')
    send_images: bool = True
    save_images: bool = False
    force_task_id: Name | None = Field(None, description="the id that /internal/progress is asked with")
    infotext: Text | None = Field(None, description="fills every field that is not given")
    comments: dict[str, Any] | None = None
    # Forge's
    distilled_cfg_scale: float = 3.5


class Txt2ImgBody(DrawingBody):
    denoising_strength: Share = Field(0.75, description="of the second pass")
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: Name | None = None
    hr_second_pass_steps: int = Field(0, description="0 is as many as the first pass")
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: Name | None = None
    hr_sampler_name: Name | None = None
    hr_scheduler: Name | None = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""
    firstphase_width: int = Field(0, description="before 2023: the first pass's size, width the second one's")
    firstphase_height: int = 0
    firstpass_image: Picture | None = Field(None, description="begin at the second pass")
    # Forge's
    hr_cfg: float = 1.0
    hr_distilled_cfg: float = 3.5
    hr_additional_modules: list[Any] | None = None


class Img2ImgBody(DrawingBody):
    init_images: list[Picture] = Field([], max_length=_MOST.pictures)
    denoising_strength: Share = 0.75
    resize_mode: int = Field(0, ge=0, le=3, description="0 stretch, 1 crop, 2 fill, 3 latent upscale")
    image_cfg_scale: float | None = None
    mask: Picture | None = Field(None, description="white is drawn anew")
    mask_blur: int | None = Field(None, ge=0, le=64)
    mask_blur_x: int = Field(4, ge=0, le=64)
    mask_blur_y: int = Field(4, ge=0, le=64)
    mask_round: bool = True
    inpainting_fill: int = Field(
        0, ge=0, le=3, description="0 fill, 1 original, 2 latent noise, 3 latent nothing"
    )
    inpaint_full_res: bool = Field(True, description="draw only the mask's surroundings, at full size")
    inpaint_full_res_padding: int = Field(0, ge=0, le=2048)
    inpainting_mask_invert: int = Field(0, ge=0, le=1)
    initial_noise_multiplier: float | None = None
    latent_mask: Picture | None = None
    include_init_images: bool = False


class Drawn(BaseModel):
    """The pictures, the request as it was understood, and how each was made, as JSON in a string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str
