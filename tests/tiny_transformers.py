"""Tiny pipelines of SD3 and Flux with random weights, part by part as diffusers and transformers save them.

Heads are as wide as in the real ones (64 channels, Flux 128), so that their configs can be read from the shapes of a file.
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_vocabulary import save_tokenizer

from fastsd_lib.core.model_files import ModelFiles

WORDS = ("▁a", "▁red", "▁blue", "▁star", "▁cat", "▁", *"abcdefghijklmnopqrstuvwxyz(),.:1234567890")
CLIP_WORDS, T5_WORDS = ["transformers", "CLIPTokenizer"], ["transformers", "T5TokenizerFast"]


def save_sd3(
    folder: Path, version: str = "3 medium", layers: int = 2, t5: bool = True, seed: int = 7
) -> ModelFiles:
    """SD3. `version`: "3 medium", "3.5 large" (norms of queries and keys) or "3.5 medium" (a second attention too)."""
    import torch
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(seed)
    newer = {} if version == "3 medium" else {"qk_norm": "rms_norm"}
    second = {"dual_attention_layers": tuple(range(layers - 1))} if version == "3.5 medium" else {}
    _shaken(
        SD3Transformer2DModel(
            sample_size=32, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
            num_attention_heads=1, joint_attention_dim=192, caption_projection_dim=64,
            pooled_projection_dim=64 + 128, pos_embed_max_size=32, **newer, **second,
        )
    ).save_pretrained(folder / "transformer")  # fmt: skip
    _vae(folder / "vae", seed, scaling_factor=1.5305, shift_factor=0.0609)
    _clip(folder, "", projects=True, width=64, act="quick_gelu", seed=seed)
    _clip(folder, "_2", projects=True, width=128, act="gelu", seed=seed + 1)
    if t5:
        _t5(folder, "_3", seed)
    _scheduler(folder, shift=3.0)
    clip = ["transformers", "CLIPTextModelWithProjection"]
    third = ["transformers", "T5EncoderModel"] if t5 else [None, None]
    _index(
        folder, "StableDiffusion3Pipeline", transformer=["diffusers", "SD3Transformer2DModel"],
        text_encoder=clip, text_encoder_2=clip, text_encoder_3=third,
        tokenizer=CLIP_WORDS, tokenizer_2=CLIP_WORDS, tokenizer_3=T5_WORDS if t5 else [None, None],
    )  # fmt: skip
    return ModelFiles("sd3", "diffusers", folder)


def save_flux(
    folder: Path, guidance: bool = True, layers: int = 2, in_channels: int = 64, seed: int = 9
) -> ModelFiles:
    """Flux.1: dev, or without `guidance` schnell; `in_channels` 384: Fill, 128: Canny and Depth."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(seed)
    _shaken(
        FluxTransformer2DModel(
            in_channels=in_channels, out_channels=None if in_channels == 64 else 64,
            num_layers=layers, num_single_layers=layers, attention_head_dim=128,
            num_attention_heads=1, joint_attention_dim=192, pooled_projection_dim=64, guidance_embeds=guidance,
        )
    ).save_pretrained(folder / "transformer")  # fmt: skip
    _vae(folder / "vae", seed, scaling_factor=0.3611, shift_factor=0.1159)
    _clip(folder, "", projects=False, width=64, act="quick_gelu", seed=seed)
    _t5(folder, "_2", seed)
    _scheduler(folder, **({"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}))
    _index(
        folder, "FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"],
        text_encoder=["transformers", "CLIPTextModel"], text_encoder_2=["transformers", "T5EncoderModel"],
        tokenizer=CLIP_WORDS, tokenizer_2=T5_WORDS,
    )  # fmt: skip
    return ModelFiles("flux", "diffusers", folder)


def _shaken(model):
    """Every number its own: fresh norms are all one and fresh biases all zero, so a mix-up would not show."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.02)
    return model


def _vae(folder: Path, seed: int, **scales: float) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed + 20)
    _shaken(
        AutoencoderKL(
            block_out_channels=(32, 64), layers_per_block=1, latent_channels=16, sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            use_quant_conv=False, use_post_quant_conv=False, **scales,
        )
    ).save_pretrained(folder)  # fmt: skip


def _clip(folder: Path, number: str, projects: bool, width: int, act: str, seed: int) -> None:
    import torch
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    count = save_tokenizer(folder / f"tokenizer{number}")
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=count, hidden_size=width, intermediate_size=128, num_hidden_layers=2, hidden_act=act,
        num_attention_heads=width // 64, projection_dim=width, bos_token_id=count - 2, eos_token_id=count - 1,
        pad_token_id=count - 1,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
    _shaken(model).save_pretrained(folder / f"text_encoder{number}")


def _t5(folder: Path, number: str, seed: int) -> None:
    import torch
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel
    from transformers.models.t5.tokenization_t5 import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -float(len(word))) for word in WORDS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.save_pretrained(folder / f"tokenizer{number}")
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=192, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        is_encoder_decoder=False, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    _shaken(T5EncoderModel(config)).save_pretrained(folder / f"text_encoder{number}")


def _scheduler(folder: Path, **choices: object) -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(**choices).save_pretrained(folder / "scheduler")


def _index(folder: Path, name: str, **parts: list[str | None]) -> None:
    index = {
        "_class_name": name,
        "_diffusers_version": "0.39.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
        **parts,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
