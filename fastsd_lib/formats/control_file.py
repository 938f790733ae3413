"""ControlNet files -> live networks: diffusers' folders and files, and those with the names of their inventors.

Layouts: `controlnet_cond_embedding.*` (diffusers) and `control_model.input_hint_block.*` (lllyasviel/ControlNet,
cldm.py; pruned files leave the first word out). Zhang et al. 2023, "Adding Conditional Control to Text-to-Image
Diffusion Models", arXiv 2302.05543.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import TensorFile, read_tensor_file
from fastsd_lib.formats.control_names import HINT, control_table, count_hints
from fastsd_lib.formats.key_maps import Table, rename

if TYPE_CHECKING:
    import torch

FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # by the width of the text that it reads
# A tensor's name that holds this -> what such a file is, and what to do with it.
STRANGERS = {
    "lora_controlnet": ("a Control-LoRA", "take the whole ControlNet it was made from."),
    "ip_adapter": ("an IP-Adapter", "take a ControlNet; a reference picture works with reference_only."),
    "image_proj": ("an IP-Adapter", "take a ControlNet; a reference picture works with reference_only."),
    "task_embedding": ("a ControlNet Union", "take a ControlNet for one kind of picture."),
    "control_add_embedding": ("a ControlNet Union", "take a ControlNet for one kind of picture."),
    "body.0.in_conv": ("a T2I-Adapter", "take a ControlNet of the same kind."),
    "adapter.body": ("a T2I-Adapter", "take a ControlNet of the same kind."),
    "controlnet_x_embedder": ("a ControlNet of a transformer (Flux, SD 3)", "take one for Stable Diffusion."),
    "lora_down": ("a LoRA", "put it into models/Lora and write <lora:NAME:1> into the prompt."),
}
OLD_PREFIX = "control_model."


@dataclass(frozen=True)
class ControlFile:
    """What a ControlNet file's header says."""

    path: Path  # as it was named: the file or the folder
    file: TensorFile
    config: Mapping[str, Any]  # diffusers' config, where the file brings one
    original: bool  # the inventors' names
    channels: int  # after the first convolution
    text_width: int

    @property
    def family(self) -> str:
        """sd1, sd2, sdxl; "other" for a base model of another width, such as the embedded one."""
        return FAMILIES.get(self.text_width, "other")

    def fits(self, unet: torch.nn.Module) -> bool:
        """Whether it was made for a U-Net of this shape."""
        own = self.channels, self.text_width
        return own == (unet.config.block_out_channels[0], unet.config.cross_attention_dim)


def open_control_file(path: Path, open_file: Callable[[Path], TensorFile] = read_tensor_file) -> ControlFile:
    """Read the header of a `.safetensors` file or a Diffusers folder. UserError for anything else.

    `open_file`: how a file is opened; `ckpt_file.open_weights` takes a .pth, too, whose weights are streamed.
    """
    weights, config = path, {}
    if path.is_dir():
        files = sorted(path.glob("diffusion_pytorch_model*.safetensors"))
        weights = next(
            (file for file in files if file.stem == "diffusion_pytorch_model"), *files[:1] or [path]
        )
        if weights == path:
            raise UserError(
                f"{path} holds no diffusion_pytorch_model.safetensors.",
                fix="download the ControlNet again with its .safetensors weights.",
            )
    file = open_file(weights)
    names = {name.removeprefix(OLD_PREFIX): tensor.shape for name, tensor in file.tensors.items()}
    for part, (kind, way) in STRANGERS.items():
        if any(part in name for name in names):
            raise UserError(f"{path} is {kind}, not a ControlNet.", fix=way)
    original = any(name.startswith("input_hint_block.") for name in names)
    if not original and not any(name.startswith("controlnet_cond_embedding.") for name in names):
        raise UserError(
            f"{path} is no ControlNet: it has no layer for a control picture.",
            fix="take a ControlNet's .safetensors file or Diffusers folder.",
        )
    if "difference" in names:
        raise UserError(
            f"{path} holds only the difference to a base model.", fix="take the full ControlNet of this name."
        )
    first = names.get("input_blocks.0.0.weight" if original else "conv_in.weight", ())
    widths = [
        shape[1] for name, shape in names.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2
    ]
    if len(first) != 4 or not widths:
        raise UserError(
            f"{path} is a damaged ControlNet: its first layers are missing.", fix="download it again."
        )
    beside = weights.with_suffix(".json") if weights == path else path / "config.json"
    config = _config_in(file.metadata.get("config")) or (
        _config_in(beside.read_text()) if beside.is_file() else {}
    )
    return ControlFile(path, file, config, original, first[0], widths[0])


def load_control_net(control: ControlFile, unet: torch.nn.Module) -> torch.nn.Module:
    """The ControlNet in the dtype and on the device of the U-Net it fits; UserError when it does not fit."""
    import torch
    from diffusers.models.controlnets.controlnet import ControlNetModel

    like = next(unet.parameters())
    hints = count_hints(name.removeprefix(OLD_PREFIX) for name in control.file.tensors)
    tensors = _tensors(control, control_table(unet.config, hints) if control.original else None)
    config = {**_shape_of(unet), **control.config, **_seen(tensors)}
    known = set(inspect.signature(ControlNetModel.__init__).parameters) - {"self"}
    for name in ("block_out_channels", "layers_per_block", "cross_attention_dim"):
        if _listed(config.get(name)) != _listed(unet.config[name]):
            raise _misfit(control, f"{name} is {config.get(name)}, the model's {unet.config[name]}")
    try:
        with torch.device("meta"):  # no memory before its size is known to be right
            net = ControlNetModel(**{name: value for name, value in config.items() if name in known})
    except (TypeError, ValueError) as error:
        raise _misfit(control, str(error).splitlines()[0]) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    for name, shape in wanted.items():
        found = tensors.get(name)
        if found is not None and found.ndim == 4 and len(shape) == 2 and found.shape[2:] == (1, 1):
            tensors[name] = found = found[:, :, 0, 0]  # a projection stored as a 1x1 convolution
        if found is None or tuple(found.shape) != shape:
            there = "missing" if found is None else f"{tuple(found.shape)}, not {shape}"
            raise _misfit(control, f"{name} is {there}")
    if strangers := sorted(tensors.keys() - wanted.keys()):
        raise _misfit(control, f"nothing takes its {strangers[0]}")
    net.load_state_dict({name: tensor.to(like) for name, tensor in tensors.items()}, assign=True)
    return net.eval().requires_grad_(False)


def _tensors(control: ControlFile, table: Table | None) -> dict[str, torch.Tensor]:
    """Diffusers' names -> tensors."""
    from safetensors import safe_open

    with safe_open(control.file.path, framework="pt") as opened:
        raw = {name: opened.get_tensor(name) for name in control.file.tensors}
    if table is None:
        return raw
    inverse = {theirs: ours for ours, theirs in table.items()}
    found = {}
    for name, tensor in raw.items():
        if (ours := rename(name.removeprefix(OLD_PREFIX), inverse)) is None:
            raise _misfit(control, f"nothing takes its {name}")
        found[ours] = tensor
    return found


def _shape_of(unet: torch.nn.Module) -> dict[str, Any]:
    """The config that a ControlNet of this U-Net has, but for what its own tensors say."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def _seen(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the tensors themselves say of the config."""
    embedding = HINT
    blocks = [
        tensors[name].shape[1]
        for number in range(0, len(tensors), 2)
        if (name := f"{embedding}.blocks.{number}.weight") in tensors
    ]
    last = tensors.get(f"{embedding}.conv_out.weight")
    first, hint = tensors.get("conv_in.weight"), tensors.get(f"{embedding}.conv_in.weight")
    if last is None or first is None or hint is None:
        return {}
    attends = any(name.startswith("mid_block.attentions.") for name in tensors)
    return {
        "in_channels": first.shape[1],
        "conditioning_channels": hint.shape[1],
        "conditioning_embedding_out_channels": (*blocks, last.shape[1]),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attends else "UNetMidBlock2D",
    }


def _config_in(text: str | None) -> dict[str, Any]:
    try:
        config = json.loads(text or "{}")
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _misfit(control: ControlFile, why: str) -> UserError:
    return UserError(
        f"The ControlNet {control.path.name} does not fit this model: {why}.",
        fix="take a ControlNet made for this base model, or download it again if it should be one.",
    )
