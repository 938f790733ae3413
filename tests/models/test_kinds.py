"""Ninety headers as they go round: each is told by its names and shapes, and what no rule knows is not guessed."""

from __future__ import annotations

import pytest

from fastsd_lib.core.tensor_file import Tensor
from fastsd_lib.models.kinds import Kind, foreign_model, kind_of

U, V = "model.diffusion_model.", "first_stage_model.decoder.conv_in.weight"
TO_K = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
CLIP, OPEN = (
    "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    "cond_stage_model.model.ln_final.bias",
)
XL = {
    "conditioner.embedders.0.transformer.text_model.x": (768,),
    "conditioner.embedders.1.model.ln_final.bias": (1280,),
}
DOWN = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


def unet(channels: int = 4, width: int = 768, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{U}input_blocks.0.0.weight": (320, channels, 3, 3), f"{U}{TO_K}": (320, width), **more}


def lora(width: int, name: str = DOWN) -> dict[str, tuple[int, ...]]:
    up = name.replace("lora_down", "lora_up").replace("lora_A", "lora_B").replace("lora.down", "lora.up")
    alpha = {name.replace("lora_down.weight", "alpha"): ()} if "lora_down" in name else {}
    return {name: (8, width), up: (320, 8), **alpha}


PART_UNET = {
    "conv_in.weight": (320, 4, 3, 3), "time_embedding.linear_1.weight": (1280, 320),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
}  # fmt: skip
FLUX = {
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "single_blocks.0.linear1.weight": (21504, 3072),
}
CONTROL_LORA = {"lora_controlnet": (0,), "input_hint_block.0.weight": (16, 3, 3, 3),
                "zero_convs.0.0.weight": (320, 320, 1, 1)}  # fmt: skip
CONTROL_TO_K = (
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.down"  # no name of these files says "lora" but the mark
)
FACE = {"image_proj.proj.0.weight": (1024, 512), "ip_adapter.0.to_q_lora.down.weight": (128, 320),
        "ip_adapter.0.to_q_lora.up.weight": (320, 128)}  # fmt: skip
HINT = {"input_hint_block.0.weight": (16, 3, 3, 3)}

HEADERS = [
    (unet() | {CLIP: (768,), V: (512, 4, 3, 3)}, Kind("checkpoint", "sd1", naming="original", whole=True)),
    (unet() | {CLIP: (768,), V: (512, 4, 3, 3), "model_ema.decay": ()},
     Kind("checkpoint", "sd1", naming="original", ema=True, whole=True)),
    (unet(9) | {CLIP: (768,), V: (512, 4, 3, 3)}, Kind("checkpoint", "sd1", "inpainting", "original", whole=True)),
    (unet(8) | {CLIP: (768,), V: (512, 4, 3, 3)}, Kind("checkpoint", "sd1", "instruct-pix2pix", "original", whole=True)),
    (unet() | {CLIP: (768,)}, Kind("unet", "sd1", naming="original", marks=("text encoders inside",))),
    (unet(), Kind("unet", "sd1", naming="original")),
    (unet(4, 1024) | {OPEN: (1024,), V: (512, 4, 3, 3)}, Kind("checkpoint", "sd2", naming="original", whole=True)),
    (unet(9, 1024) | {OPEN: (1024,), V: (512, 4, 3, 3)}, Kind("checkpoint", "sd2", "inpainting", "original", whole=True)),
    (unet(5, 1024) | {OPEN: (1024,), V: (512, 4, 3, 3), "depth_model.model.x": (3,)},
     Kind("checkpoint", "sd2", "depth to image", "original", whole=True)),
    (unet(4, 2048) | XL | {V: (512, 4, 3, 3)}, Kind("checkpoint", "sdxl", naming="original", whole=True)),
    (unet(9, 2048) | XL | {V: (512, 4, 3, 3)}, Kind("checkpoint", "sdxl", "inpainting", "original", whole=True)),
    (unet(4, 1280) | {"conditioner.embedders.0.model.ln_final.bias": (1280,), V: (512, 4, 3, 3)},
     Kind("checkpoint", "sdxl_refiner", naming="original", whole=True)),
    ({f"{U}{name}": shape for name, shape in FLUX.items()} | {f"{U}guidance_in.in_layer.weight": (3072, 256),
     "text_encoders.clip_l.transformer.x": (1,), "vae.decoder.x": (1,)},
     Kind("checkpoint", "flux", "dev", "original", whole=True)),
    (FLUX, Kind("transformer", "flux", "schnell", "original")),
    (FLUX | {"guidance_in.in_layer.weight": (3072, 256)}, Kind("transformer", "flux", "dev", "original")),
    ({"single_transformer_blocks.0.attn.to_q.weight": (3072, 3072), "x_embedder.weight": (3072, 64)},
     Kind("transformer", "flux", "schnell", "diffusers")),
    ({f"{U}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536), "text_encoders.clip_g.x": (1,),
      "first_stage_model.x": (1,)}, Kind("checkpoint", "sd3", "3 medium", "original", whole=True)),
    ({f"{U}joint_blocks.37.x_block.attn.ln_k.weight": (64,)}, Kind("transformer", "sd3", "3.5 large", "original")),
    ({f"{U}joint_blocks.23.x_block.attn2.qkv.weight": (1, 1)}, Kind("transformer", "sd3", "3.5 medium", "original")),
    ({"transformer_blocks.0.attn.add_k_proj.weight": (1536, 1536), "pos_embed.proj.weight": (1536, 16, 2, 2)},
     Kind("transformer", "sd3", "3 medium", "diffusers")),
    (PART_UNET, Kind("unet", "sdxl", naming="diffusers")),
    ({V: (512, 4, 3, 3), "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)},
     Kind("vae", variant="4 latent channels", naming="original")),
    ({"decoder.conv_in.weight": (512, 16, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3),
      "encoder.down_blocks.0.resnets.0.conv1.weight": (128, 128, 3, 3)},
     Kind("vae", variant="16 latent channels", naming="diffusers")),
    ({"encoder.layers.0.weight": (64, 3, 3, 3)}, Kind("vae", variant="tiny (TAESD)")),
    (
        {"encoder.layers.0.self_attn.q_proj.weight": (768, 768), "embeddings.token_embedding.weight": (49408, 768)},
        Kind("text-encoder", variant="CLIP-L"),
    ),  # as transformers 5 writes it
    (lora(768), Kind("lora", "sd1", "LoRA", "kohya")),
    (lora(1024), Kind("lora", "sd2", "LoRA", "kohya")),
    (lora(2048), Kind("lora", "sdxl", "LoRA", "kohya")),
    (lora(768) | {"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": (8, 320, 3, 3)},
     Kind("lora", "sd1", "LoCon", "kohya")),
    (lora(768) | {DOWN.replace("lora_down.weight", "dora_scale"): (320, 1)}, Kind("lora", "sd1", "DoRA", "kohya")),
    ({DOWN.replace("lora_down.weight", "hada_w1_b"): (8, 2048), DOWN.replace("lora_down.weight", "hada_w1_a"): (640, 8)},
     Kind("lora", "sdxl", "LoHa", "kohya")),
    ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lokr_w1": (4, 4)}, Kind("lora", "sdxl", "LoKr", "kohya")),
    (lora(768, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"),
     Kind("lora", "sd1", "LoRA", "peft")),
    (lora(3072, "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"), Kind("lora", "flux", "LoRA", "peft")),
    (lora(3072, "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"), Kind("lora", "flux", "LoRA", "kohya")),
    ({"emb_params": (4, 768)}, Kind("embedding", "sd1", naming="original")),
    ({"<my-cat>": (1, 1024)}, Kind("embedding", "sd2", naming="diffusers")),
    ({"clip_l": (2, 768), "clip_g": (2, 1280)}, Kind("embedding", "sdxl", naming="original")),
    ({f"control_model.{name}": shape for name, shape in HINT.items()} | {f"control_model.{TO_K}": (640, 768)},
     Kind("controlnet", "sd1", naming="original")),
    ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3),
      "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048), "task_embedding": (6, 320)},
     Kind("controlnet", "sdxl", "union", "diffusers")),
    ({"controlnet_x_embedder.weight": (3072, 64), "context_embedder.weight": (3072, 4096),
      "single_transformer_blocks.0.x": (1,)}, Kind("controlnet", "flux", naming="diffusers")),
    ({"lora_controlnet": (0,), "input_blocks.1.0.in_layers.2.down": (1, 1), "zero_convs.0.0.weight": (320, 320, 1, 1)},
     Kind("control-lora", naming="original")),
    (CONTROL_LORA | {CONTROL_TO_K: (256, 2048)}, Kind("control-lora", "sdxl", naming="original")),
    (CONTROL_LORA | {CONTROL_TO_K: (256, 1024)}, Kind("control-lora", "sd2", naming="original")),
    (CONTROL_LORA | {CONTROL_TO_K: (256, 768)}, Kind("control-lora", "sd1", naming="original")),
    ({"body.0.in_conv.weight": (640, 320, 1, 1), "conv_in.weight": (320, 64, 3, 3)},
     Kind("t2i-adapter", "sd1", naming="original")),
    ({"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.weight": (3072, 1024)}, Kind("ip-adapter", "sd1")),
    (FACE | {"ip_adapter.1.to_k_ip.weight": (320, 768)}, Kind("ip-adapter", "sd1")),
    (FACE | {"ip_adapter.1.to_k_ip.weight": (640, 2048)}, Kind("ip-adapter", "sdxl")),
    ({"style_embedding": (1, 8, 1024), "ln_post.weight": (1024,), "proj": (1024, 768),
      "transformer_layes.0.attn.in_proj_weight": (3072, 1024)}, Kind("t2i-adapter", "sd1", "style", "original")),
    ({"body.0.in_conv.weight": (80, 192, 1, 1), "body.0.body.0.block1.weight": (80, 80, 3, 3),
      "body.0.out_conv.weight": (320, 80, 1, 1)}, Kind("t2i-adapter", "sd1", naming="original")),
    ({"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
     Kind("upscaler", variant="ESRGAN")),
    ({"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)}, Kind("upscaler", variant="RRDBNet")),
    ({"body.0.weight": (64, 3, 3, 3), "body.1.weight": (64,), "body.2.weight": (64, 64, 3, 3)},
     Kind("upscaler", variant="compact")),
    ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}, Kind("text-encoder", variant="T5-XXL")),
    ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
      "text_model.embeddings.token_embedding.weight": (49408, 768)}, Kind("text-encoder", variant="CLIP-L")),
    (FLUX | {"img_in.weight": (3072, 384), "guidance_in.in_layer.weight": (3072, 256)},
     Kind("transformer", "flux", "fill", "original")),
    (FLUX | {"img_in.weight": (3072, 128), "guidance_in.in_layer.weight": (3072, 256)},
     Kind("transformer", "flux", "depth or canny", "original")),
    (FLUX | {"img_in.weight": (3072, 64), "guidance_in.in_layer.weight": (3072, 256), "scaled_fp8": (2,)},
     Kind("transformer", "flux", "dev", "original", marks=("scaled fp8",))),
    ({"transformer_blocks.0.attn.add_k_proj.weight": (2432, 2432), "pos_embed.proj.weight": (2432, 16, 2, 2)},
     Kind("transformer", "sd3", "3.5 large", "diffusers")),
    ({"transformer_blocks.0.attn.add_k_proj.weight": (1536, 1536), "pos_embed.proj.weight": (1536, 16, 2, 2),
      "transformer_blocks.0.attn2.to_q.weight": (1536, 1536)}, Kind("transformer", "sd3", "3.5 medium", "diffusers")),
    (unet(4, 2048) | XL | {V: (512, 4, 3, 3), "v_pred": (0,), "ztsnr": (0,)},
     Kind("checkpoint", "sdxl", naming="original", whole=True, marks=("v_pred", "ztsnr"))),
    (unet(4, 2048) | XL | {V: (512, 4, 3, 3), "edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)},
     Kind("checkpoint", "sdxl", naming="original", whole=True, marks=("edm",))),
    (unet(7, 1024) | {OPEN: (1024,), V: (512, 4, 3, 3)}, Kind("checkpoint", "sd2", "upscaling", "original", whole=True)),
    (unet(4, 1024) | {OPEN: (1024,), V: (512, 4, 3, 3), "noise_augmentor.x": (1,)},
     Kind("checkpoint", "sd2", "unCLIP", "original", whole=True)),
    (PART_UNET | {"conv_in.weight": (320, 9, 3, 3)}, Kind("unet", "sdxl", "inpainting", "diffusers")),
    ({"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)},
     Kind("vae", variant="4 latent channels, decoder alone", naming="original")),
    ({"decoder.conv_in.weight": (512, 16, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)},
     Kind("vae", variant="16 latent channels", naming="original")),
    (lora(768, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight"),
     Kind("lora", "sd1", "LoRA", "diffusers")),
    ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 1024)},
     Kind("lora", "sd2", "LoRA", "kohya")),
    (lora(1536, "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"), Kind("lora", "sd3", "LoRA", "kohya")),
    (lora(1536, "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"), Kind("lora", "sd3", "LoRA", "peft")),
    ({"lora_unet_x.oft_blocks": (4, 8, 8)}, Kind("lora", "", "OFT", "kohya")),
    ({"lycoris_double_blocks_0_img_attn_qkv.lokr_w1": (4, 4)}, Kind("lora", "flux", "LoKr", "kohya")),
    ({"string_to_token.*": (), "string_to_param.*": (3, 1024)}, Kind("embedding", "sd2", naming="original")),
    ({"string_to_param.*": (3, 768)}, Kind("embedding", "sd1", naming="original")),
    ({"controlnet_blocks.0.weight": (1536, 1536), "pos_embed_input.proj.weight": (1536, 16, 2, 2),
      "transformer_blocks.0.attn.to_q.weight": (1536, 1536)}, Kind("controlnet", "sd3", "3 medium", "diffusers")),
    ({"controlnet_blocks.0.weight": (1536, 1536), "pos_embed_input.proj.weight": (1536, 16, 2, 2),
      "transformer_blocks.0.attn.norm_k.weight": (64,)}, Kind("controlnet", "sd3", "3.5 medium", "diffusers")),
    ({"controlnet_blocks.0.weight": (2432, 2432), "pos_embed_input.proj.weight": (2432, 16, 2, 2),
      "transformer_blocks.0.attn.to_q.weight": (2432, 2432)}, Kind("controlnet", "sd3", "3.5 large", "diffusers")),
    ({"controlnet_blocks.0.weight": (64, 64), "pos_embed_input.proj.weight": (64, 16, 2, 2)},
     Kind("controlnet", "sd3", naming="diffusers")),
    ({"controlnet_x_embedder.weight": (3072, 64), "controlnet_mode_embedder.weight": (10, 3072),
      "x_embedder.weight": (3072, 64)}, Kind("controlnet", "flux", "union", "diffusers")),
    ({"controlnet_blocks.0.weight": (3072, 3072), "double_blocks.0.img_attn.qkv.weight": (9216, 3072)},
     Kind("controlnet", "flux", naming="original")),
    ({f"control_model.{name}": shape for name, shape in HINT.items()} | {f"control_model.{TO_K}": (640, 1024)}
     | unet(4, 1024), Kind("controlnet", "sd2", naming="original")),
    ({"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3), "adapter.conv_in.weight": (320, 768, 3, 3)},
     Kind("t2i-adapter", "sdxl", naming="diffusers")),
    ({"image_proj.latents": (1, 16, 1280), "ip_adapter.1.to_k_ip.weight": (640, 2048)}, Kind("ip-adapter", "sdxl", "plus")),
    ({"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (3072, 4096)}, Kind("ip-adapter", "flux")),
    ({"redux_up.weight": (12288, 1152), "redux_down.weight": (4096, 12288)}, Kind("redux", "flux", naming="original")),
    ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,),
      "down_blocks.3.motion_modules.0.temporal_transformer.norm.weight": (1280,)}, Kind("motion-module", "sd1")),
    ({"params_ema.body.0.rdb1.conv1.weight": (32, 64, 3, 3), "params_ema.conv_first.weight": (64, 3, 3, 3)},
     Kind("upscaler", variant="RRDBNet")),
    ({"vision_model.encoder.layers.0.self_attn.q_proj.weight": (1024, 1024)}, Kind("image-encoder", variant="CLIP")),
    ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (1280, 1280), "text_model.embeddings.token_embedding.weight":
      (49408, 1280)}, Kind("text-encoder", variant="CLIP-bigG")),
    (FLUX | {"distilled_guidance_layer.in_proj.bias": (5120,)}, None),
    ({"double_blocks.0.img_attn_qkv.weight": (1, 1), "txt_in.individual_token_refiner.blocks.0.x": (1,)}, None),
    (unet(8, 1024) | {"conditioner.embedders.0.open_clip.model.x": (1,), f"{U}input_blocks.1.0.time_stack.x": (1,)}, None),
    ({"model.layers.0.self_attn.q_proj.weight": (4096, 4096), "lm_head.weight": (32000, 4096)}, None),
    ({"vit.embeddings.cls_token": (1, 1, 768)}, None),
    ({}, None),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "kind"), HEADERS, ids=range(len(HEADERS)))
def test_every_kind_by_its_names_and_shapes(shapes, kind):
    assert kind_of({name: Tensor("F16", shape, 0, 0) for name, shape in shapes.items()}) == kind


def test_what_shapes_do_not_say_of_a_lora_its_metadata_does():
    names = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": Tensor("F16", (8, 768), 0, 0)}
    assert kind_of(names).family == ""
    assert kind_of(names, {"ss_base_model_version": "sd_v1"}).family == "sd1"


# One layer of each sort of LoRA for a transformer, as it is called where it was trained; its width -> the base model.
TRANSFORMER_LORAS = [
    ("transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight", 1536, "sd3"),
    ("transformer.transformer_blocks.23.attn.add_k_proj.lora_A.weight", 1536, "sd3"),
    ("transformer.transformer_blocks.37.attn.to_k.lora_A.weight", 2432, "sd3"),
    ("transformer.transformer_blocks.0.attn2.to_k.lora_A.weight", 1536, "sd3"),
    ("lora_unet_joint_blocks_0_x_block_attn2_qkv.lora_down.weight", 1536, "sd3"),
    ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", 2432, "sd3"),
    ("transformer.transformer_blocks.18.attn.add_k_proj.lora_A.weight", 3072, "flux"),
    ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", 3072, "flux"),
    ("transformer.single_transformer_blocks.7.proj_out.lora_A.weight", 15360, "flux"),
    ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 3072, "flux"),
    ("diffusion_model.double_blocks.0.img_mod.lin.lora_A.weight", 3072, "flux"),
    ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", 6144, ""),  # Flux.2
    ("lora_unet_single_blocks_0_linear1.lora_down.weight", 6144, ""),
    ("transformer.transformer_blocks.59.attn.add_k_proj.lora_A.weight", 3072, ""),  # Qwen-Image
    ("transformer.transformer_blocks.0.attn2.to_k.lora_A.weight", 2048, ""),  # LTX-Video
]


@pytest.mark.parametrize(("name", "width", "family"), TRANSFORMER_LORAS)
def test_a_lora_for_a_transformer_is_told_by_its_width_and_blocks(name, width, family):
    tensors = {key: Tensor("F16", shape, 0, 0) for key, shape in lora(width, name).items()}
    assert (kind_of(tensors).kind, kind_of(tensors).family) == ("lora", family)


@pytest.mark.parametrize("mark", ["img_mlp.net.0.proj", "img_mod.1", "txt_mlp.net.2"])
def test_a_lora_for_qwen_image_is_not_one_for_flux_or_sd3(mark):
    shapes = lora(3072, "transformer_blocks.0.attn.add_k_proj.lora_A.weight")
    shapes |= lora(3072, f"transformer_blocks.0.{mark}.lora_A.weight")
    found = kind_of({key: Tensor("F16", shape, 0, 0) for key, shape in shapes.items()})
    assert (found.kind, found.family) == ("lora", "")


@pytest.mark.parametrize(
    ("mark", "family"),
    [
        ("down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm_in.weight", "Stable Video Diffusion"),
        ("down_blocks.0.attentions.0.time_pos_embed.linear_1.weight", "Stable Video Diffusion"),
        ("encoder_hid_proj.weight", "Kolors or DeepFloyd"),
        ("down_blocks.0.temp_convs.0.conv1.0.weight", "ModelScope"),
    ],
)
def test_u_nets_of_other_programs_are_not_taken_for_stable_diffusion(mark, family):
    tensors = {name: Tensor("F16", shape, 0, 0) for name, shape in (PART_UNET | {mark: (4, 4)}).items()}
    assert kind_of(tensors) is None and foreign_model(tensors) == family
