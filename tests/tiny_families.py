"""Tiny pipelines of SD 2.x and SDXL with random weights, saved as diffusers saves them, and as single files.

All widths are multiples of 64, as in the real ones, so that their configs can be read from the shapes of a file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tiny_vocabulary import MODEL_INDEX, save_tokenizer

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.key_maps import rename, unet_table, vae_table

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def save_sd2(folder: Path, prediction: str = "epsilon", seed: int = 3) -> ModelFiles:
    """SD 2.x: one OpenCLIP text encoder, linear projections; `prediction` as 768-v models have it, or epsilon."""
    vocabulary = _tokenizer(folder / "tokenizer", pad="!")
    _text_encoder(folder / "text_encoder", vocabulary, "gelu", projects=False, seed=seed)
    _unet(folder / "unet", seed, cross_attention_dim=64)
    _vae(folder / "vae", seed, scaling_factor=0.18215)
    _scheduler(folder / "scheduler", prediction)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    return ModelFiles("sd2", "diffusers", folder)


def save_sdxl(folder: Path, in_channels: int = 4, refines: bool = False, seed: int = 5) -> ModelFiles:
    """SDXL: two text encoders and size ids. `in_channels` 9: an inpainting model. `refines`: the second one alone."""
    vocabulary = _tokenizer(folder / "tokenizer_2", pad="!")
    _text_encoder(folder / "text_encoder_2", vocabulary, "gelu", projects=True, seed=seed, width=128)
    if not refines:
        _tokenizer(folder / "tokenizer")
        _text_encoder(folder / "text_encoder", vocabulary, "quick_gelu", projects=False, seed=seed + 1)
    _unet(
        folder / "unet",
        seed,
        in_channels=in_channels,
        cross_attention_dim=128 if refines else 64 + 128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=128 + 256 * (5 if refines else 6),
    )
    _vae(folder / "vae", seed, scaling_factor=0.13025)
    _scheduler(folder / "scheduler", "epsilon")
    kind = "Img2Img" if refines else "Inpaint" if in_channels == 9 else ""
    index = MODEL_INDEX | {
        "_class_name": f"StableDiffusionXL{kind}Pipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": not refines,
    }
    for name in ("safety_checker", "requires_safety_checker"):
        index.pop(name)
    if refines:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    return ModelFiles("sdxl", "diffusers", folder)


def save_single_file(
    model: ModelFiles, path: Path, more: dict | None = None, metadata: dict | None = None
) -> Path:
    """The folder's weights under the names of the original files; OpenCLIP's spelled out here, tensor by tensor."""
    tensors: dict[str, np.ndarray] = dict(more or {})
    for part, prefix, table in (
        ("unet", "model.diffusion_model.", unet_table),
        ("vae", "first_stage_model.", vae_table),
    ):
        names = table(json.loads((model.path / part / "config.json").read_text()))
        for name, array in load_file(model.path / part / "diffusion_pytorch_model.safetensors").items():
            theirs = str(rename(name, names))
            convolution = ".mid.attn_1." in theirs and theirs.endswith(".weight") and array.ndim == 2
            tensors[prefix + theirs] = array[:, :, None, None] if convolution else array
    if model.family == "sd2":
        tensors |= _open_clip(model.path / "text_encoder", "cond_stage_model.model.")
    else:
        first = model.path / "text_encoder" / "model.safetensors"
        where = "conditioner.embedders.1.model." if first.is_file() else "conditioner.embedders.0.model."
        tensors |= _open_clip(model.path / "text_encoder_2", where)
        if first.is_file():
            clip = "conditioner.embedders.0.transformer.text_model."
            tensors |= {clip + k.removeprefix("text_model."): v for k, v in load_file(first).items()}
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata or {})
    return path


def _open_clip(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    given = {k.removeprefix("text_model."): v for k, v in load_file(folder / "model.safetensors").items()}
    found = {
        "token_embedding.weight": given["embeddings.token_embedding.weight"],
        "positional_embedding": given["embeddings.position_embedding.weight"],
        "ln_final.weight": given["final_layer_norm.weight"],
        "ln_final.bias": given["final_layer_norm.bias"],
        "logit_scale": np.zeros((), np.float32),
    }
    if "text_projection.weight" in given:
        found["text_projection"] = given["text_projection.weight"].T
    for layer in range(json.loads((folder / "config.json").read_text())["num_hidden_layers"]):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            three = [given[f"{old}self_attn.{one}_proj.{kind}"] for one in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = np.concatenate(three)
            for ours, theirs in (
                ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                found[f"{new}{theirs}.{kind}"] = given[f"{old}{ours}.{kind}"]
    return {prefix + name: array for name, array in found.items()}


def _tokenizer(folder: Path, pad: str = "") -> int:
    count = save_tokenizer(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json") if pad else ():
        config = json.loads((folder / name).read_text()) | {"pad_token": pad}
        (folder / name).write_text(json.dumps(config))
    return count


def _text_encoder(
    folder: Path, vocabulary: int, act: str, projects: bool, seed: int, width: int = 64
) -> None:
    import torch
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=width // 64, max_position_embeddings=77, hidden_act=act, projection_dim=width,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=0 if act == "gelu" else vocabulary - 1,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
    with torch.no_grad():  # fresh weights are so small that every text means the same
        for weight in model.parameters():
            weight.mul_(3).add_(torch.randn(weight.shape) * 0.05)
    model.save_pretrained(folder)


def _unet(folder: Path, seed: int, **more: object) -> None:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed + 10)
    choices = {
        "sample_size": 16,
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
    }
    UNet2DConditionModel(**(choices | more)).save_pretrained(folder)


def _vae(folder: Path, seed: int, scaling_factor: float) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed + 20)
    AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32,
        scaling_factor=scaling_factor,
    ).save_pretrained(folder)


def _scheduler(folder: Path, prediction: str) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    DDIMScheduler(**SCHEDULE, prediction_type=prediction).save_pretrained(folder)
