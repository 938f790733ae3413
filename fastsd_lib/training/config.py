"""Every choice of one training run; light, so that a form needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastsd_lib.core.errors import UserError


@dataclass(frozen=True)
class DreamBoothConfig:
    """Every choice of one run; saved in its session so the run can be repeated."""

    instance_prompt: str  # "photo of sks cat": rare token, then class noun
    class_prompt: str = ""  # "photo of a cat"; empty = no prior preservation
    class_images: int = 100  # how many pictures of the class keep it from drifting
    prior_loss_weight: float = 1.0
    resolution_px: int = 512
    unet_steps: int = 1500
    unet_learning_rate: float = 2e-6
    text_encoder_steps: int = 350  # 0 = frozen
    text_encoder_learning_rate: float = 1e-6
    batch_size: int = 1  # instance images per step; with a class prompt as many class images join them
    gradient_accumulation: int = 1
    warmup_steps: int = 0
    schedule: str = "linear"  # constant, linear, cosine: what the learning rate does after the warm-up
    mixed_precision: str = "no"  # no, bf16, fp16
    min_snr_gamma: float = 0.0  # 0 = plain loss; 5 = Hang et al. 2023 (arXiv 2303.09556)
    offset_noise: float = 0.0  # 0.1 helps styles reach black and white
    flip: bool = False  # mirror half of the photos; never for faces or lettering
    seed: int = 42
    save_every_steps: int = 500  # 0 = only at the end of each stage
    keep_checkpoints: int = 2
    sample_prompt: str = ""  # empty = the instance prompt
    sample_every_steps: int = 500  # 0 = no pictures during training
    sample_count: int = 4

    @property
    def prior_preservation(self) -> bool:
        return bool(self.class_prompt.strip())
