"""Text to image: one request in, pictures with their full record out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.formats.parts import Parts, encode_prompts, load_parts
from fastsd_lib.formats.single_file import carries_configs
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.samplers import make_scheduler
from fastsd_lib.models import registry

if TYPE_CHECKING:
    from PIL.Image import Image

GUIDANCE_SCALE = 7.5  # of models that do not say their own
BATCH_LATENTS = 4 * 64 * 64  # four pictures of 512 px at once, or 64 of 64 px
DECODE_PIXELS = 512 * 512  # the VAE's memory peaks at full resolution, so it takes fewer at once


@dataclass(frozen=True)
class GeneratedImage:
    image: Image
    seed: int
    record: dict[str, Any]  # everything needed to draw it again


@dataclass
class Engine:
    """A loaded model; load once, ask often. One thread at a time."""

    parts: Parts
    model: ModelFiles

    def generate(self, request: GenerationRequest, report: Report = silent) -> list[GeneratedImage]:
        return draw(self.parts, request, report)


def load_engine(
    model: ModelFiles,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    config_from: Path | None = None,
) -> Engine:
    """Load a model for drawing.

    `device`: auto (the GPU when there is one), cpu, cuda, mps. `dtype`: auto (fp16 on a GPU, fp32 on
    the CPU, whose half precision is slower than its full one), fp16, bf16, fp32. `threads`: CPU threads,
    None = torch's own. `config_from`: a Diffusers folder that lends its configs and tokenizer to a single
    file without; by default those of a known model of its shape (Stable Diffusion 1.5: from the Hub).
    """
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in (*dtypes, "auto"):
        raise UserError(f"No dtype {dtype!r}.", fix=f"take auto, {', '.join(dtypes)}.")
    if threads:
        torch.set_num_threads(threads)
    where = _device(device)
    if config_from is None and model.layout == "single_file" and not carries_configs(model.path):
        config_from = registry.configs_for(model.path)
    chosen = dtypes.get(dtype, torch.float32 if where.type == "cpu" else torch.float16)
    return Engine(load_parts(model, where, chosen, config_from), model)


def draw(parts: Parts, request: GenerationRequest, report: Report = silent) -> list[GeneratedImage]:
    """Draw `request.count` pictures with live modules, which keep their training mode and dtype.

    Picture i has the seed `request.seed + i`: its noise comes from the CPU and from that seed alone, so it is
    the same picture in any batch and on any device, up to rounding. `report` hears every step; what it raises
    ends the drawing. UserError for values that the model cannot follow.
    """
    request.check()
    width_px, height_px = _size(parts, request)
    guidance = request.guidance_scale
    if guidance is None:
        guidance = float(parts.defaults.get("guidance_scale", GUIDANCE_SCALE))
    latent_size = (height_px // parts.vae_factor, width_px // parts.vae_factor)
    batch = max(1, BATCH_LATENTS // (latent_size[0] * latent_size[1]))
    seeds = [request.seed + number for number in range(request.count)]
    pictures: list[Image] = []
    with torch.inference_mode(), _resting(parts.unet, parts.vae, parts.text_encoder):
        prompts = [request.prompt] if guidance == 1 else [request.negative_prompt, request.prompt]
        embeddings, warnings = _encode(parts, prompts)
        for first in range(0, request.count, batch):
            some = seeds[first : first + batch]
            told = _told(report, first, len(some), request.count, batch)
            latents = _denoise(parts, request, embeddings, guidance, some, latent_size, told)
            pictures += _decode(parts, latents)
    record = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "inference_steps": request.inference_steps,
        "guidance_scale": guidance,
        "sampler": request.sampler,
        "width_px": width_px,
        "height_px": height_px,
        "model": parts.name,
        "device": str(_of(parts.unet).device),
        "dtype": str(_of(parts.unet).dtype).removeprefix("torch."),
        "warnings": warnings,
    }
    return [
        GeneratedImage(picture, seed, {**record, "seed": seed})
        for picture, seed in zip(pictures, seeds, strict=True)
    ]


def _denoise(
    parts: Parts,
    request: GenerationRequest,
    embeddings: torch.Tensor,
    guidance: float,
    seeds: Sequence[int],
    latent_size: tuple[int, int],
    told: Callable[[int, int], None],
) -> torch.Tensor:
    """Noise -> latents (B, 4, H/f, W/f), float32. Guidance (Ho and Salimans 2022) in one forward per step."""
    like = _of(parts.unet)
    scheduler = make_scheduler(request.sampler, parts.scheduler_config)
    scheduler.set_timesteps(request.inference_steps, device=like.device)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    shape = (parts.unet.config.in_channels, *latent_size)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    latents = noise.to(like.device) * scheduler.init_noise_sigma
    guided = guidance != 1
    context = embeddings.repeat_interleave(len(seeds), dim=0)  # negative prompts first, when there are any
    options = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generators  # ancestral noise, too, belongs to each picture's own seed
    steps = scheduler.timesteps  # some rules look twice per step
    for number, timestep in enumerate(steps):
        told(number, len(steps))
        noisy = scheduler.scale_model_input(latents, timestep).to(like.dtype)
        noisy = torch.cat([noisy, noisy]) if guided else noisy
        noise = parts.unet(noisy, timestep, context, return_dict=False)[0].float()
        if guided:
            without, with_prompt = noise.chunk(2)
            noise = torch.lerp(without, with_prompt, guidance)
        latents = scheduler.step(noise, timestep, latents, **options)[0]
    told(len(steps), len(steps))
    if not torch.isfinite(latents).all():
        raise UserError(
            f"{parts.name} gave no numbers (NaN) in {str(like.dtype).removeprefix('torch.')}.",
            fix="load it with dtype fp32; if it stays so, the model is damaged.",
        )
    return latents


def _decode(parts: Parts, latents: torch.Tensor) -> list[Image]:
    """Latents (B, 4, H/f, W/f) -> RGB pictures."""
    from PIL import Image

    like = _of(parts.vae)
    at_once = max(1, DECODE_PIXELS // (latents.shape[2] * latents.shape[3] * parts.vae_factor**2))
    pictures = []
    for some in (latents / parts.vae.config.scaling_factor).to(like.dtype).split(at_once):
        pixels = parts.vae.decode(some, return_dict=False)[0].float()  # (B, 3, H, W) in [-1, 1]
        levels = (pixels * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
        arrays = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        pictures += [Image.fromarray(array) for array in arrays]
    return pictures


def _encode(parts: Parts, prompts: list[str]) -> tuple[torch.Tensor, list[str]]:
    """Prompts -> (len(prompts), tokens, width), and a warning for each one that was too long."""
    limit = min(parts.tokenizer.model_max_length, parts.text_encoder.config.max_position_embeddings)
    warnings = []
    for prompt in prompts:
        tokens = parts.tokenizer(prompt, verbose=False).input_ids[1:-1]
        if len(tokens) > limit - 2:
            lost = parts.tokenizer.decode(tokens[limit - 2 :]).strip()
            warnings.append(f"{len(tokens)} tokens, but the model reads {limit - 2}; not read: {lost!r}")
    return encode_prompts(parts, prompts).to(_of(parts.unet).dtype), warnings


def _size(parts: Parts, request: GenerationRequest) -> tuple[int, int]:
    sizes = []
    for name, wanted in (("width_px", request.width_px), ("height_px", request.height_px)):
        size = parts.side_px if wanted is None else wanted
        if size <= 0 or size % parts.vae_factor:
            below = max(size // parts.vae_factor, 1) * parts.vae_factor
            raise UserError(
                f"{name} is {size}, but this model draws in multiples of {parts.vae_factor}.",
                fix=f"take {below} or {below + parts.vae_factor}; the model's own size is {parts.side_px}.",
            )
        sizes.append(size)
    return sizes[0], sizes[1]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu"]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name.split(":")[0] not in there:
        raise UserError(f"No device {name!r} here (there: {', '.join(there)}).", fix="take auto.")
    return torch.device(name)


def _told(report: Report, first: int, some: int, count: int, batch: int) -> Callable[[int, int], None]:
    """Progress over all batches as one task, in steps."""
    batches = -(-count // batch)
    which = f"{first + 1}-{first + some} of {count}" if some > 1 else f"{first + 1} of {count}"

    def told(step: int, steps: int) -> None:
        done = first // batch * steps + step
        report(ProgressEvent("drawing", done, batches * steps, {"picture": which} if count > 1 else {}))

    return told


def _of(module: torch.nn.Module) -> torch.Tensor:
    """A weight that tells where the module stands and in which precision."""
    return next(module.parameters())


@contextmanager
def _resting(*modules: torch.nn.Module) -> Iterator[None]:
    """Dropout and gradient checkpointing off while drawing; a training run finds all as it left it."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.train(was)
