"""The two stages of a run, and what makes two runs the same one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from fastsd_lib.core.files import fingerprint
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.training_set import TrainingSet

TEXT_ENCODER, UNET = "text encoder", "U-Net"
# What may change between a run and its continuation: none of it touches a weight.
FREE_FIELDS = (
    "save_every_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "sample_prompt",
    "sample_every_steps",
    "sample_count",
)
# Younger than the first checkpoints: at their defaults they change nothing, so those runs keep their names.
LATER_FIELDS = ("prior_target", "method", "lora_rank", "lora_alpha", "ema_decay")


@dataclass(frozen=True)
class Stage:
    name: str
    part: str  # "text_encoder" or "unet": the field of Parts that it trains
    steps: int
    learning_rate: float
    first_step: int  # how many steps earlier stages took

    @property
    def last_step(self) -> int:
        return self.first_step + self.steps


def stages_of(config: DreamBoothConfig) -> list[Stage]:
    """In their order; a stage of 0 steps is left out."""
    text_steps, unet_steps = config.text_encoder_steps, config.unet_steps
    stages = [
        Stage(TEXT_ENCODER, "text_encoder", text_steps, config.text_encoder_learning_rate, 0),
        Stage(UNET, "unet", unet_steps, config.unet_learning_rate, text_steps),
    ]
    return [stage for stage in stages if stage.steps]


def run_fingerprint(base_fingerprint: str, training_set: TrainingSet, config: DreamBoothConfig) -> str:
    """Equal for two runs that would end with the same weights."""
    defaults = {field.name: field.default for field in fields(config)}
    choices = {
        name: value
        for name, value in asdict(config).items()
        if name not in FREE_FIELDS and not (name in LATER_FIELDS and value == defaults[name])
    }
    if config.method == "full":
        choices = {name: value for name, value in choices.items() if not name.startswith("lora_")}
    return fingerprint([base_fingerprint, training_set.fingerprint, choices])
