"""A request made definite for one model, and the passes that draw a batch of its pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.canvas import Canvas, latent_mask, make_canvas, without_masked
from fastsd_lib.generation.conditioning import Conditioning, encode
from fastsd_lib.generation.denoising import Denoising
from fastsd_lib.generation.noise import PictureNoise, Variation
from fastsd_lib.generation.request import LATENT_UPSCALERS, GenerationRequest, Hires
from fastsd_lib.generation.rules import RULES
from fastsd_lib.generation.samplers import SAMPLERS, choose
from fastsd_lib.generation.sigmas import NoiseLevels, noise_levels, sigmas_for
from fastsd_lib.generation.stepping import Rule, SamplerSettings
from fastsd_lib.generation.tiling import seamless
from fastsd_lib.generation.vae import decode
from fastsd_lib.generation.vae import encode as encode_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

GUIDANCE_SCALE = 7.5  # of models that do not say their own
LATENT_CHANNELS = 4

#: Yields each pass to be denoised to its end by whoever drives it; returns the pictures.
Passes = Generator[Denoising, None, "list[Image]"]


@dataclass
class Plan:
    """All that is decided before the first step. One per request; its pictures may be drawn in any batches."""

    parts: Parts
    request: GenerationRequest
    levels: NoiseLevels
    guidance: float
    width_px: int
    height_px: int
    hires_px: tuple[int, int] | None
    canvas: Canvas | None
    conditioning: Conditioning
    hires_conditioning: Conditioning | None
    warnings: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """A variation keeps the seed and counts its subseeds up, as users of A1111 know it."""
        request = self.request
        return [request.seed + number * (not request.subseed_strength) for number in range(request.count)]

    @property
    def alone(self) -> bool:
        """Whether a sampler looks at the picture to size its steps, so that each must go its own way."""
        request = self.request
        names = [
            request.sampler,
            *([request.hires.sampler] if request.hires and request.hires.sampler else []),
        ]
        return any(SAMPLERS[choose(name)[0]].alone for name in names)

    @property
    def steps(self) -> int:
        """Of the first pass: a strength below 1 leaves out the first ones."""
        request = self.request
        return _share_of(request.inference_steps, 1.0 if self.canvas is None else request.strength)

    @property
    def hires_steps(self) -> int:
        hires = self.request.hires
        return (
            _share_of(hires.inference_steps or self.request.inference_steps, hires.strength) if hires else 0
        )

    @property
    def all_steps(self) -> int:
        return self.steps + self.hires_steps

    @property
    def largest_latents(self) -> int:
        """The latents of the larger pass, h * w."""
        width_px, height_px = self.hires_px or (self.width_px, self.height_px)
        return (width_px // self.parts.vae_factor) * (height_px // self.parts.vae_factor)

    def latent_size(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels -> (h, w)."""
        return size_px[1] // self.parts.vae_factor, size_px[0] // self.parts.vae_factor

    def note(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def record(self, number: int) -> dict[str, Any]:
        """Every choice behind picture `number`; pictures that it was made from are said by their size only."""
        request = self.request
        sampler, schedule = choose(request.sampler, request.schedule)
        like = next(self.parts.unet.parameters())
        choices = {name.name: getattr(request, name.name) for name in dataclasses.fields(request)}
        for name in ("init", "inpaint", "hires"):
            choices[name] = _described(choices[name])
        del choices["count"]
        return {
            **choices,
            "guidance_scale": self.guidance,
            "sampler": sampler,
            "schedule": schedule,
            "width_px": self.width_px,
            "height_px": self.height_px,
            "seed": self.seeds[number],
            "subseed": request.subseed + number * bool(request.subseed_strength),
            "model": self.parts.name,
            "device": str(like.device),
            "dtype": str(like.dtype).removeprefix("torch."),
            "warnings": [*self.warnings],
        }


def make_plan(parts: Parts, request: GenerationRequest) -> Plan:
    """Decide everything; nothing is drawn yet. UserError for what the model cannot follow."""
    request.check()
    guidance = request.guidance_scale
    if guidance is None:
        guidance = float(parts.defaults.get("guidance_scale", GUIDANCE_SCALE))
    for name in ("width_px", "height_px"):
        _fitting(parts, name, getattr(request, name))
    canvas = None if request.init is None else make_canvas(request, parts.vae_factor, parts.side_px)
    width_px, height_px = request.width_px or parts.side_px, request.height_px or parts.side_px
    if canvas is not None:
        width_px, height_px = canvas.picture.size
    hires_px = _hires_size(parts, request.hires, width_px, height_px) if request.hires else None
    conditioning = encode(parts, request)
    again = None
    if request.hires:
        hires = request.hires
        prompts = {"prompt": hires.prompt, "negative_prompt": hires.negative_prompt}
        again = encode(parts, replace(request, **{name: text for name, text in prompts.items() if text}))
    warnings = list(dict.fromkeys([*conditioning.warnings, *(again.warnings if again else [])]))
    levels = noise_levels(parts.scheduler_config)
    return Plan(
        parts, request, levels, guidance, width_px, height_px, hires_px, canvas, conditioning, again, warnings
    )


@contextmanager
def drawing_mode(plan: Plan) -> Iterator[None]:
    """Dropout, checkpointing and gradients off, edges joined if asked; all is as it was afterwards."""
    modules = plan.parts.unet, plan.parts.vae, plan.parts.text_encoder
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        with torch.inference_mode(), seamless(plan.request.tiling, plan.parts.unet, plan.parts.vae):
            yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.train(was)


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
    if request.hires and plan.hires_steps:
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
    return Denoising(
        _rule(name)(x, sigmas, noise, _settings(request, name)),
        plan.conditioning,
        plan.guidance * SAMPLERS[name].guidance_factor,
        len(sigmas) - 1,
        known=None if mask is None else known,
        mask=mask,
        extra=extra,
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
    return Denoising(
        _rule(name)(x, sigmas, noise, _settings(request, name)),
        plan.hires_conditioning,
        guidance * SAMPLERS[name].guidance_factor,
        len(sigmas) - 1,
        after_steps=request.inference_steps,
        extra=_inpainting_extra(plan, len(numbers), x.shape[2:], None),
        wants_unconditional=name == "ddim_cfgpp",
        told=told,
    )


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
        [request.subseed + number for number in numbers] if request.subseed_strength else (),
        request.subseed_strength,
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
        shown = Image.new("RGB", (size[1] * factor, size[0] * factor), (127, 127, 127))
    else:
        shown = without_masked(plan.canvas.picture, plan.canvas.mask)
    latents = encode_pictures(plan.parts, [shown], plan.note)
    return torch.cat([mask.to(latents)[None, None], latents], dim=1).expand(count, -1, -1, -1)


def _enlarged(plan: Plan, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) at the size of the second pass."""
    from PIL import Image

    upscaler = plan.request.hires.upscaler
    if upscaler in LATENT_UPSCALERS:
        mode, antialias = LATENT_UPSCALERS[upscaler]
        return F.interpolate(latents, plan.latent_size(plan.hires_px), mode=mode, antialias=antialias)
    how = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}[upscaler]
    pictures = decode(plan.parts, latents, plan.note)
    return encode_pictures(plan.parts, [one.resize(plan.hires_px, how) for one in pictures], plan.note)


def _numbers(plan: Plan, denoising: Denoising) -> torch.Tensor:
    latents = denoising.latents
    if not torch.isfinite(latents).all():
        dtype = str(next(plan.parts.unet.parameters()).dtype).removeprefix("torch.")
        raise UserError(
            f"{plan.parts.name} gave no numbers (NaN) in {dtype}.",
            fix="load it with dtype fp32; if it stays so, the model is damaged.",
        )
    return latents


def _share_of(steps: int, strength: float) -> int:
    """As many of the steps as the strength says, at least one unless it is 0."""
    return max(int(steps * strength + 1e-9), 1) if strength else 0


def _hires_size(parts: Parts, hires: Hires, width_px: int, height_px: int) -> tuple[int, int]:
    """The exact size asked for; or the first one times the scale, in whole latents."""
    wanted = hires.width_px, hires.height_px
    scale = hires.scale
    for name, size, first in zip(("width_px", "height_px"), wanted, (width_px, height_px), strict=True):
        _fitting(parts, f"hires.{name}", size)
        if size is not None:
            scale = size / first
    whole = [
        max(round(first * scale / parts.vae_factor), 1) * parts.vae_factor for first in (width_px, height_px)
    ]
    return wanted[0] or whole[0], wanted[1] or whole[1]


def _fitting(parts: Parts, name: str, size: int | None) -> None:
    if size is not None and (size <= 0 or size % parts.vae_factor):
        below = max(size // parts.vae_factor, 1) * parts.vae_factor
        raise UserError(
            f"{name} is {size}, but this model draws in multiples of {parts.vae_factor}.",
            fix=f"take {below} or {below + parts.vae_factor}; the model's own size is {parts.side_px}.",
        )


def _described(choice: Any) -> Any:
    """A picture is said by its size; of a group of choices, each."""
    if dataclasses.is_dataclass(choice):
        return {entry.name: _described(getattr(choice, entry.name)) for entry in dataclasses.fields(choice)}
    return f"{choice.width}x{choice.height}" if hasattr(choice, "getbands") else choice
