"""Requests in, pictures with their full record out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.formats.parts import DRAWN_FAMILIES, Parts, load_parts
from fastsd_lib.formats.single_file import carries_configs
from fastsd_lib.generation.denoising import denoise_together
from fastsd_lib.generation.fast_unet import prepare
from fastsd_lib.generation.passes import batch
from fastsd_lib.generation.plan import GUIDANCE_SCALE, Plan, drawing_mode, make_plan
from fastsd_lib.generation.record import record_of
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.text_reader import EncodingCache
from fastsd_lib.generation.vae import out_of_memory, release
from fastsd_lib.models import registry
from fastsd_lib.models.fits import check_base
from fastsd_lib.models.identify import describe

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.pipeline_engine import PipelineEngine
    from fastsd_lib.generation.resources import Library

__all__ = ["GUIDANCE_SCALE", "Engine", "GeneratedImage", "draw", "load_engine"]

BATCH_LATENTS = 4 * 64 * 64  # four pictures of 512 px at once, or 64 of 64 px


@dataclass(frozen=True)
class GeneratedImage:
    image: Image
    seed: int
    record: dict[str, Any]  # everything needed to draw it again
    control_maps: Sequence[Image] = ()  # the request's control pictures, the same for all of its pictures


@dataclass
class Engine:
    """A loaded model; load once, ask often. One thread at a time."""

    parts: Parts
    model: ModelFiles
    texts: EncodingCache = field(default_factory=EncodingCache)  # whoever changes weights sets its `state`
    library: Library | None = None  # where names in prompts are looked up

    @property
    def modules(self) -> list[torch.nn.Module]:
        """All that have weights."""
        return self.parts.modules

    @property
    def name(self) -> str:
        """The model's name in records."""
        return self.parts.name

    @property
    def step_px(self) -> int:
        """Width and height are multiples of this."""
        return self.parts.vae_factor

    @property
    def side_px(self) -> int:
        """The size the model was trained for."""
        return self.parts.side_px

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the model is best asked with, where it says so."""
        return self.parts.defaults

    def generate(self, request: GenerationRequest, report: Report = silent) -> list[GeneratedImage]:
        return draw(self.parts, request, report, self.texts, self.library)


def load_engine(
    model: ModelFiles,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    config_from: Path | None = None,
) -> Engine | PipelineEngine:
    """Load a model for drawing; Flux and SD3 as an engine of their own, asked and answered alike.

    `device`: auto (the GPU when there is one), cpu, cuda, mps. `dtype`: auto (fp16 on a GPU, bf16 there for
    Flux and SD3, fp32 on the CPU, whose half precision is slower than its full one), fp16, bf16, fp32.
    `threads`: CPU threads, None = torch's own. `config_from`: a Diffusers folder that lends its configs and
    tokenizer to a single file without; by default those of a known model of its shape (Stable Diffusion 1.5:
    from the Hub, whose tokenizer is that of SD 2.x and SDXL, too).
    """
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in (*dtypes, "auto"):
        raise UserError(f"No dtype {dtype!r}.", fix=f"take auto, {', '.join(dtypes)}.")
    if threads:
        torch.set_num_threads(threads)
    where = _device(device)
    _check_drawn(model)
    if model.family not in DRAWN_FAMILIES:
        from fastsd_lib.generation.pipeline_engine import load_pipeline_engine  # reads this file

        usual = torch.float32 if where.type == "cpu" else torch.bfloat16
        return load_pipeline_engine(model, where, dtypes.get(dtype, usual))
    if config_from is None and model.layout == "single_file" and not carries_configs(model.path):
        config_from = registry.configs_for(model.path)
    chosen = dtypes.get(dtype, torch.float32 if where.type == "cpu" else torch.float16)
    parts = load_parts(model, where, chosen, config_from)
    prepare(parts, threads)
    return Engine(parts, model)


def _check_drawn(model: ModelFiles) -> None:
    """UserError for models that take more than text, such as Flux Fill or unCLIP: they would fail at the first step."""
    try:
        seen = describe(model.path)
    except UserError:
        return  # a model that is not whole: loading says what it lacks
    check_base(seen, "draw", name=str(model.path)).enforced()


def draw(
    parts: Parts,
    request: GenerationRequest,
    report: Report = silent,
    texts: EncodingCache | None = None,
    library: Library | None = None,
) -> list[GeneratedImage]:
    """Draw `request.count` pictures with live modules, which keep their training mode and dtype.

    Picture i has the seed `request.seed + i`: its noise comes from the CPU and from that seed alone, so it is
    the same picture in any batch and on any device, up to rounding. `report` hears every step; what it raises
    ends the drawing. When memory does not suffice, fewer are drawn at once, and the record says so.
    `texts`: encodings of earlier prompts, for weights that stay. `library`: the LoRA files, learned words and
    ControlNets that the request may name. UserError for values the model cannot follow.
    """
    plan = make_plan(parts, request, texts, library)
    at_once = 1 if plan.alone else max(1, min(BATCH_LATENTS // plan.largest_latents, request.count))
    pictures: list[Image] = []
    while len(pictures) < request.count:
        numbers = range(len(pictures), min(len(pictures) + at_once, request.count))
        try:
            with drawing_mode(plan):
                pictures += _run(plan, numbers, _told(report, numbers, at_once, plan))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            release()
            if len(numbers) == 1 and can_offload(parts):
                parts.offload()
                plan.note("out of memory with one picture: text encoders and VAE are on the GPU only to work")
                continue
            if len(numbers) == 1:
                raise UserError(
                    f"The memory does not suffice for a picture of {plan.width_px} x {plan.height_px} px.",
                    fix="take a smaller width_px and height_px, or the dtype fp16 on a GPU.",
                ) from None
            at_once = len(numbers) // 2
            plan.note(f"out of memory with {len(numbers)} pictures at once: {at_once} at once from there on")
    return [
        GeneratedImage(picture, plan.seeds[number], record_of(plan, number), plan.control_maps)
        for number, picture in enumerate(pictures)
    ]


def _run(plan: Plan, numbers: range, told: Callable[[int], None]) -> list[Image]:
    """Draw one batch alone, to its end."""
    passes = batch(plan, numbers, told)
    try:
        while True:
            denoising = next(passes)
            while denoising.ask is not None:
                denoise_together(plan.parts, plan.levels, [denoising])
    except StopIteration as end:
        return end.value


def can_offload(parts: Parts) -> bool:
    """The last resort; only a GPU has another memory to go to. Not tried on a GPU yet, for want of one."""
    return next(parts.unet.parameters()).device.type == "cuda" and not parts.offloaded


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu"]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name.split(":")[0] not in there:
        raise UserError(f"No device {name!r} here (there: {', '.join(there)}).", fix="take auto.")
    return torch.device(name)


def _told(report: Report, numbers: range, at_once: int, plan: Plan) -> Callable[[int], None]:
    """Progress over all batches as one task, in steps."""
    count, steps = plan.request.count, plan.all_steps
    batches = -(-count // at_once)
    which = f"{numbers.start + 1}-{numbers.stop}" if len(numbers) > 1 else f"{numbers.start + 1}"
    facts = {"picture": f"{which} of {count}"} if count > 1 else {}

    def told(step: int) -> None:
        report(ProgressEvent("drawing", numbers.start // at_once * steps + step, batches * steps, facts))

    return told
