"""LoRA files of a few layers, and what they add to a weight, by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastsd_lib.formats.lora_convert import convert_lora

Tensors = dict[str, torch.Tensor]
UNET = "lora_unet_down_blocks_0_attentions_0_"
CLIP = "lora_te_text_model_encoder_layers_"


def pair(key: str, out: int, into: int, rank: int = 4, alpha: float | None = 2.0, kernel: int = 0) -> Tensors:
    """One layer of a kohya file, fp16; `kernel`: of a convolution."""
    random = torch.Generator().manual_seed(sum(map(ord, key)))
    down = torch.randn(rank, into, *[kernel] * 2 * bool(kernel), generator=random)
    up = torch.randn(out, rank, *[1] * 2 * bool(kernel), generator=random)
    found = {f"{key}.lora_down.weight": down.half(), f"{key}.lora_up.weight": up.half()}
    return found | ({f"{key}.alpha": torch.tensor(alpha).half()} if alpha is not None else {})


def change(tensors: Tensors, key: str) -> torch.Tensor:
    """up @ down * alpha / rank, by hand."""
    down, up = tensors[f"{key}.lora_down.weight"].float(), tensors[f"{key}.lora_up.weight"].float()
    scale = float(tensors[f"{key}.alpha"]) / down.shape[0] if f"{key}.alpha" in tensors else 1.0
    return (up.flatten(1) @ down.flatten(1) * scale).reshape(up.shape[0], *down.shape[1:])


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def same(one: Tensors, other: Tensors) -> bool:
    """Names, types, shapes and every bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def there_and_back(tmp_path: Path, tensors: Tensors, said: dict[str, str] | None = None) -> tuple[Path, Path]:
    save_file(tensors, tmp_path / "kohya.safetensors", said or {})
    peft = convert_lora(tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors", "peft")
    return peft, convert_lora(peft, tmp_path / "back.safetensors", "kohya")


def fused(key: str, rows: int, into: int, rank: int = 6) -> Tensors:
    return pair(key, rows, into, rank, alpha=3.0)
