"""Every choice of one ViT training run; light, so that a form needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from fastsd_lib.core.errors import UserError

NEW = "new"  # as `model`: a small ViT that begins from random weights
_FREEZE = re.compile(r"none|head|last_\d+|(embeddings|\d+(-\d+)?)(,(embeddings|\d+(-\d+)?))*")


@dataclass(frozen=True)
class VitTrainConfig:
    """Every choice of one run; saved beside it so the run can be repeated."""

    # Smallest and largest value, both allowed; core/config.py says so to whoever types another.
    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "validation": (0.0, 0.9),
        "test": (0.0, 0.9),
        "epochs": (1, 100_000),
        "max_steps": (0, 100_000_000),
        "batch_size": (1, 65_536),
        "gradient_accumulation": (1, 4096),
        "learning_rate": (0.0, 10.0),
        "layer_decay": (0.01, 1.0),
        "head_factor": (0.01, 1000.0),
        "warmup_steps": (0.0, 1_000_000),
        "weight_decay": (0.0, 10.0),
        "adam_beta1": (0.0, 0.99999),
        "adam_beta2": (0.0, 0.999999),
        "adam_epsilon": (0.0, 0.1),
        "max_grad_norm": (0.0, 1000.0),
        "label_smoothing": (0.0, 0.9),
        "focal_gamma": (0.0, 10.0),
        "mixup": (0.0, 10.0),
        "cutmix": (0.0, 10.0),
        "erase": (0.0, 1.0),
        "lora_rank": (1, 1024),
        "lora_alpha": (0.001, 4096.0),
        "probe_epochs": (0, 1000),
        "ema_decay": (0.0, 0.99999),
        "early_stopping": (0, 1000),
        "distil_temperature": (0.1, 100.0),
        "distil_weight": (0.0, 1.0),
        "distil_features": (0.0, 1000.0),
        "new_image_px": (8, 1024),
        "new_patch_px": (1, 128),
        "new_width": (8, 4096),
        "new_layers": (1, 64),
        "new_heads": (1, 64),
        "save_every_steps": (0, 1_000_000),
        "keep_checkpoints": (1, 1000),
        "seed": (0, 2**32 - 1),
        "threads": (0, 1024),
        "cache_mib": (0, 1_000_000),
    }
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "fit": ("model", "squash", "crop", "pad"),
        "schedule": ("cosine", "linear", "constant"),
        "method": ("full", "lora"),
        "loss": ("cross_entropy", "focal"),
        "balance": ("none", "weights", "sampler"),
        "augment": ("none", "light", "standard", "strong"),
        "mixed_precision": ("auto", "no", "bf16", "fp16"),
        "gradient_checkpointing": ("auto", "on", "off"),
        "best_by": ("accuracy", "loss"),
    }

    data: str = (
        ""  # a folder with one folder of pictures per class; also a dataset of Hugging Face, saved or parquet
    )
    model: str = (
        "embedded"  # what to begin with: a folder, a Hugging Face name, embedded, or new (random weights)
    )
    validation: float = 0.15  # share of the pictures that is only looked at, of each class alike
    test: float = 0.0  # share that is not even looked at before the end
    group_by: str = (
        ""  # a pattern in the path, such as person_\d+: pictures that agree in it are never separated
    )
    fit: str = "model"  # model, squash, crop, pad: how a picture becomes a square

    epochs: int = 5
    max_steps: int = 0  # 0 = by epochs
    batch_size: int = 32  # pictures at once, over all processes together
    gradient_accumulation: int = 1  # batches that are added up before the weights move
    learning_rate: float = 1e-4
    layer_decay: float = 1.0  # below 1 early layers learn more slowly, each by this factor
    head_factor: float = 1.0  # the new head learns so many times faster than the rest
    schedule: str = "cosine"  # cosine, linear, constant: what the learning rate does after the warm-up
    warmup_steps: float = 0.05  # below 1: a share of all steps
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # 0 = gradients are not clipped

    freeze: str = "none"  # none, head (only the head learns), last_4, or what stays as it is: embeddings,0-7
    method: str = "full"  # full, lora: change the weights, or train small matrices beside them
    lora_rank: int = 8
    lora_alpha: float = 16.0  # they count alpha / rank
    probe_epochs: int = 0  # so many epochs of the head alone come first

    loss: str = "cross_entropy"  # cross_entropy, focal
    focal_gamma: float = 2.0  # Lin et al. 2017: how much less easy pictures count
    label_smoothing: float = 0.0
    balance: str = "none"  # none, weights, sampler: rare classes count more, or come more often
    augment: str = (
        "light"  # none, light, standard, strong: how much training pictures are moved and recoloured
    )
    flip: bool = True  # mirror half of them; never for digits or lettering
    erase: float = 0.0  # chance that a rectangle of a picture is blanked
    mixup: float = 0.0  # Zhang et al. 2018: blend pairs of pictures; 0 = off, 0.2 usual
    cutmix: float = 0.0  # Yun et al. 2019: paste a piece of another picture; 0 = off, 1 usual

    ema_decay: float = 0.0  # 0 = off; 0.999 = keep the average of about the last 1000 steps' weights
    early_stopping: int = 0  # 0 = off; stop after so many epochs without a better result
    keep_best: bool = True  # the result is the best epoch's model, not the last one's
    best_by: str = "accuracy"  # accuracy, loss: on the validation pictures

    teacher: str = ""  # learn from this model's answers too (distillation): a folder, a name, embedded
    distil_temperature: float = 2.0  # Hinton et al. 2015: softens both answers
    distil_weight: float = 0.5  # how much the teacher counts beside the labels
    distil_features: float = 0.0  # how much the last layer's features must resemble the teacher's

    new_image_px: int = 32  # sizes of a `new` model
    new_patch_px: int = 8
    new_width: int = 64
    new_layers: int = 4
    new_heads: int = 4

    mixed_precision: str = "auto"  # auto: bf16 or fp16 on a GPU, full precision on a CPU; no, bf16, fp16
    gradient_checkpointing: str = "auto"  # auto: for large models on 16 GB and less; on, off
    save_every_steps: int = 0  # 0 = after each epoch
    keep_checkpoints: int = 2  # the newest, and the best
    report: bool = True  # judge the result: confusion matrix, calibration, worst mistakes, model card
    seed: int = 1337  # the same seed on the same machine repeats the run
    device: str = "auto"  # auto, cpu, cuda
    threads: int = 0  # of the processor; 0 = as torch chooses
    cache_mib: int = 2048  # decoded pictures are kept in memory up to this size

    @property
    def from_scratch(self) -> bool:
        return self.model == NEW

    def conflicts(self) -> list[str]:
        """What only several fields together can tell, one line each."""
        found = []
        if not _FREEZE.fullmatch(self.freeze):
            found.append(
                f"freeze is {self.freeze!r}: write none, head, last_4 or what stays, such as embeddings,0-7"
            )
        if self.validation + self.test >= 1:
            found.append("validation and test together leave nothing to learn from: lower them")
        if self.method == "lora" and self.from_scratch:
            found.append("method lora needs a model that knows something: choose a model, or method full")
        if self.method == "lora" and self.freeze != "none":
            found.append("method lora freezes all weights by itself: set freeze none")
        if self.from_scratch and (self.freeze != "none" or self.probe_epochs):
            found.append("a new model has nothing worth freezing: set freeze none and probe_epochs 0")
        if self.from_scratch and self.new_image_px % self.new_patch_px:
            found.append(
                f"new_patch_px {self.new_patch_px} does not divide new_image_px {self.new_image_px}: choose another"
            )
        if self.from_scratch and self.new_width % self.new_heads:
            found.append(
                f"new_heads {self.new_heads} does not divide new_width {self.new_width}: choose another"
            )
        if self.loss == "focal" and (self.mixup or self.cutmix or self.label_smoothing):
            found.append("loss focal knows one class per picture: set mixup, cutmix and label_smoothing to 0")
        if self.early_stopping and not self.validation and self.data:
            found.append("early_stopping needs pictures to judge by: set validation above 0")
        return found


#: Named choices: what differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The settings that the model card of amunchet/rorshark-vit-base names.
    "rorshark": {
        "epochs": 5,
        "batch_size": 8,
        "learning_rate": 2e-5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "schedule": "linear",
        "warmup_steps": 0.0,
        "validation": 0.15,
        "seed": 1337,
        "augment": "standard",
        "keep_best": True,
        "best_by": "loss",
        "mixed_precision": "no",
    },
    "scratch": {
        "model": NEW,
        "epochs": 60,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "adam_beta2": 0.98,
        "label_smoothing": 0.1,
        "ema_decay": 0.99,
        "flip": False,
        "keep_best": False,
    },
    "probe": {"freeze": "head", "epochs": 20, "learning_rate": 1e-3, "weight_decay": 0.0, "augment": "none"},
    "lora": {"method": "lora", "epochs": 5, "learning_rate": 5e-4, "weight_decay": 0.0},
}


def preset(name: str, **changes: Any) -> VitTrainConfig:
    """The config of a preset with `changes` of your own."""
    if name not in PRESETS:
        raise UserError(
            f"There is no preset {name!r}.", fix=f"choose one of these: {', '.join(sorted(PRESETS))}."
        )
    known = {field.name for field in fields(VitTrainConfig)}
    for key in changes:
        if key not in known:
            raise UserError(
                f"{key!r} is not a setting of the training.", fix=f"there are: {', '.join(sorted(known))}."
            )
    return replace(VitTrainConfig(), **{**PRESETS[name], **changes})
