"""A request made definite for one model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.canvas import Canvas, make_canvas
from fastsd_lib.generation.conditioning import Conditioning, encode
from fastsd_lib.generation.control import PreparedUnit, prepare_units
from fastsd_lib.generation.networks import Networks
from fastsd_lib.generation.request import UPSCALER_LABELS, GenerationRequest, Hires
from fastsd_lib.generation.samplers import SAMPLERS, choose
from fastsd_lib.generation.sigmas import NoiseLevels, noise_levels
from fastsd_lib.generation.text_reader import EncodingCache
from fastsd_lib.generation.tiling import seamless
from fastsd_lib.generation.upscale import Upscaler, hires_network
from fastsd_lib.generation.upscale_nets import load_net
from fastsd_lib.models.fits import check_base, check_size
from fastsd_lib.models.pieces import Piece

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.resources import Library

GUIDANCE_SCALE = 7.5  # of models that do not say their own


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
    networks: Networks = field(default_factory=Networks)
    upscaler: Upscaler | None = None  # the second pass's, when it is a network
    control: tuple[PreparedUnit, ...] = ()

    @property
    def control_maps(self) -> list[Image]:
        """What its control units were made of, one picture each, in their order."""
        return [one.detected for one in self.control]

    @property
    def company(self) -> Hashable:
        """Plans of the same company may share a U-Net call, where their latents are of one size."""
        return id(self.parts), self.networks.key, self.request.tiling

    @property
    def seeds(self) -> list[int]:
        """A variation keeps the seed and counts the other seed up, as users of A1111 know it."""
        request = self.request
        return [request.seed + number * (not request.variation_strength) for number in range(request.count)]

    @property
    def learned_words(self) -> list[str]:
        """Of both passes, in the order of the prompts."""
        texts = [one for one in (self.conditioning, self.hires_conditioning) if one is not None]
        return list(dict.fromkeys(word for one in texts for word in one.embeddings_used))

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


def make_plan(
    parts: Parts,
    request: GenerationRequest,
    texts: EncodingCache | None = None,
    library: Library | None = None,
) -> Plan:
    """Decide everything; nothing is drawn yet. UserError for what the model cannot follow."""
    request.check()
    networks = library.networks.choose(request, parts) if library else Networks()
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
    upscaler = _upscaler(parts, request.hires, library) if request.hires else None
    controlnets = library.controlnets if library else None
    control = prepare_units(parts, request.control, canvas, (width_px, height_px), hires_px, controlnets)
    known = {"cache": texts, "embeddings": networks.embeddings, "loaded": networks.tags}
    conditioning = encode(parts, request, **known, size_px=(width_px, height_px))
    again = None
    if request.hires:
        hires = request.hires
        prompts = {"prompt": hires.prompt, "negative_prompt": hires.negative_prompt}
        changed = {name: text for name, text in prompts.items() if text}
        again = encode(parts, replace(request, **changed), **known, size_px=hires_px)
    unfit = [] if canvas else _unfit(parts, width_px, height_px)
    more = [
        *parts.notes,
        *unfit,
        *networks.warnings,
        *conditioning.warnings,
        *(again.warnings if again else []),
    ]
    warnings = list(dict.fromkeys(more))
    levels = noise_levels(parts.scheduler_config, parts.family)
    return Plan(
        parts,
        request,
        levels,
        guidance,
        width_px,
        height_px,
        hires_px,
        canvas,
        conditioning,
        again,
        warnings,
        networks,
        upscaler,
        control,
    )


@contextmanager
def drawing_mode(plan: Plan) -> Iterator[None]:
    """Dropout, checkpointing and gradients off, edges joined if asked; all is as it was afterwards.

    Networks alone stay in force: they are exchanged when the next plan wants others.
    """
    parts = plan.parts
    plan.networks.put_in_force(parts, plan.conditioning.reader.cache)
    training = [module for module in parts.modules if module.training]
    try:
        for module in training:
            module.eval()
        with torch.inference_mode(), seamless(plan.request.tiling, parts.unet, parts.vae):
            yield
    finally:
        for module in training:
            module.train()


def _unfit(parts: Parts, width_px: int, height_px: int) -> list[str]:
    """What speaks against drawing from words alone with this model, at this size."""
    scheduler = parts.scheduler_config
    velocity = parts.family == "sdxl" and scheduler.get("prediction_type") == "v_prediction"
    marks = [("v_pred", velocity), ("ztsnr", scheduler.get("rescale_betas_zero_snr"))]
    family = "sdxl_refiner" if parts.asks_for_score else parts.family
    piece = Piece("checkpoint", family, name=parts.name, marks=tuple(mark for mark, there in marks if there))
    found = [check_base(piece, "draw"), check_size(family, width_px, height_px, parts.side_px)]
    return [fit.advice for fit in found if fit.advice]


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


def _upscaler(parts: Parts, hires: Hires, library: Library | None) -> Upscaler | None:
    """A network of the library, read at once so that a wrong file is known before anything is drawn."""
    if hires.upscaler in UPSCALER_LABELS:
        return None
    found = hires_network(hires.upscaler, library.folders.upscalers if library else ())
    load_net(found.path, next(parts.unet.parameters()).device)
    return found


def _fitting(parts: Parts, name: str, size: int | None) -> None:
    if size is not None and (size <= 0 or size % parts.vae_factor):
        below = max(size // parts.vae_factor, 1) * parts.vae_factor
        raise UserError(
            f"{name} is {size}, but this model draws in multiples of {parts.vae_factor}.",
            fix=f"take {below} or {below + parts.vae_factor}; the model's own size is {parts.side_px}.",
        )
