"""A pipeline of SDXL's shape with random weights, both text encoders: 6.9 GB in half precision."""

from __future__ import annotations

from pathlib import Path

from benchmarks._random_sd15 import VAE
from benchmarks._random_weights import save_random, save_small_files

UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.30.0",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save_random_sdxl(folder: Path, dtype: str = "fp16") -> Path:
    """Write it to `folder`, with the embedded model's tokenizer and noise schedule."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = save_small_files(folder, INDEX, tokenizers=2)
    ids = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    first = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, projection_dim=768, **ids,
    )  # fmt: skip
    second = CLIPTextConfig(
        vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
        num_attention_heads=20, projection_dim=1280, hidden_act="gelu", **ids,
    )  # fmt: skip
    vae = VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
    save_random(lambda: UNet2DConditionModel(**UNET), folder / "unet", dtype)
    save_random(lambda: AutoencoderKL(**vae), folder / "vae", dtype)
    save_random(lambda: CLIPTextModel(first), folder / "text_encoder", dtype)
    save_random(lambda: CLIPTextModelWithProjection(second), folder / "text_encoder_2", dtype)
    return folder
