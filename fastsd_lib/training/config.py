"""Every choice of one training run; light, so that a form needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class DreamBoothConfig:
    """Every choice of one run; saved in its session so the run can be repeated."""

    # Smallest and largest value, both allowed; core/config.py says so to whoever types another.
    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "class_images": (0, 10_000),
        "prior_loss_weight": (0.0, 100.0),
        "resolution_px": (64, 2048),
        "unet_steps": (0, 1_000_000),
        "unet_learning_rate": (0.0, 1.0),
        "text_encoder_steps": (0, 1_000_000),
        "text_encoder_learning_rate": (0.0, 1.0),
        "batch_size": (1, 256),
        "gradient_accumulation": (1, 1024),
        "warmup_steps": (0, 1_000_000),
        "min_snr_gamma": (0.0, 100.0),
        "offset_noise": (0.0, 1.0),
        "lora_rank": (1, 1024),
        "lora_alpha": (0.001, 1024.0),
        "ema_decay": (0.0, 0.99999),
        "seed": (0, 2**32 - 1),
        "save_every_steps": (0, 1_000_000),
        "keep_checkpoints": (1, 1000),
        "keep_every_steps": (0, 1_000_000),
        "sample_every_steps": (0, 1_000_000),
        "sample_count": (0, 64),
    }
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prior_target": ("images", "base"),
        "method": ("full", "lora"),
        "schedule": ("constant", "linear", "cosine"),
        "mixed_precision": ("no", "bf16", "fp16"),
    }

    instance_prompt: str  # "photo of sks cat": rare token, then class noun
    class_prompt: str = ""  # "photo of a cat"; empty = no prior preservation
    class_images: int = 100  # how many pictures of the class keep it from drifting
    prior_loss_weight: float = 1.0
    prior_target: str = (
        "images"  # images, base: hold class pictures to themselves, or to what the base model says
    )
    resolution_px: int = 512
    method: str = (
        "full"  # full, lora: train every weight, or small adapters beside them (a file of megabytes)
    )
    lora_rank: int = 16  # width of the adapters
    lora_alpha: float = 16.0  # adapters count alpha / rank
    unet_steps: int = 1500
    unet_learning_rate: float = 2e-6  # with lora about 1e-4
    text_encoder_steps: int = 350  # 0 = frozen
    text_encoder_learning_rate: float = 1e-6  # with lora about 5e-5
    batch_size: int = 1  # instance images per step; with a class prompt as many class images join them
    gradient_accumulation: int = 1
    warmup_steps: int = 0
    schedule: str = "linear"  # constant, linear, cosine: what the learning rate does after the warm-up
    mixed_precision: str = "no"  # no, bf16, fp16
    min_snr_gamma: float = 0.0  # 0 = plain loss; 5 = Hang et al. 2023 (arXiv 2303.09556)
    offset_noise: float = 0.0  # 0.1 helps styles reach black and white
    ema_decay: float = 0.0  # 0 = off; 0.999 = keep the average of about the last 1000 steps' weights
    flip: bool = False  # mirror half of the photos; never for faces or lettering
    seed: int = 42
    save_every_steps: int = 500  # 0 = only at the end of each stage
    keep_checkpoints: int = 2  # the newest
    keep_every_steps: int = 0  # 0 = off; 1000 = also keep those of step 1000, 2000 ...
    sample_prompt: str = ""  # empty = the instance prompt
    sample_every_steps: int = 500  # 0 = no pictures during training
    sample_count: int = 4

    @property
    def prior_preservation(self) -> bool:
        return bool(self.class_prompt.strip())

    def conflicts(self) -> list[str]:
        """What no single field can tell, one sentence each; empty when the run can start."""
        found = []
        if not self.instance_prompt.strip():
            found.append('instance_prompt is empty: type a rare word and a class, such as "photo of sks cat"')
        if self.prior_preservation and not self.class_images:
            found.append(
                "class_prompt asks for prior preservation, class_images is 0: type 100, or empty class_prompt"
            )
        if self.unet_steps == 0 and self.text_encoder_steps == 0:
            found.append("unet_steps and text_encoder_steps are both 0: nothing would be trained")
        if self.resolution_px % 8:
            nearest = round(self.resolution_px / 8) * 8
            found.append(f"resolution_px {self.resolution_px} is no multiple of 8: type {nearest}")
        return found
