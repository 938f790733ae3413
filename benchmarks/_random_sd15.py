"""A pipeline of Stable Diffusion 1.5's shape with random weights: what counts is its work, not its pictures."""

from __future__ import annotations

from pathlib import Path

from benchmarks._random_weights import save_random, save_small_files

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


def save_random_sd15(folder: Path, dtype: str = "fp16") -> Path:
    """Write it to `folder`, 2 GB in half precision, with the embedded model's tokenizer and noise schedule."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = save_small_files(folder)
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
    save_random(lambda: UNet2DConditionModel(**UNET), folder / "unet", dtype)
    save_random(lambda: AutoencoderKL(**VAE), folder / "vae", dtype)
    save_random(lambda: CLIPTextModel(text), folder / "text_encoder", dtype)
    return folder
