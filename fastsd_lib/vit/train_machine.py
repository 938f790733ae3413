"""What this machine can do for a training: device, precision, memory."""

from __future__ import annotations

import torch
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.train_config import VitTrainConfig

_LARGE = 200_000_000  # parameters from which activations are computed twice on a small machine
_SMALL_MIB = 17_000  # "16 GB" as machines report it


def use_cpu(config: VitTrainConfig) -> bool:
    has_gpu = torch.cuda.is_available()
    if config.device == "auto":
        return not has_gpu
    if config.device.startswith("cuda") and not has_gpu:
        raise UserError("There is no NVIDIA GPU that torch can use.", fix="set device to auto or cpu.")
    if config.device not in ("cpu", "cuda"):
        raise UserError(f"device is {config.device!r}.", fix="write auto, cpu or cuda.")
    return config.device == "cpu"


def mixed_precision(config: VitTrainConfig, cpu: bool) -> str:
    if config.mixed_precision == "fp16" and cpu:
        raise UserError("fp16 training needs a GPU.", fix="set mixed_precision to bf16 or no.")
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if cpu:
        return "no"
    return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"


def gradient_checkpointing(config: VitTrainConfig, model: nn.Module, cpu: bool) -> bool:
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on"
    import psutil

    memory = psutil.virtual_memory().total if cpu else torch.cuda.get_device_properties(0).total_memory
    return sum(one.numel() for one in model.parameters()) >= _LARGE and memory >> 20 <= _SMALL_MIB


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "memory" in str(error).lower() and "alloc" in str(error).lower()
    )
