"""Make the layouts in this folder: every tensor's name and shape in the published single files of 15 models.

    python tests/models/layouts/make_layouts.py

diffusers and transformers build each part from its published config (`formats/bundled/`) on the meta device, so no
weight exists. Names of SD 1.x, 2.x and SDXL follow from this repository's key tables, those of OpenCLIP, SD 3 and Flux
from the tables below. Second witness: diffusers' own converters turn each layout back, and every tensor of the model
must come out with its shape; a layout that they do not turn back is not written.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as witness
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fastsd_lib.formats.key_maps import rename, unet_table, vae_table
from fastsd_lib.formats.known_configs import bundled

HERE = Path(__file__).parent
Shapes = dict[str, tuple[int, ...]]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
# CompVis' training keeps its noise schedule in the file; Stability's for SDXL does not.
SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip


def shapes(model: torch.nn.Module) -> Shapes:
    return {name: tuple(one.shape) for name, one in model.state_dict().items()}


def empty(of: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in of.items()}


def same(made: dict[str, torch.Tensor], wanted: Shapes, what: str) -> None:
    found = {name: tuple(one.shape) for name, one in made.items() if not name.endswith("position_ids")}
    if found != wanted:
        odd = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
        raise SystemExit(f"{what}: {len(odd)} tensors are not turned back, such as {sorted(odd)[:3]}")


def unet(config: dict[str, Any]) -> Shapes:
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    table, layout = unet_table(config), {}
    for name, shape in shapes(model).items():
        layout[UNET + rename(name, table)] = shape
    same(witness.convert_ldm_unet_checkpoint(empty(layout), dict(model.config)), shapes(model), "U-Net")
    return layout


def vae(config: dict[str, Any], prefix: str = VAE) -> Shapes:
    with torch.device("meta"):
        model = AutoencoderKL.from_config(config)
    table, layout = vae_table(config), {}
    for name, shape in shapes(model).items():
        square = ".attentions." in name and len(shape) == 2  # a 1x1 convolution in the single file
        layout[prefix + rename(name, table)] = (*shape, 1, 1) if square else shape
    back = witness.convert_ldm_vae_checkpoint(empty(layout), dict(model.config))
    same(back, shapes(model), "VAE")
    return layout


def clip(config: dict[str, Any], prefix: str, projects: bool = False) -> Shapes:
    """Names as transformers had them before 5.6, as all published files have."""
    with torch.device("meta"):
        kind = CLIPTextModelWithProjection if projects else CLIPTextModel
        model = kind(CLIPTextConfig(**{key: one for key, one in config.items() if key != "architectures"}))
    layout = {}
    for name, shape in shapes(model).items():
        if not name.endswith("position_ids"):
            bare = name.removeprefix("text_model.")
            layout[prefix + (bare if bare.startswith("text_projection") else f"text_model.{bare}")] = shape
    return layout


def open_clip(config: dict[str, Any], prefix: str, layers: int) -> Shapes:
    """OpenCLIP's own names: q, k and v in one; a projection and a scale behind the text."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    layout: Shapes = {
        "positional_embedding": (77, width), "token_embedding.weight": (config["vocab_size"], width),
        "text_projection": (width, width), "logit_scale": (), "ln_final.weight": (width,), "ln_final.bias": (width,),
    }  # fmt: skip
    for number in range(layers):
        block = f"transformer.resblocks.{number}."
        for name, rows, columns in (
            ("attn.in_proj_", 3 * width, width), ("attn.out_proj.", width, width),
            ("mlp.c_fc.", inner, width), ("mlp.c_proj.", width, inner),
        ):  # fmt: skip
            layout |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
        layout |= {
            f"{block}{norm}.{word}": (width,) for norm in ("ln_1", "ln_2") for word in ("weight", "bias")
        }
    layout = {prefix + name: shape for name, shape in layout.items()}
    _check_open_clip(config, prefix, layout)
    return layout


def _check_open_clip(config: dict[str, Any], prefix: str, layout: Shapes) -> None:
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(
            CLIPTextConfig(**{**config, "projection_dim": config["hidden_size"], "architectures": None})
        )
    ours = {}
    for name, shape in shapes(model).items():
        bare = name.removeprefix("text_model.")
        ours[bare if bare.startswith("text_projection") else f"text_model.{bare}"] = shape
    back = witness.convert_open_clip_checkpoint(model, empty(layout), prefix)
    if prefix.startswith("cond_stage"):  # diffusers leaves the projection of SD 2.x out
        ours.pop("text_projection.weight")
    last = f"text_model.encoder.layers.{config['num_hidden_layers']}."  # SD 2.x: a layer that nobody reads
    back = {name if name.startswith("text_") else f"text_model.{name}": one for name, one in back.items()}
    same({name: one for name, one in back.items() if not name.startswith(last)}, ours, "OpenCLIP")


def linear(layout: Shapes, name: str, rows: int, columns: int) -> None:
    layout |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def sd3(config: dict[str, Any]) -> Shapes:
    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(config)
    layers, width, normed = config["num_layers"], config["caption_projection_dim"], config.get("qk_norm")
    latents, patch, side = config["in_channels"], config["patch_size"], config["pos_embed_max_size"]
    layout: Shapes = {"pos_embed": (1, side**2, width), "x_embedder.proj.weight": (width, latents, patch, patch),
                      "x_embedder.proj.bias": (width,)}  # fmt: skip
    for name, columns in (("t_embedder.mlp.0", 256), ("t_embedder.mlp.2", width), ("y_embedder.mlp.0", 2048),
                          ("y_embedder.mlp.2", width), ("context_embedder", 4096)):  # fmt: skip
        linear(layout, name, width, columns)
    for number in range(layers):
        two = number in (config.get("dual_attention_layers") or ())
        last = number == layers - 1
        for side_name in ("x_block", "context_block"):
            block, picture = f"joint_blocks.{number}.{side_name}", side_name == "x_block"
            linear(
                layout,
                f"{block}.adaLN_modulation.1",
                width * (9 if picture and two else 2 if last and not picture else 6),
                width,
            )
            for attention in ("attn", "attn2") if picture and two else ("attn",):
                linear(layout, f"{block}.{attention}.qkv", 3 * width, width)
                if normed:
                    layout |= {f"{block}.{attention}.ln_{one}.weight": (64,) for one in "qk"}
                if picture or not last:
                    linear(layout, f"{block}.{attention}.proj", width, width)
            if picture or not last:
                linear(layout, f"{block}.mlp.fc1", 4 * width, width)
                linear(layout, f"{block}.mlp.fc2", width, 4 * width)
    linear(layout, "final_layer.linear", patch * patch * latents, width)
    linear(layout, "final_layer.adaLN_modulation.1", 2 * width, width)
    same(witness.convert_sd3_transformer_checkpoint_to_diffusers(empty(layout)), shapes(model), "SD 3")
    return layout


def flux(config: dict[str, Any]) -> Shapes:
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layout: Shapes = {}
    linear(layout, "img_in", width, config["in_channels"])
    linear(layout, "txt_in", width, config["joint_attention_dim"])
    vectors = [("time_in", 256), ("vector_in", config["pooled_projection_dim"])]
    for name, columns in [*vectors, *([("guidance_in", 256)] if config["guidance_embeds"] else [])]:
        linear(layout, f"{name}.in_layer", width, columns)
        linear(layout, f"{name}.out_layer", width, width)
    for number in range(config["num_layers"]):
        for side in ("img", "txt"):
            block = f"double_blocks.{number}.{side}"
            linear(layout, f"{block}_mod.lin", 6 * width, width)
            linear(layout, f"{block}_attn.qkv", 3 * width, width)
            linear(layout, f"{block}_attn.proj", width, width)
            layout |= {f"{block}_attn.norm.{one}_norm.scale": (128,) for one in ("query", "key")}
            linear(layout, f"{block}_mlp.0", 4 * width, width)
            linear(layout, f"{block}_mlp.2", width, 4 * width)
    for number in range(config["num_single_layers"]):
        block = f"single_blocks.{number}"
        linear(layout, f"{block}.modulation.lin", 3 * width, width)
        linear(layout, f"{block}.linear1", 7 * width, width)
        linear(layout, f"{block}.linear2", width, 5 * width)
        layout |= {f"{block}.norm.{one}_norm.scale": (128,) for one in ("query", "key")}
    linear(layout, "final_layer.linear", 64, width)
    linear(layout, "final_layer.adaLN_modulation.1", 2 * width, width)
    same(witness.convert_flux_transformer_checkpoint_to_diffusers(empty(layout)), shapes(model), "Flux")
    return layout


def stable_diffusion(name: str, schedule: bool) -> Shapes:
    configs = bundled(name)
    layout: Shapes = dict.fromkeys(SCHEDULE, (1000,)) if schedule else {}
    layout |= unet(configs["unet/config.json"]) | vae(configs["vae/config.json"])
    encoders = {
        part: configs[f"{part}/config.json"]
        for part in ("text_encoder", "text_encoder_2")
        if f"{part}/config.json" in configs
    }
    second = encoders.get("text_encoder_2")
    if second and "text_encoder" in encoders:
        layout |= clip(encoders["text_encoder"], "conditioner.embedders.0.transformer.")
        return layout | open_clip(second, "conditioner.embedders.1.model.", second["num_hidden_layers"])
    if second:
        return layout | open_clip(second, "conditioner.embedders.0.model.", second["num_hidden_layers"])
    first = encoders["text_encoder"]
    if first["hidden_size"] == 1024:  # the file has the layer as well that SD 2.x does not read
        return layout | open_clip(first, "cond_stage_model.model.", first["num_hidden_layers"] + 1)
    layout |= clip(first, "cond_stage_model.transformer.")
    return layout | {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)}


def stable_diffusion_3(name: str, clips: bool) -> Shapes:
    configs = bundled(name)
    layout = {UNET + key: shape for key, shape in sd3(configs["transformer/config.json"]).items()}
    layout |= vae(configs["vae/config.json"])
    if clips:
        for part, word in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
            layout |= clip(
                configs[f"{part}/config.json"], f"text_encoders.{word}.transformer.", projects=True
            )
    return layout


def packed(layout: Shapes) -> dict[str, dict[str, str]]:
    """Names that differ in numbers alone stand together: pattern -> shape -> the numbers of each name."""
    patterns: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, shape in layout.items():
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "#", name)
        patterns[pattern][" ".join(map(str, shape))].append(".".join(numbers))
    return {
        pattern: {shape: " ".join(rows) for shape, rows in by_shape.items()}
        for pattern, by_shape in patterns.items()
    }


def main() -> None:
    layouts = {
        "sd15": lambda: stable_diffusion("sd15", True),
        "sd15-inpainting": lambda: stable_diffusion("sd15-inpainting", True),
        "instruct-pix2pix": lambda: stable_diffusion("pix2pix", True),
        "sd2-base": lambda: stable_diffusion("sd2-base", True),
        "sd2-768-v": lambda: stable_diffusion("sd2-768-v", True),
        "sd2-inpainting": lambda: stable_diffusion("sd2-inpainting", True),
        "sd2-depth": lambda: stable_diffusion("sd2-depth", True),
        "sdxl-base": lambda: stable_diffusion("sdxl-base", False),
        "sdxl-inpainting": lambda: stable_diffusion("sdxl-inpainting", False),
        "sdxl-refiner": lambda: stable_diffusion("sdxl-refiner", False),
        "sd3-medium-with-clips": lambda: stable_diffusion_3("sd3-medium", True),
        "sd35-medium": lambda: stable_diffusion_3("sd35-medium", False),
        "sd35-large": lambda: stable_diffusion_3("sd35-large", False),
        "flux-dev": lambda: flux(bundled("flux-dev")["transformer/config.json"]),
        "flux-schnell": lambda: flux(bundled("flux-schnell")["transformer/config.json"]),
    }
    for name, make in layouts.items():
        layout = make()
        made = (
            "by make_layouts.py from published configs on the meta device; diffusers' converters turn it back"
        )
        text = json.dumps({"made": made, "tensors": len(layout), "names": packed(layout)}, indent=0)
        (HERE / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {len(layout)} tensors, {len(text):,} bytes")


if __name__ == "__main__":
    main()
