"""A pipeline of Stable Diffusion 1.5's shape with random weights: what counts is its work, not its pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fastsd_lib.models.registry import EMBEDDED_FOLDER

UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE = {
    "sample_size": 512,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def save_random_sd15(folder: Path) -> Path:
    """Write it to `folder` in half precision, 2 GB, with the embedded model's tokenizer and noise schedule."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    for name in ("tokenizer", "scheduler"):
        shutil.copytree(EMBEDDED_FOLDER / name, folder / name)
    shutil.copy(EMBEDDED_FOLDER / "model_index.json", folder)
    words = len(json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    makers = {
        "unet": lambda: UNet2DConditionModel(**UNET),
        "vae": lambda: AutoencoderKL(**VAE),
        "text_encoder": lambda: CLIPTextModel(text),
    }
    numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for name, make in makers.items():
        with torch.device("meta"):
            module = make().half()
        module = module.to_empty(device="cpu")
        for key, weight in module.state_dict().items():
            if key.endswith("position_ids"):
                weight.copy_(torch.arange(weight.shape[-1])[None])
            elif weight.ndim > 1:
                fan_in = weight[0].numel()
                some = numbers.repeat(-(-weight.numel() // len(numbers)))[: weight.numel()]
                weight.copy_(some.view(weight.shape) * fan_in**-0.5)
            else:
                weight.fill_(1.0 if key.endswith("weight") else 0.0)
        module.save_pretrained(folder / name)
    return folder
