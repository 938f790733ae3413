"""The passes that draw a batch of a plan's pictures, and what each begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.canvas import latent_mask
from fastsd_lib.generation.denoising import Denoising
from fastsd_lib.generation.noise import PictureNoise, Variation
from fastsd_lib.generation.plan import Plan
from fastsd_lib.generation.request import LATENT_UPSCALERS, UPSCALER_LABELS, GenerationRequest
from fastsd_lib.generation.rules import RULES
from fastsd_lib.generation.samplers import SAMPLERS, choose
from fastsd_lib.generation.sigmas import sigmas_for
from fastsd_lib.generation.stepping import Rule, SamplerSettings
from fastsd_lib.generation.upscale import BUILT_IN, upscale
from fastsd_lib.generation.vae import decode
from fastsd_lib.generation.vae import encode as encode_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

LATENT_CHANNELS = 4

#: Yields each pass to be denoised to its end by whoever drives it; returns the pictures.
Passes = Generator[Denoising, None, "list[Image]"]


def batch(plan: Plan, numbers: range, told: Callable[[int], None] = lambda step: None) -> Passes:
    """Draw the pictures `numbers` of the request; runs in `drawing_mode`. `told` hears the steps done.

    With a sampler that sizes its own steps (`plan.alone`) one picture at a time.
    """
    request, canvas = plan.request, plan.canvas
    if plan.steps == 0:  # strength 0: the picture as it came, without the VAE's rounding
        told(0)
        return [canvas.finish(canvas.picture) for _ in numbers]
    denoising = _first_pass(plan, numbers, lambda step, steps: told(step))
    yield denoising
    latents = _numbers(plan, denoising)
    if denoising.was_cut:  # then the first pass is all there is
        pass
    elif request.hires and plan.hires_steps:
        denoising = _second_pass(plan, numbers, latents, lambda step, steps: told(plan.steps + step))
        yield denoising
        latents = _numbers(plan, denoising)
    elif request.hires:
        latents = _enlarged(plan, latents)
    pictures = decode(plan.parts, latents, plan.note)
    return pictures if canvas is None else [canvas.finish(picture) for picture in pictures]


def _first_pass(plan: Plan, numbers: range, told: Callable[[int, int], None]) -> Denoising:
    """From noise, or from the first picture with noise on it."""
    request, canvas = plan.request, plan.canvas
    noise = _noise(plan, numbers, (plan.width_px, plan.height_px))
    first = noise.first()
    name, sigmas = _walk(plan, request.sampler, request.schedule, request.inference_steps, plan.steps)
    x, known, mask = first * math.sqrt(1 + sigmas[0] ** 2), None, None
    if canvas is not None:
        known, mask = _latents_of(plan, noise)
        if request.strength < 1:
            x = known + first * sigmas[0]
    pixels = None if mask is None else mask[0, 0]
    extra = _inpainting_extra(plan, len(numbers), first.shape[2:], pixels)
    if canvas is None:
        known, mask = _kept_by_control(plan, hires=False)
    return Denoising(
        _rule(name)(x, sigmas, noise, _settings(request, name)),
        plan.conditioning,
        plan.guidance * SAMPLERS[name].guidance_factor,
        len(sigmas) - 1,
        known=None if mask is None else known,
        mask=mask,
        extra=extra,
        **_steered(plan, hires=False),
        wants_unconditional=name == "ddim_cfgpp",
        told=told,
    )


def _second_pass(
    plan: Plan, numbers: range, latents: torch.Tensor, told: Callable[[int, int], None]
) -> Denoising:
    """The larger picture, noised and drawn over."""
    request, hires = plan.request, plan.request.hires
    noise = _noise(plan, numbers, plan.hires_px)
    steps = hires.inference_steps or request.inference_steps
    name, sigmas = _walk(
        plan, hires.sampler or request.sampler, hires.schedule or request.schedule, steps, plan.hires_steps
    )
    x = noise.first() * (math.sqrt(1 + sigmas[0] ** 2) if hires.strength == 1 else sigmas[0])
    if hires.strength < 1:
        x = x + _enlarged(plan, latents)
    guidance = plan.guidance if hires.guidance_scale is None else hires.guidance_scale
    known, mask = _kept_by_control(plan, hires=True)
    return Denoising(
        _rule(name)(x, sigmas, noise, _settings(request, name)),
        plan.hires_conditioning,
        guidance * SAMPLERS[name].guidance_factor,
        len(sigmas) - 1,
        after_steps=request.inference_steps,
        known=known,
        mask=mask,
        **_steered(plan, hires=True),
        extra=_inpainting_extra(plan, len(numbers), x.shape[2:], None),
        wants_unconditional=name == "ddim_cfgpp",
        told=told,
    )


def _steered(plan: Plan, hires: bool) -> dict[str, Any]:
    """The pass's ControlNets and references."""

    def latents_of(picture: Image) -> torch.Tensor:
        return encode_pictures(plan.parts, [picture], plan.note)

    return {
        "control": [one for unit in plan.control for one in unit.steering(hires, plan.request.tiling)],
        "references": [one for unit in plan.control for one in unit.reference(hires, latents_of)],
    }


def _kept_by_control(plan: Plan, hires: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Latents (1, 4, h, w) of what an inpainting unit leaves as it is, and the mask (1, 1, h, w) of the rest."""
    for unit in plan.control:
        if kept := unit.kept(hires, plan.parts.vae_factor):
            picture, mask = kept
            latents = encode_pictures(plan.parts, [picture], plan.note)
            return latents, torch.from_numpy(mask)[None, None].to(latents.device)
    return None, None


def _rule(name: str) -> Rule:
    """The stepping rule; what it leaves at a noise level above 0 is brought to the scale the model knows."""

    def steps(x: torch.Tensor, sigmas: list[float], noise: PictureNoise, settings: SamplerSettings) -> Any:
        result = yield from RULES[name](x, sigmas, noise, settings)
        return result / math.sqrt(1 + sigmas[-1] ** 2)

    return steps


def _walk(plan: Plan, sampler: str, schedule: str, steps: int, last: int) -> tuple[str, list[float]]:
    """The sampler's name, and the `last` of its `steps` noise levels."""
    name, spacing = choose(sampler, schedule)
    return name, sigmas_for(name, spacing, steps, plan.levels)[steps - last :]


def _settings(request: GenerationRequest, name: str) -> SamplerSettings:
    return SamplerSettings(
        eta=SAMPLERS[name].eta if request.eta is None else request.eta,
        s_churn=request.s_churn,
        s_tmin=request.s_tmin,
        s_tmax=request.s_tmax or math.inf,
        s_noise=request.s_noise,
    )


def _noise(plan: Plan, numbers: range, size_px: tuple[int, int]) -> PictureNoise:
    request = plan.request
    from_px = request.seed_from_width_px, request.seed_from_height_px
    from_px = (
        tuple(small or size for small, size in zip(from_px, size_px, strict=True)) if any(from_px) else None
    )
    variation = Variation(
        [request.variation_seed + number for number in numbers] if request.variation_strength else (),
        request.variation_strength,
        plan.latent_size(from_px) if from_px else None,
    )
    shape = (LATENT_CHANNELS, *plan.latent_size(size_px))
    seeds = [plan.seeds[number] for number in numbers]
    return PictureNoise(seeds, shape, next(plan.parts.unet.parameters()).device, variation)


def _latents_of(plan: Plan, noise: PictureNoise) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The canvas as latents (1 or B, 4, h, w) with what the mask's fill puts there; the mask (1, 1, h, w)."""
    request, canvas = plan.request, plan.canvas
    if request.resize_mode == "latent" and request.inpaint is None:
        factor = plan.parts.vae_factor
        size_px = tuple(max(side // factor, 1) * factor for side in canvas.original.size)
        known = encode_pictures(plan.parts, [canvas.original.resize(size_px)], plan.note)
        return F.interpolate(known, plan.latent_size((plan.width_px, plan.height_px)), mode="bilinear"), None
    known = encode_pictures(plan.parts, [canvas.picture], plan.note)
    if canvas.mask is None:
        return known, None
    mask = torch.from_numpy(latent_mask(canvas.mask, plan.parts.vae_factor))[None, None].to(known.device)
    if request.inpaint.fill == "latent_noise":
        known = torch.lerp(known, noise.fresh(), mask)
    if request.inpaint.fill == "latent_nothing":
        known = known * (1 - mask)
    return known, mask


def _inpainting_extra(
    plan: Plan, count: int, size: tuple[int, int], mask: torch.Tensor | None
) -> torch.Tensor | None:
    """(B, 5, h, w) for a U-Net of 9 channels: the mask, and the latents of the picture without what it hides."""
    from PIL import Image

    channels = plan.parts.unet.config.in_channels
    if channels == LATENT_CHANNELS:
        return None
    if channels != 2 * LATENT_CHANNELS + 1:
        raise UserError(
            f"{plan.parts.name} has a U-Net of {channels} input channels.",
            fix="take a text-to-image model (4 channels) or an inpainting model (9 channels).",
        )
    factor, like = plan.parts.vae_factor, next(plan.parts.unet.parameters())
    if mask is None:  # all is drawn, nothing is shown
        mask = torch.ones(size, device=like.device)
        shown = Image.new("RGB", (size[1] * factor, size[0] * factor))
        hidden = Image.new("L", shown.size, 255)
    else:
        shown, hidden = plan.canvas.picture, plan.canvas.mask
    latents = encode_pictures(plan.parts, [shown], plan.note, hidden)
    return torch.cat([mask.to(latents)[None, None], latents], dim=1).expand(count, -1, -1, -1)


def _enlarged(plan: Plan, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) at the size of the second pass."""
    upscaler = plan.request.hires.upscaler
    if upscaler in LATENT_UPSCALERS:
        mode, antialias = LATENT_UPSCALERS[upscaler]
        return F.interpolate(latents, plan.latent_size(plan.hires_px), mode=mode, antialias=antialias)
    way = plan.upscaler or BUILT_IN[UPSCALER_LABELS[upscaler]]
    pictures = decode(plan.parts, latents, plan.note)
    larger = [upscale(one, way, plan.hires_px, latents.device) for one in pictures]
    return encode_pictures(plan.parts, larger, plan.note)


def _numbers(plan: Plan, denoising: Denoising) -> torch.Tensor:
    latents = denoising.latents
    if not torch.isfinite(latents).all():
        dtype = str(next(plan.parts.unet.parameters()).dtype).removeprefix("torch.")
        raise UserError(
            f"{plan.parts.name} gave no numbers (NaN) in {dtype}.",
            fix="load it with dtype fp32; if it stays so, the model is damaged.",
        )
    return latents
