"""The choices of ViT experiments: dataclasses only, so that a form needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fit = Literal["model", "squash", "crop", "pad"]  # "model" = what the checkpoint's own processor does
Backend = Literal["auto", "torch", "openvino", "onnxruntime", "jax"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8", "int8w", "int4w"]  # w = weights only
Augment = Literal["none", "flip", "five_crop", "ten_crop"]
Pool = Literal["cls", "mean"]

CONFIG = "config.json"  # of transformers: architecture, sizes, names of the classes
PROCESSOR = "preprocessor_config.json"  # of transformers: how a picture becomes pixels
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class RunnerConfig:
    """What computes, and how exactly."""

    backend: Backend = "auto"  # OpenVINO on a CPU where it is installed, PyTorch on a GPU and elsewhere
    precision: Precision = "auto"  # bf16 where the processor computes with it, else fp32
    device: str = "auto"  # "cpu", "cuda", "cuda:1"
    threads: int = 0  # of the processor; 0 = all
    batch_size: int = 16  # pictures at once, at most


@dataclass(frozen=True)
class ClassifyConfig:
    """How pictures are read and what is told of them."""

    top_k: int = 5  # classes told for each picture, best first
    fit: Fit = "model"
    augment: Augment = "none"  # several views of each picture, their answers averaged
    readers: int = 0  # threads that read and decode; 0 = by the machine
    threshold: float = 0.0  # classes below this probability are not told
    recursive: bool = True  # enter the folders in a folder


@dataclass(frozen=True)
class Features:
    """Which numbers inside the model stand for a picture."""

    layer: int = (
        -1
    )  # -1 = after the final LayerNorm, 0 = the embedded patches, n = after block n (before that LayerNorm)
    pool: Pool = "cls"  # the class token, or the mean over the patches
    normalize: bool = False  # to length 1


Output = Literal["logits"] | Features
