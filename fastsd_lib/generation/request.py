"""What a picture is asked with; light, so that a form needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastsd_lib.core.errors import UserError

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class GenerationRequest:
    """One order: `count` pictures of one prompt. Picture i has the seed `seed + i`, in any batch."""

    prompt: str
    negative_prompt: str = ""  # what should not be in the picture
    inference_steps: int = 25
    guidance_scale: float | None = None  # how much the prompt counts; None = the model's own, 1 = off
    seed: int = 42
    count: int = 1
    width_px: int | None = None  # None = the model's own size
    height_px: int | None = None
    sampler: str = "ddim"

    def check(self) -> None:
        """UserError for a value no model can follow; sizes are checked against the model by the engine."""
        if not 1 <= self.inference_steps <= 1000:
            raise UserError(f"inference_steps is {self.inference_steps}.", fix="take 1 to 1000; 25 is usual.")
        if not 1 <= self.count <= 1000:
            raise UserError(f"count is {self.count}.", fix="ask for 1 to 1000 pictures.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed is {self.seed}.", fix=f"take a whole number from 0 to {MAX_SEED}.")
        if self.seed + self.count - 1 > MAX_SEED:
            raise UserError(
                f"the last of {self.count} pictures would have the seed {self.seed + self.count - 1}.",
                fix=f"take a smaller seed; the largest is {MAX_SEED}.",
            )
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 100:
            raise UserError(f"guidance_scale is {self.guidance_scale}.", fix="take 1 to 20; 7.5 is usual.")
