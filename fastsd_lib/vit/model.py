"""ViT models by name: the embedded one, a folder, a Hugging Face id; opened without loading a weight, or as PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.vit import model_config, model_files
from fastsd_lib.vit.calibration_file import read_facts, temperature_of
from fastsd_lib.vit.config import Precision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EMBEDDED = model_files.EMBEDDED
BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int8w": 1.0, "int4w": 0.6}
_RUNTIME_MIB = 450  # PyTorch or OpenVINO itself, before any model


@dataclass(frozen=True)
class VitModel:
    """A model folder in transformers' layout, and what its small files say."""

    path: Path  # config.json, model.safetensors, preprocessor_config.json, perhaps fastsd_vit.json
    name: str  # as people call it: "embedded", "google/vit-base-patch16-224", the folder's name
    architecture: str  # "ViTForImageClassification"
    labels: tuple[str, ...]  # by class number; empty for a model without a classifier
    generic_labels: bool  # they are LABEL_0, LABEL_1 ...: nobody wrote down what they mean
    image_px: tuple[int, int]  # (height, width) that the model sees
    parameters: int
    multi_label: bool  # several classes at once may be true: a sigmoid each, no softmax
    temperature: float | None  # see calibration_file

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told before trusting the answers."""
        if not self.generic_labels:
            return ()
        first, last = self.labels[0], self.labels[-1]
        return (
            f"{self.name} names its classes {first} to {last}: what they mean is not written in the model",
        )


def open_model(
    name_or_path: str | Path = EMBEDDED,
    *,
    token: model_files.Token = None,
    revision: str | None = None,
    classifier: bool = True,
) -> VitModel:
    """The model behind a name, an alias ("vit-b16-224"), a folder or a Hugging Face id; downloads when it must.

    Weights are safetensors; a `.bin` is read as plain numbers and copied to a safetensors file once. With
    `classifier=False` a model without a head (for features, or to train a head on) will do as well. UserError for
    unknown names, missing or damaged files, other kinds of models, gated ones and a missing network.
    """
    folder, name = model_files.find(name_or_path, token, revision)
    config = model_config.read(folder, name, classifier=classifier)
    image_px = model_config.image_px(folder, config)
    return VitModel(
        path=folder,
        name=name,
        architecture=config.architecture,
        labels=config.labels,
        # Classes of a model trained here are named after folders: digits may well be called 0 to 9.
        generic_labels=config.generic_labels and "trained_on" not in read_facts(folder),
        image_px=image_px,
        parameters=_count_parameters(folder),
        multi_label=config.multi_label,
        temperature=temperature_of(folder),
    )


def load_torch(
    model: VitModel,
    *,
    attention: Literal["sdpa", "eager"] = "sdpa",
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    labels: tuple[str, ...] | None = None,
) -> PreTrainedModel:
    """The model as transformers has it, in eval mode, in float32 unless `dtype` says otherwise.

    "eager" attention is what returns attention maps. With `labels` the head is a new one for these classes, to be
    trained. UserError when the file lacks a weight, has one too many or one of another shape, or memory is short.
    """
    require("transformers", group="vit")
    from fastsd_lib.vit.weights import load

    return load(model, attention, dtype, device, labels)


def memory_needed_mib(model: VitModel, precision: Precision = "fp32", batch: int = 16) -> float:
    """About how much memory a program takes that loads the model and runs it, in MiB.

    The runtime, the weights, and the larger of what loading holds besides (the weights as the file has them) and of
    the values that a batch has in one layer. Measured with ViT-B/16 in PyTorch: within a fifth of the real peak.
    """
    config = model_config.sizes(model.path)
    precision = "fp32" if precision == "auto" else precision
    weights = model.parameters * BYTES_PER_WEIGHT[precision]
    in_file = (
        0.0 if precision == "fp32" else model.parameters * BYTES_PER_WEIGHT["fp32"]
    )  # fp32 runs where it lies
    tokens = (model.image_px[0] // config.patch_px) * (model.image_px[1] // config.patch_px) + 1
    values = tokens * (6 * config.hidden + 2 * config.mlp) + 3 * model.image_px[0] * model.image_px[1]
    width = 4 if precision == "fp32" else 2
    return (weights + max(in_file, batch * values * width)) / 2**20 + _RUNTIME_MIB


def refuse_without_memory(model: VitModel, precision: Precision, batch: int) -> None:
    """UserError when the model is estimated to need more memory than is free."""
    import psutil

    needed, free = memory_needed_mib(model, precision, batch), psutil.virtual_memory().available / 2**20
    if needed > free:
        raise UserError(
            f"{model.name} with batches of {batch} needs about {needed:,.0f} MiB of memory; {free:,.0f} are free.",
            fix="take a smaller batch, precision bf16 or int8, or close other programs.",
        )


def _count_parameters(folder: Path) -> int:
    """From the headers of the weights; of an export from those of the model that it lies in."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and (folder / model_files.EXPORT).is_file() and folder.parent.name == "exports":
        files = sorted(folder.parents[1].glob("*.safetensors"))
    tensors = [one for file in files for one in read_tensor_file(file).tensors.values()]
    return sum(math.prod(one.shape) for one in tensors if one.dtype in model_files.FLOATS)


def torch_dtype(precision: Precision) -> Any:
    """torch's name of a precision that PyTorch computes in."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
