"""Flux and Stable Diffusion 3 through diffusers' own pipelines, asked and answered in our words.

Their transformers, noise and text encoders have little in common with a U-Net's, so nothing of our sampling loop is
used: a request's samplers, schedules and prompt language are not followed, and the record says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.generation.canvas import make_canvas
from fastsd_lib.generation.engine import GeneratedImage
from fastsd_lib.generation.prompt_language import BREAK, Schedule, attention, branches
from fastsd_lib.generation.prompt_tags import split_tags, without_comments
from fastsd_lib.generation.record import described
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.samplers import choose
from fastsd_lib.generation.vae import out_of_memory, release
from fastsd_lib.models.fits import check_size

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.canvas import Canvas

BATCH_PIXELS = 1024 * 1024  # of the pictures that are drawn at once
LONGEST_PROMPT = {"flux": 512, "flux_quick": 256, "sd3": 256}  # tokens that T5 reads, as diffusers has it
# Choices of a request that have no meaning here -> what to leave them at. A picture would come out as if unasked.
UNFOLLOWED = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "schedule")
REFUSED = {
    "inpaint": "a mask",
    "hires": "a second pass",
    "control": "ControlNets",
    "tiling": "edges that fit together",
    "variation_strength": "variations of a seed",
    "seed_from_width_px": "the noise of another size",
    "seed_from_height_px": "the noise of another size",
}


Told = Callable[[range, int, int], None]  # numbers of the pictures in work, their step, of so many


class AsItStands(Exception):
    """Raised by who hears of a step: the pictures in work are to end with what is seen of them."""


@dataclass(frozen=True)
class PipelineKind:
    """How one family is asked."""

    text_to_image: str  # classes of diffusers
    image_to_image: str
    guidance_scale: float  # when the request has none
    has_negative: bool  # Flux was distilled from guidance: it has no negative prompt


KINDS = {
    "flux": PipelineKind("FluxPipeline", "FluxImg2ImgPipeline", 3.5, False),
    "sd3": PipelineKind("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", 7.0, True),
}


@dataclass
class PipelineEngine:
    """A loaded Flux or SD3 model; load once, ask often. One thread at a time."""

    pipeline: Any
    model: ModelFiles
    name: str = ""  # the model's name in records; "" = that of its folder

    @property
    def kind(self) -> PipelineKind:
        return KINDS[self.model.family]

    @property
    def modules(self) -> list[torch.nn.Module]:
        """All that have weights."""
        return [one for one in self.pipeline.components.values() if isinstance(one, torch.nn.Module)]

    @property
    def step_px(self) -> int:
        """Width and height are multiples of this: the transformer sees patches of 2 x 2 latents."""
        return self.pipeline.vae_scale_factor * 2

    @property
    def side_px(self) -> int:
        """The size the model was trained for."""
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the model is best asked with."""
        return {"guidance_scale": self.kind.guidance_scale}

    @cached_property
    def over_pictures(self) -> Any:
        """The same modules as a pipeline that draws over a picture."""
        import diffusers

        pipeline = getattr(diffusers, self.kind.image_to_image)(**self.pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def generate(self, request: GenerationRequest, report: Report = silent) -> list[GeneratedImage]:
        """Draw `request.count` pictures; picture i has the seed `request.seed + i`, in any batch.

        UserError for what the model cannot follow; what it merely does not heed is a warning in the record.
        """
        batches = self.batches(request, _told(report, request))
        return [image for batch in batches for image in batch]

    def batches(
        self,
        request: GenerationRequest,
        told: Told,
        first: int = 0,
        most: int | None = None,
    ) -> Iterator[list[GeneratedImage]]:
        """The same pictures as they are finished, from number `first` on, at most `most` at once.

        `told` hears of every step: the numbers of the pictures in work, how many steps they have and will have.
        What it raises ends the drawing; AsItStands ends only the pictures in work, which are given out.
        """
        request.check()
        warnings = self._check(request)
        canvas = None
        if request.init is not None:
            canvas = make_canvas(request, self.step_px, self.side_px)
        width_px, height_px = request.width_px or self.side_px, request.height_px or self.side_px
        if canvas is not None:
            width_px, height_px = canvas.picture.size
        at_once = max(1, min(BATCH_PIXELS // (width_px * height_px), most or request.count))
        while first < request.count:
            numbers = range(first, min(first + at_once, request.count))
            try:
                pictures = self._draw(request, canvas, (width_px, height_px), numbers, told)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                at_once = self._make_room(len(numbers), warnings)
                continue
            facts = {"width_px": width_px, "height_px": height_px}
            yield [
                GeneratedImage(picture, seed, self._record(request, seed, facts | {"warnings": [*warnings]}))
                for picture, seed in zip(pictures, (request.seed + one for one in numbers), strict=True)
            ]
            first = numbers.stop

    def _draw(
        self,
        request: GenerationRequest,
        canvas: Canvas | None,
        size_px: tuple[int, int],
        numbers: range,
        told: Told,
    ) -> list[Image]:
        if canvas is not None and request.strength == 0:
            told(numbers, request.inference_steps, request.inference_steps)
            return [canvas.finish(canvas.picture) for _ in numbers]
        count, steps = len(numbers), request.inference_steps
        options: dict[str, Any] = {
            "prompt": [_plain(request.prompt)] * count,
            "num_inference_steps": steps,
            "guidance_scale": self._guidance(request),
            "width": size_px[0],
            "height": size_px[1],
            # Noise of each picture from its own seed, drawn on the CPU, so that no batch and no device changes it.
            "generator": [torch.Generator("cpu").manual_seed(request.seed + number) for number in numbers],
            "max_sequence_length": self._longest_prompt,
            "callback_on_step_end": _after_step(numbers, told),
        }
        if self.kind.has_negative:
            options["negative_prompt"] = [_plain(request.negative_prompt)] * count
            options["clip_skip"] = request.clip_skip - 2 if request.clip_skip > 2 else None
        pipeline = self.pipeline
        if canvas is not None:
            pipeline = self.over_pictures
            options["image"] = [canvas.picture] * count
            options["strength"] = max(request.strength, 1 / steps + 1e-6)
        try:
            with torch.inference_mode():
                return pipeline(**options).images
        except BaseException:
            self.pipeline.maybe_free_model_hooks()  # of one that is offloaded: what worked last leaves the GPU
            raise

    @property
    def _longest_prompt(self) -> int:
        quick = self.model.family == "flux" and not self.pipeline.transformer.config.guidance_embeds
        return LONGEST_PROMPT["flux_quick" if quick else self.model.family]

    def _guidance(self, request: GenerationRequest) -> float:
        return self.kind.guidance_scale if request.guidance_scale is None else request.guidance_scale

    def _check(self, request: GenerationRequest) -> list[str]:
        """UserError for what would make another picture than the one asked for; the lesser things as warnings."""
        usual = {entry.name: entry.default for entry in dataclasses.fields(request)}
        family = self.model.family
        for name, what in REFUSED.items():
            if getattr(request, name) != usual[name]:
                raise UserError(
                    f"{family} models are not drawn with {what} ({name}) here.",
                    fix=f"leave out {name}, or take an SD 1.x, SD 2.x or SDXL model.",
                )
        for name in ("width_px", "height_px"):
            size = getattr(request, name)
            if size is not None and (size <= 0 or size % self.step_px):
                below = max(size // self.step_px, 1) * self.step_px
                raise UserError(
                    f"{name} is {size}, but this model draws in multiples of {self.step_px}.",
                    fix=f"take {below} or {below + self.step_px}; the model's own size is {self.side_px}.",
                )
        unheeded = [name for name in UNFOLLOWED if getattr(request, name) != usual[name]]
        if choose(request.sampler)[0] not in ("euler", choose(usual["sampler"])[0]):
            unheeded.insert(0, f"sampler {request.sampler}")
        if request.clip_skip > 2 and not self.kind.has_negative:
            unheeded.append("clip_skip")
        if request.negative_prompt and not self.kind.has_negative:
            unheeded.append("negative_prompt")
        warnings = [f"{family} models do not heed: {', '.join(unheeded)}"] if unheeded else []
        return warnings + self._prompt_warnings(request) + self._size_warnings(request)

    def _size_warnings(self, request: GenerationRequest) -> list[str]:
        if request.init is not None:  # a picture that is there already gives the layout
            return []
        size_px = request.width_px or self.side_px, request.height_px or self.side_px
        advice = check_size(self.model.family, *size_px, self.side_px).advice
        return [advice] if advice else []

    def _prompt_warnings(self, request: GenerationRequest) -> list[str]:
        text = _plain(request.prompt)
        tags = [] if request.networks_off else split_tags(without_comments(request.prompt))[1]
        warnings = [f"{tag.text} is not in force here" for tag in tags]
        schedule = Schedule.read(text)
        weighed = any(piece is BREAK or piece.weight != 1 for piece in attention(text))
        if weighed or schedule.whens or schedule.alternates or len(branches(text)) > 1:
            warnings.append("weights, editing and AND in the prompt are read as plain text by this model")
        reader = self.pipeline.tokenizer_2 if self.model.family == "flux" else self.pipeline.tokenizer_3
        tokens = len(reader(text, verbose=False).input_ids) if reader is not None else 0
        if tokens > self._longest_prompt:
            warnings.append(f"the prompt has {tokens} tokens, and {self._longest_prompt} of them are read")
        return warnings

    def _make_room(self, count: int, warnings: list[str]) -> int:
        """How many to draw at once after the memory did not suffice for `count`."""
        release()
        if count > 1:
            warnings.append(
                f"out of memory with {count} pictures at once: {count // 2} at once from there on"
            )
            return count // 2
        offloaded = getattr(self.pipeline, "_offload_gpu_id", None) is not None
        if self.pipeline.device.type != "cuda" or offloaded:
            raise UserError(
                "The memory does not suffice for a picture of this size.",
                fix="take a smaller width and height.",
            ) from None
        self.pipeline.enable_model_cpu_offload()
        self.__dict__.pop("over_pictures", None)
        warnings.append(
            "out of memory with one picture: each part of the model is on the GPU only while it works"
        )
        return 1

    def _record(self, request: GenerationRequest, seed: int, facts: dict[str, Any]) -> dict[str, Any]:
        choices = {entry.name: getattr(request, entry.name) for entry in dataclasses.fields(request)}
        choices = {name: described(value) for name, value in choices.items() if name != "count"}
        transformer = self.pipeline.transformer
        return {
            **choices,
            "guidance_scale": self._guidance(request),
            "sampler": "euler",  # the pipelines' own: Euler steps along straight paths from noise to picture
            "schedule": "simple",
            "seed": seed,
            "variation_seed": None,
            "seed_resize_from": None,
            "strength": request.strength if request.init else None,
            "noise_source": "CPU",
            "model": self.name or self.model.path.name,
            "device": str(self.pipeline.device),
            "dtype": str(transformer.dtype).removeprefix("torch."),
            "extra_parameters": {},
            **facts,
        }


def load_pipeline_engine(model: ModelFiles, device: torch.device, dtype: torch.dtype) -> PipelineEngine:
    """Load a Diffusers folder of Flux or SD3. UserError for single files and folders that are not whole."""
    import diffusers

    if model.layout != "diffusers":
        raise UserError(
            f"{model.path} is a {model.family} model in a single file, which is not opened here.",
            fix=f"make a Diffusers folder of it: python3 -m fastsd_lib convert {model.path.name} {model.path.stem}",
        )
    kind = getattr(diffusers, KINDS[model.family].text_to_image)
    try:
        pipeline = kind.from_pretrained(
            str(model.path), torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{model.path} is not a whole {model.family} pipeline: {str(error).splitlines()[0]}",
            fix="download it again, with its .safetensors weights.",
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    return PipelineEngine(pipeline.to(device), model)


def _plain(prompt: str) -> str:
    return split_tags(without_comments(prompt))[0]


def _told(report: Report, request: GenerationRequest) -> Told:
    """Progress over all pictures, in steps of one picture; those that a low strength saves count as done."""
    each = request.inference_steps

    def told(numbers: range, step: int, steps: int) -> None:
        done = numbers.start * each + (each - steps + step) * len(numbers)
        report(ProgressEvent("drawing", done, request.count * each))

    return told


def _after_step(numbers: range, told: Told) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
    """What diffusers calls after each step, with the latents in `state`; what it returns is gone on with."""
    before: torch.Tensor | None = None

    def after_step(pipeline: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        nonlocal before
        latents, last = state["latents"], before
        before = latents
        try:
            told(numbers, step + 1, pipeline.num_timesteps)
        except AsItStands:
            if last is None:  # a step later there is something to see
                return state
            pipeline._interrupt = True  # diffusers' own way to leave out the steps that remain
            return state | {"latents": _seen(pipeline.scheduler, last, latents)}
        return state

    return after_step


def _seen(scheduler: Any, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Where the straight path through the latents of two steps ends, at no noise."""
    was, sigma = (float(scheduler.sigmas[scheduler.step_index - back]) for back in (1, 0))
    return now - (now - before) * (sigma / (sigma - was))
