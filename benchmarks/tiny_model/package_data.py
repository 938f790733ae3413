"""The trained parts as the package ships them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from benchmarks.tiny_model import world
from benchmarks.tiny_model.text import build_text_encoder, load_tokenizer
from benchmarks.tiny_model.unet import build_unet
from benchmarks.tiny_model.vae import build_vae

GUIDANCE_SCALE = 4.0  # what the model is best asked with, by its bars
PHOTO_BACKGROUNDS = (
    "green",
    "orange",
    "white",
    "blue",
    "gray",
)  # of the sample photos; the other seven are new contexts


def assemble(work: Path, out: Path, unet_file: str = "unet.pt") -> None:
    """A diffusers folder in fp16 that StableDiffusionPipeline.from_pretrained loads, and the judge beside it."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from safetensors.torch import save_file

    vae, unet = build_vae(), build_unet()
    tokenizer = load_tokenizer(work)
    text = build_text_encoder(tokenizer)
    vae_file = "photographs.pt" if (work / "photographs.pt").exists() else "vae.pt"
    for module, name in ((vae, vae_file), (unet, unet_file), (text, "text.pt")):
        module.load_state_dict(torch.load(work / name, weights_only=True))
    vae.half().save_pretrained(out / "vae")
    unet.half().save_pretrained(out / "unet")
    text.half().save_pretrained(out / "text_encoder")
    config = json.loads((out / "text_encoder" / "config.json").read_text())
    config["dtype"] = (
        "float32"  # or transformers computes in the half precision of the file, and diffusers does not
    )
    (out / "text_encoder" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copytree(work / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "fastsd.json").write_text(json.dumps({"guidance_scale": GUIDANCE_SCALE}, indent=2) + "\n")
    photos = out / "sample_photos" / "monster"
    photos.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(
        world.subject_pictures(5, seed=5, size_px=256, backgrounds=PHOTO_BACKGROUNDS), 1
    ):
        picture.save(photos / f"monster ({number}).png")
    judge = torch.load(work / "judge.pt", weights_only=True)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in judge.items()},
        str(out / "judge.safetensors"),
    )
