"""Pictures on their way from noise to latents, and the U-Net call that many of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.conditioning import Conditioning
from fastsd_lib.generation.reference import Reference, looking_at
from fastsd_lib.generation.seen_text import SeenText, join
from fastsd_lib.generation.sigmas import NoiseLevels
from fastsd_lib.generation.steering import Seen, Steering, residuals
from fastsd_lib.generation.stepping import Ask, Estimate, Steps


@dataclass
class Denoising:
    """Some pictures of one request that step together: what they wait for, and what the U-Net needs for it.

    `ask` is the noisy picture to be denoised next; when it is None, `latents` (B, C, h, w) are there.
    """

    rule: Steps
    conditioning: Conditioning
    guidance: float
    steps: int
    after_steps: int | None = None  # steps of the first pass, when this is the second one
    known: torch.Tensor | None = None  # latents (B, C, h, w) of what stays, where `mask` is 0
    mask: torch.Tensor | None = None  # (1, 1, h, w), 1 = drawn anew
    extra: torch.Tensor | None = None  # (B, 5, h, w): mask and masked picture, for inpainting models
    control: Sequence[Steering] = ()
    references: Sequence[Reference] = ()
    wants_unconditional: bool = False
    told: Callable[[int, int], None] = lambda step, steps: None
    ask: Ask | None = None
    latents: torch.Tensor | None = None
    seen: torch.Tensor | None = None  # (B, C, h, w): the pictures behind the noise, as last estimated
    was_cut: bool = False
    _positives: list[tuple[float, SeenText]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._go(None)

    @property
    def step(self) -> int:
        return min(self.ask.step, self.steps - 1)

    @property
    def looks_at(self) -> list[Reference]:
        """The references that count at this step."""
        return [one for one in self.references if one.acts(self.step, self.steps)]

    def rows(self, levels: NoiseLevels) -> list[Seen]:
        """One picture batch for the U-Net with each text that it is to be seen with; the negative one first.

        Without guidance there is no negative one: half the work.
        """
        self._positives, negative = self.conditioning.at(self.step, self.steps, self.after_steps)
        plain = len(self._positives) == 1 and self._positives[0][0] * self.guidance == 1
        texts = [text for _, text in self._positives]
        x = self.ask.x / math.sqrt(1 + self.ask.sigma**2)
        if self.extra is not None:
            x = torch.cat([x, self.extra], dim=1)
        time = levels.timestep(self.ask.sigma)
        control = [one for one in self.control if one.acts(self.step, self.steps)]
        unprompted = [] if plain else [Seen(x, time, negative, False, control)]
        return unprompted + [Seen(x, time, text, True, control) for text in texts]

    def tell(self, outputs: Sequence[torch.Tensor], levels: NoiseLevels) -> None:
        """The U-Net's answers to `rows`, float32; steps on to the next ask.

        Guidance by Ho and Salimans 2022; several prompts by Liu et al. 2022, "Compositional Visual Generation".
        """
        if len(outputs) == 1:
            guided = unguided = outputs[0]
        else:
            unguided, *seen = outputs
            guided = unguided
            if len(seen) == 1:
                guided = torch.lerp(unguided, seen[0], self.guidance * self._positives[0][0])
            else:
                for (weight, _), one in zip(self._positives, seen, strict=True):
                    guided = guided + (one - unguided) * (weight * self.guidance)
        denoised = self.seen = self._kept(self._denoised(guided, levels))
        plain = denoised
        if self.wants_unconditional and guided is not unguided:
            plain = self._kept(self._denoised(unguided, levels))
        self._go(Estimate(denoised, plain))

    def cut(self) -> None:
        """End here, after at least one answer: `latents` are the pictures as they were last seen."""
        self.rule.close()
        self.ask, self.latents, self.was_cut = None, self.seen, True

    def _denoised(self, output: torch.Tensor, levels: NoiseLevels) -> torch.Tensor:
        x, sigma = self.ask.x, self.ask.sigma
        if levels.prediction == "v_prediction":  # Salimans and Ho 2022
            return x / (1 + sigma**2) - output * (sigma / math.sqrt(1 + sigma**2))
        return output if levels.prediction == "sample" else x - output * sigma

    def _kept(self, denoised: torch.Tensor) -> torch.Tensor:
        return denoised if self.known is None else torch.lerp(self.known, denoised, self.mask)

    def _go(self, estimate: Estimate | None) -> None:
        try:
            self.ask = self.rule.send(estimate)
            self.told(self.step, self.steps)
        except StopIteration as end:
            self.ask, self.latents = None, self._kept(end.value)
            self.told(self.steps, self.steps)


def denoise_together(parts: Parts, levels: NoiseLevels, those: Sequence[Denoising]) -> None:
    """One U-Net call for all that wait, of whatever requests, samplers and steps; each then steps on.

    All must be of one size of latents. None changes another's picture.
    """
    for one, answers in zip(those, ask_together(parts, levels, those), strict=True):
        one.tell(answers, levels)


def ask_together(
    parts: Parts, levels: NoiseLevels, those: Sequence[Denoising]
) -> list[tuple[torch.Tensor, ...]]:
    """The U-Net call alone: what each is to be told. When it raises, none has changed."""
    answers: dict[int, tuple[torch.Tensor, ...]] = {}
    together = [place for place, one in enumerate(those) if not one.looks_at]
    for places in (together, *([place] for place, one in enumerate(those) if one.looks_at)):
        if places:
            answers |= zip(places, _ask(parts, levels, [those[place] for place in places]), strict=True)
    return [answers[place] for place in range(len(those))]


def _ask(parts: Parts, levels: NoiseLevels, those: Sequence[Denoising]) -> list[tuple[torch.Tensor, ...]]:
    """One U-Net call; one that looks at references comes alone."""
    each = [one.rows(levels) for one in those]
    rows = [block for blocks in each for block in blocks]
    with ExitStack() as looking:
        if references := those[0].looks_at:
            looking.enter_context(
                looking_at(parts.unet, references, rows, those[0].ask.sigma, parts.unet.forward)
            )
        output = _predicted(parts, rows)
    own = output.split([sum(len(block.x) for block in blocks) for blocks in each])
    return [some.split(len(blocks[0].x)) for some, blocks in zip(own, each, strict=True)]


def _predicted(parts: Parts, rows: Sequence[Seen]) -> torch.Tensor:
    """The U-Net's answers to all rows, float32."""
    like = next(parts.unet.parameters())
    times = [block.time for block in rows for _ in block.x]
    return (parts.fast_unet or parts.unet)(
        torch.cat([block.x for block in rows]).to(like.dtype),
        torch.tensor(times, dtype=torch.float32, device=like.device),
        **join([(block.text, len(block.x)) for block in rows]),
        **residuals(rows),
        return_dict=False,
    )[0].float()
