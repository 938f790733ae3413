"""Pipelines whose class names no family: the U-Net tells it, and what is no Stable Diffusion is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_layouts import sparse_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.identify import describe, identify

TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
PROJ_IN = "down_blocks.1.attentions.0.proj_in.weight"
TEXT = {"text_encoder": ["transformers", "CLIPTextModel"]}


def pipeline(
    folder: Path, name: str, text_width: int, channels: int = 4, parts: dict | None = None, **more
) -> Path:
    """A Diffusers folder with a U-Net alone, as large as it says and empty. `more`: tensors beside the usual."""
    (folder / "unet").mkdir(parents=True)
    unet = {
        "conv_in.weight": (320, channels, 3, 3), "time_embedding.linear_1.weight": (1280, 320),
        TO_K: (640, text_width), PROJ_IN: (640, 640),
    }  # fmt: skip
    sparse_file(folder / "unet" / "diffusion_pytorch_model.safetensors", unet | more)
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    index = {"_class_name": name, "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index | (TEXT if parts is None else parts)))
    return folder


@pytest.mark.parametrize(
    ("name", "width", "more", "family", "variant"),
    [
        ("DiffusionPipeline", 2048, {}, "sdxl", ""),
        ("DiffusionPipeline", 1024, {}, "sd2", ""),
        ("SomebodysOwnPipeline", 768, {PROJ_IN: (640, 640, 1, 1)}, "sd1", ""),
        (
            "StableDiffusionPipeline",
            64,
            {},
            "sd2",
            "",
        ),  # the class names the family, and a tiny one has odd widths
        ("StableDiffusionPipeline", 64, {PROJ_IN: (640, 640, 1, 1)}, "sd1", ""),
        ("LatentConsistencyModelPipeline", 768, {PROJ_IN: (640, 640, 1, 1)}, "sd1", ""),
        ("StableUnCLIPImg2ImgPipeline", 1024, {}, "sd2", "unCLIP"),
    ],
)
def test_a_class_that_names_no_family_leaves_it_to_the_u_net(tmp_path, name, width, more, family, variant):
    folder = pipeline(tmp_path / "m", name, width, **more)
    assert (describe(folder).kind.family, describe(folder).kind.variant) == (family, variant)
    assert identify(folder).family == family


@pytest.mark.parametrize(
    ("name", "width", "channels", "parts", "more", "said"),
    [
        ("KolorsPipeline", 2048, 4, None, {"encoder_hid_proj.weight": (2048, 4096)}, "network of a Kolors"),
        ("StableDiffusionXLPipeline", 2048, 4, None, {"encoder_hid_proj.weight": (2048, 4096)}, "network of a Kolors"),
        ("StableVideoDiffusionPipeline", 1024, 8, {"image_encoder": ["transformers", "CLIP"]},
         {"down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm_in.weight": (320,)},
         "network of a Stable Video Diffusion model"),
        ("KandinskyV22Pipeline", 768, 4, {"movq": ["diffusers", "VQModel"]},
         {"add_embedding.image_norm.weight": (1,)}, "network of a Kandinsky model"),
        ("AudioLDMPipeline", 256, 8, None, {}, "takes 8 channels and texts 256 wide"),
        ("AudioLDM2Pipeline", 768, 8, {"text_encoder": ["transformers", "ClapModel"]}, {}, "texts 768 wide"),
        ("LDMTextToImagePipeline", 1280, 4, {"bert": ["latent_diffusion", "LDMBertModel"]}, {}, "texts 1280 wide"),
        ("TextToVideoSDPipeline", 1024, 4, None, {"down_blocks.0.temp_convs.0.conv1.0.weight": (1,)}, "a ModelScope"),
    ],
)  # fmt: skip
def test_what_is_no_stable_diffusion_is_refused_with_what_was_seen(
    tmp_path, name, width, channels, parts, more, said
):
    folder = pipeline(tmp_path / "m", name, width, channels, parts, **more)
    for look in (describe, identify):
        with pytest.raises(UserError) as error:
            look(folder)
        assert f"{folder} holds a {name}" in error.value.message and said in error.value.message
        assert "which is not known here" in error.value.message
        assert error.value.fix == "take a Stable Diffusion pipeline."
