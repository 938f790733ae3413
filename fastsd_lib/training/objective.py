"""The loss of one draw: which pictures, which noise, what the U-Net should have answered."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import torch

from fastsd_lib.formats.parts import Parts, encode_prompts
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.latents import LatentCache
from fastsd_lib.training.lora import Adapters
from fastsd_lib.training.loss import NoiseScheduler, draw_noise, dreambooth_loss
from fastsd_lib.training.stages import TEXT_ENCODER, Stage
from fastsd_lib.training.training_set import TrainingSet, generator, rows_of_step

PROMPTS_AT_ONCE = 32
# Guidance subtracts what the model answers to the empty prompt, which no photo and no class picture trains: so this
# share of the class pictures rehearses it, lest it drift towards the subject. Its effect alone was never measured well.
EMPTY_SHARE = 0.3

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (noisy, timesteps, states)


class Objective:
    """Loss of the live modules on one draw; every draw is a function of seed, stage and number."""

    def __init__(
        self,
        parts: Parts,
        cache: LatentCache,
        training_set: TrainingSet,
        config: DreamBoothConfig,
        device: str = "cpu",
    ) -> None:
        """While `parts` are still the base model: what it says of the class prompt is noted here."""
        self.parts, self.cache, self.set, self.config, self.device = (
            parts,
            cache,
            training_set,
            config,
            device,
        )
        self.noise_scheduler = NoiseScheduler(parts.scheduler_config)
        self.prior = _BasePrior(self) if config.prior_preservation and config.prior_target == "base" else None
        self.states: torch.Tensor | None = None

    def begin(self, stage: Stage, adapters: Adapters | None) -> None:
        """Before the first draw of a stage, and before its weights are anything but the base model's."""
        if self.prior is not None:
            self.prior.begin(stage, adapters)

    def freeze_text_encoder(self) -> None:
        """From here on the text encoder does not change: every prompt, and the empty one, is encoded once."""
        self.states = self._encode_all([*self.set.prompts, ""])

    def loss(self, stage: Stage, draw: int) -> torch.Tensor:
        """Mean squared error of draw number `draw` (from 0) of the stage, a scalar that can go backward."""
        config = self.config
        source = generator(config.seed, stage.name, draw)
        rows = rows_of_step(stage.name, draw, config, len(self.set.instances), len(self.set.class_images))
        latents = self.cache.sample(rows, self.parts.vae.config.scaling_factor, source)
        noise, timesteps = draw_noise(
            latents.shape, self.noise_scheduler.timesteps, config.offset_noise, source
        )
        dtype = self.parts.unet.dtype
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps).to(self.device, dtype)
        target = self.noise_scheduler.target(latents, noise, timesteps).to(self.device)
        weights = self.noise_scheduler.snr_weights(timesteps, config.min_snr_gamma)
        timesteps = timesteps.to(self.device)
        rows = self._with_empty_prompts(stage, draw, rows)
        if stage.name == TEXT_ENCODER:
            prompts = [*self.set.prompts, ""]
            context = encode_prompts(self.parts, [prompts[row] for row in rows])
        else:
            context = self.states[rows]
        context = context.to(dtype)
        if self.prior is not None:
            empty = torch.tensor([row == len(self.set.prompts) for row in rows])
            target = self.prior.target(noisy, timesteps, empty, target)
        answer = self.parts.unet(noisy, timesteps, context, return_dict=False)[0]
        return dreambooth_loss(answer, target, weights, config)

    def _with_empty_prompts(self, stage: Stage, draw: int, rows: list[int]) -> list[int]:
        """`rows`, with the number after the last prompt where a class picture rehearses the empty prompt."""
        if self.prior is None:
            return rows
        half, none = len(rows) // 2, len(self.set.prompts)
        chances = torch.rand(
            half, generator=generator(self.config.seed, f"{stage.name}/empty", draw)
        ).tolist()
        rehearsed = [
            none if chance < EMPTY_SHARE else row for row, chance in zip(rows[half:], chances, strict=True)
        ]
        return rows[:half] + rehearsed

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.config.mixed_precision == "no":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.config.mixed_precision == "bf16" else torch.float16
        return torch.autocast(torch.device(self.device).type, dtype)

    @torch.no_grad()
    def _encode_all(self, prompts: list[str]) -> torch.Tensor:
        """(len(prompts), tokens, width); each distinct prompt is encoded once."""
        distinct = sorted(set(prompts))
        encoded = [
            encode_prompts(self.parts, distinct[first : first + PROMPTS_AT_ONCE])
            for first in range(0, len(distinct), PROMPTS_AT_ONCE)
        ]
        return torch.cat(encoded)[[distinct.index(prompt) for prompt in prompts]]


class _BasePrior:
    """What the frozen base model answers on the class pictures: the target of `prior_target: base`.

    OneTrainer's "prior prediction" (its GenericTrainer, ConceptType.PRIOR_PREDICTION). The class is held to what
    the base model thinks of it rather than to the pictures themselves, so an untrained model has nothing to unlearn:
    its prior loss is 0, up to rounding.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._states = objective._encode_all([objective.set.class_prompt, ""])
        self._answer: Answer | None = None

    def begin(self, stage: Stage, adapters: Adapters | None) -> None:
        """Text encoder: the U-Net still is the base's. U-Net: adapters can be switched off, else a frozen copy."""
        unet, off = self._objective.parts.unet, contextlib.nullcontext
        if stage.name != TEXT_ENCODER and adapters is None:
            unet = copy.deepcopy(unet).requires_grad_(False)
        elif stage.name != TEXT_ENCODER:
            off = adapters.off

        def answer(noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), off():
                return unet(noisy, timesteps, states, return_dict=False)[0]

        self._answer = answer

    def target(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, empty: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """`target` (2 B, C, H, W) with its second half, the class pictures, as the base model answers it.

        `empty`: (2 B,) bool, which of them rehearse the empty prompt.
        """
        half = len(noisy) // 2
        states = self._states[empty[half:].long()].to(noisy.dtype)
        answer = self._answer(noisy[half:], timesteps[half:], states)
        return torch.cat([target[:half], answer.to(target.dtype)])
