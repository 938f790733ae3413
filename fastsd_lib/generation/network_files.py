"""LoRA files of every usual kind: which weight each of their tensors changes, and by how much.

Names as kohya's programs (`lora_unet_...`), diffusers and peft (`unet.....lora_A.weight`) write them; kinds as in
LyCORIS (Yeh et al. 2023, arXiv 2309.14859): LoRA and LoCon, LoHa, LoKr, whole differences; and DoRA's magnitudes
(Liu et al. 2024, arXiv 2402.09353). The formulas are those of A1111's `extensions-builtin/Lora`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import TensorFile, read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.key_maps import rename, unet_table
from fastsd_lib.formats.lora_file import Correction
from fastsd_lib.formats.lora_names import split_ending
from fastsd_lib.formats.parts import Parts

# Beginnings of module names, as diffusers and peft write them -> kohya's.
_BEGINNINGS = (
    ("base_model.model.text_model.", "lora_te_text_model."),
    ("base_model.model.", "lora_unet_"),
    ("unet.", "lora_unet_"),
    ("diffusion_model.", "lora_unet_"),
    ("text_encoder_2.", "lora_te2_"),
    ("text_encoder.", "lora_te_"),
    *((f"{block}.", f"lora_unet_{block}.") for block in ("down_blocks", "mid_block", "up_blocks")),
)
# What only networks for other models hold -> which.
_ELSEWHERE = {
    "double_blocks": "flux",
    "single_transformer_blocks": "flux",
    "joint_blocks": "sd3",
    "transformer_transformer_blocks": "sd3",
}
_TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # what the U-Net's cross attention reads


@dataclass(frozen=True)
class Module:
    """All that a file says of one layer: role -> name of the tensor."""

    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    alpha: float | None = None  # where the file's metadata says it, and no tensor does


@dataclass(frozen=True)
class NetworkFile:
    path: Path
    modules: Mapping[str, Module]  # by kohya's key, "lora_unet_down_blocks_0_..."
    metadata: Mapping[str, str]
    family: str  # "" when neither names nor shapes nor metadata say it


def read_network(path: Path) -> NetworkFile:
    """Read the header; no weight is read. UserError for a file that is damaged or no network known here."""
    file = read_tensor_file(path)
    names: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        found = split_ending(name)
        if found is None:
            raise UserError(
                f"{path.name} is no LoRA that is known here: it holds {escaped(name)[:100]}.",
                fix="take a LoRA, LoCon, LoHa, LoKr or DoRA file for Stable Diffusion, as .safetensors.",
            )
        names.setdefault(_key(found[0]), {})[found[1]] = name
    if not names:
        raise UserError(f"{path.name} is an empty LoRA.", fix="download or copy it again.")
    alphas = _adapter_alphas(file.metadata)
    modules = {
        key: Module(roles, {role: file.tensors[name].shape for role, name in roles.items()}, alphas(key))
        for key, roles in names.items()
    }
    return NetworkFile(path, modules, file.metadata, _family(file, modules))


def _key(module: str) -> str:
    """Kohya's key of a module by any of its names."""
    for theirs, ours in _BEGINNINGS:
        if module.startswith(theirs):
            module = ours + module.removeprefix(theirs)
            break
    key = module.replace(".", "_")
    for name in ("lora_te_", "lora_te1_", "lora_te2_"):
        if key.startswith(name) and not key.startswith(f"{name}text_"):
            return f"{name}text_model_{key.removeprefix(name)}"
    return key


def _adapter_alphas(metadata: Mapping[str, str]) -> Callable[[str], float | None]:
    """peft's settings, which diffusers puts into the metadata: alpha of a module, by its key."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        settings = {}
    settings = settings if isinstance(settings, dict) else {}

    def alpha(key: str) -> float | None:
        part = {"lora_te_": "text_encoder.", "lora_te2_": "text_encoder_2."}
        prefix = next((mine for start, mine in part.items() if key.startswith(start)), "unet.")
        patterns = settings.get(f"{prefix}alpha_pattern")
        if isinstance(patterns, dict):
            for pattern, value in patterns.items():
                if key.endswith(str(pattern).removeprefix("^").replace(".", "_")) and isinstance(
                    value, int | float
                ):
                    return float(value)
        value = settings.get(f"{prefix}lora_alpha")
        return float(value) if isinstance(value, int | float) else None

    return alpha


def _family(file: TensorFile, modules: Mapping[str, Module]) -> str:
    for part, family in _ELSEWHERE.items():
        if any(part in name.replace(".", "_") for name in file.tensors):
            return family
    if any(key.startswith("lora_te2_") or "_transformer_blocks_1_" in key for key in modules):
        return "sdxl"  # the others have one transformer block at each place, and one text encoder
    for key, module in modules.items():
        shape = module.shapes.get("down")
        if key.endswith("attn2_to_k") and shape and len(shape) > 1 and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
    said = f"{file.metadata.get('ss_base_model_version')} {file.metadata.get('modelspec.architecture')}"
    for word, family in {"sdxl": "sdxl", "diffusion-xl": "sdxl", "sd_v2": "sd2", "sd_v1": "sd1"}.items():
        if word in said:
            return family
    return ""


def change_of(module: Module, tensors: Mapping[str, torch.Tensor], rank: int | None = None) -> torch.Tensor:
    """What the module adds to a weight at strength 1, (out, in, ...) fp32, before DoRA.

    `rank`: use so many of a plain LoRA's dimensions. RuntimeError or KeyError when its tensors do not go together.
    """
    found = {role: tensor.float() for role, tensor in tensors.items()}
    if "diff" in found:
        return found["diff"]
    alpha = (
        found["alpha"].item() if "alpha" in found and found["alpha"].device.type != "meta" else module.alpha
    )
    if "hada_w1_a" in found:
        ranks = found["hada_w1_b"].shape[0]
        first = _product(found["hada_w1_a"], found["hada_w1_b"], found.get("hada_t1"))
        change = first * _product(found["hada_w2_a"], found["hada_w2_b"], found.get("hada_t2"))
    elif "lokr_w1" in found or "lokr_w1_a" in found:
        halves, ranks = [], None
        for which in ("lokr_w1", "lokr_w2"):
            if which in found:
                halves.append(found[which])
                continue
            core = found.get("lokr_t2") if which == "lokr_w2" else None
            halves.append(_product(found[f"{which}_a"], found[f"{which}_b"], core))
            ranks = found[f"{which}_b"].shape[0]
        first, second = halves
        change = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second)
        if ranks is None:  # both are whole
            return change
    elif "mid" in found:
        down, up = found["down"].flatten(1), found["up"].flatten(1)
        ranks = down.shape[0]
        change = torch.einsum("n m ..., i n, m j -> i j ...", found["mid"], up, down)
    else:
        down, up = found["down"], found["up"]
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        return Correction(down[:rank], up[:, :rank], scale).change()
    return change * (1.0 if alpha is None else alpha / ranks)


def _product(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    if core is None:
        return a @ b
    return torch.einsum("i j ..., j r, i p -> p r ...", core, b, a)


def with_magnitude(
    weight: torch.Tensor, change: torch.Tensor, tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """DoRA: what is to be added so that the changed weight has the lengths that the file says.

    Those of peft are per output; LyCORIS' are per input, unless they stand in a column.
    """
    if not {"magnitude", "dora"} & set(tensors):
        return change
    changed = weight + change
    if "dora" in tensors and tensors["dora"].ndim > 1 and tensors["dora"].shape[0] == 1:
        lengths = changed.transpose(0, 1).flatten(1).norm(dim=1)
        shape = (1, -1, *[1] * (weight.ndim - 2))
    else:
        lengths = changed.flatten(1).norm(dim=1)
        shape = (-1, *[1] * (weight.ndim - 1))
    wanted = tensors["magnitude" if "magnitude" in tensors else "dora"].float()
    return changed * (wanted.reshape(shape) / lengths.reshape(shape)) - weight


def fits(module: Module, weight: tuple[int, ...], bias: tuple[int, ...] | None) -> bool:
    """Whether a layer with a weight and a bias of these shapes can be changed so; no tensor is read."""
    shapes = dict(module.shapes)
    if math.prod(shapes.get("alpha", ())) != 1 or ("diff_b" in shapes and shapes["diff_b"] != bias):
        return False
    if set(shapes) <= {"diff_b", "alpha"}:
        return "diff_b" in shapes
    empty = {role: torch.empty(shape, device="meta") for role, shape in shapes.items()}
    try:
        change = change_of(module, empty)
        with_magnitude(torch.empty(weight, device="meta"), change.reshape(weight), empty)
    except (RuntimeError, KeyError, IndexError, ZeroDivisionError, ValueError, TypeError):
        return False  # its tensors do not go together, or not with this layer
    return change.shape[0] == weight[0] and (change.ndim == 2 or change.shape[1:2] == weight[1:2])


def places(parts: Parts) -> dict[str, tuple[str, str]]:
    """Kohya's key -> (part, path of the module), for all that has weights; SDXL's U-Net by LDM's names, too."""
    found: dict[str, tuple[str, str]] = {}
    for part, beginnings in (
        ("text_encoder_2", ("lora_te2_",)),
        ("text_encoder", ("lora_te_", "lora_te1_")),
    ):
        for path, _ in _weighted(getattr(parts, part, None)):
            path_key = path.replace(".", "_")
            path_key = path_key if path.startswith("text_") else f"text_model_{path_key}"
            for beginning in beginnings:
                found[beginning + path_key] = (part, path)
    table = unet_table(parts.unet.config)
    for path, _ in _weighted(parts.unet):
        found[f"lora_unet_{path.replace('.', '_')}"] = ("unet", path)
        theirs = rename(f"{path}.weight", table)
        if theirs:
            found[f"lora_unet_{theirs.removesuffix('.weight').replace('.', '_')}"] = ("unet", path)
    return found


def _weighted(module: torch.nn.Module | None) -> list[tuple[str, torch.nn.Module]]:
    if module is None:
        return []
    return [
        (path, one)
        for path, one in module.named_modules()
        if isinstance(getattr(one, "weight", None), torch.Tensor)
    ]
