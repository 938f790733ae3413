"""Real pipelines, only small: random weights, their own vocabulary, saved the way diffusers saves them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_vocabulary import MODEL_INDEX, save_tokenizer

from fastsd_lib.core.model_files import ModelFiles

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples on every run, and no stopwatch: a busy machine is no bug.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("house")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The embedded model's shape: 64 px, f=4 VAE with three levels, attention on every level of the U-Net."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return _save_pipeline(folder, unet=(32, 64, 128), vae=(16, 32, 64), layers=1, attention_everywhere=True)


@pytest.fixture(scope="session")
def narrow_sd15(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Stable Diffusion 1.5's shape, only narrower: four levels, two layers each, f=8 VAE."""
    folder = tmp_path_factory.mktemp("models") / "narrow"
    return _save_pipeline(
        folder, unet=(16, 32, 32, 32), vae=(8, 16, 16, 16), layers=2, attention_everywhere=False
    )


def _save_pipeline(
    folder: Path, unet: tuple[int, ...], vae: tuple[int, ...], layers: int, attention_everywhere: bool
) -> ModelFiles:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    torch.manual_seed(7)
    levels, groups = len(unet), 8
    side = 64 // 2 ** (len(vae) - 1)
    last = "CrossAttn" if attention_everywhere else ""
    vocabulary = save_tokenizer(folder / "tokenizer")
    UNet2DConditionModel(
        sample_size=side,
        block_out_channels=unet,
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + (f"{last}DownBlock2D",),
        up_block_types=(f"{last}UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=groups,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=vae,
        layers_per_block=layers,
        down_block_types=("DownEncoderBlock2D",) * len(vae),
        up_block_types=("UpDecoderBlock2D",) * len(vae),
        norm_num_groups=groups,
        sample_size=64,
        scaling_factor=0.7,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2))
    return ModelFiles("sd1", "diffusers", folder)
