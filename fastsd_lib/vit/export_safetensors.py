"""safetensors: transformers' own layout in 32 or 16 bits, and 8-bit weights for PyTorch's dynamic arithmetic."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import WEIGHTS
from fastsd_lib.vit.exports import Recipe, Written
from fastsd_lib.vit.model import VitModel, load_torch, torch_dtype
from fastsd_lib.vit.weights import in_silence

PRECISIONS = ("fp32", "bf16", "fp16", "int8w")
INT8 = "model.int8.safetensors"
_SCALE = ".scale"  # beside NAME.weight as int8: one step per output


def write(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """int8w: linear layers as int8 with a scale per output; PyTorch rounds the activations at run time."""
    if precision not in PRECISIONS:
        raise UserError(
            f"safetensors is written as {', '.join(PRECISIONS)}, not {precision}.",
            fix='choose one of these, or the format "openvino".',
        )
    if precision != "int8w":
        with in_silence():
            load_torch(model, dtype=torch_dtype(precision)).save_pretrained(folder)
        return Written(opens=WEIGHTS)
    loaded = load_torch(model)
    tensors = dict(loaded.state_dict())
    for name, layer in _linear(loaded):
        if name in recipe.kept:
            continue
        tensors[f"{name}.weight"], tensors[f"{name}.weight{_SCALE}"] = _as_int8(layer.weight.detach())
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / INT8, {"format": "pt"}
    )
    return Written(opens=INT8, note="int8 weights for this program; other programs read the 16-bit exports")


def load_int8(folder: Path) -> nn.Module:
    """The model with PyTorch's dynamic linear layers, built from the file: no pickle is involved."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        loaded = getattr(transformers, config.architectures[0])(config)
    tensors = load_file(folder / INT8)
    for name, layer in _linear(loaded):
        scale = tensors.pop(f"{name}.weight{_SCALE}", None)
        if scale is not None:
            weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias", None)
            _put(loaded, name, _dynamic(weight, scale, bias, layer))
    for name, tensor in tensors.items():
        _put(loaded, name, nn.Parameter(tensor, requires_grad=False))
    empty = [name for name, one in loaded.named_parameters() if one.is_meta]
    if empty:
        raise UserError(f"{folder / INT8} lacks {empty[0]}.", fix="export the model again.")
    return loaded.eval()


def _put(loaded: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    parent, _, own = name.rpartition(".")
    module = loaded.get_submodule(parent)
    if own in module._buffers:
        module._buffers[own] = part.data
    else:
        setattr(module, own, part)


def _as_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in) float32 -> (out, in) int8 in [-127, 127], (out,) float32 steps."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _dynamic(
    weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, layer: nn.Linear
) -> nn.Module:
    from torch.ao.nn.quantized import dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao will move to another package; the kernels stay
        made = dynamic.Linear(layer.in_features, layer.out_features, bias_=bias is not None)
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        packed = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        made.set_weight_bias(packed, bias)
    return made


def _linear(loaded: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, one) for name, one in loaded.named_modules() if isinstance(one, nn.Linear)]
