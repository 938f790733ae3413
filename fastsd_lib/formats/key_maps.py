"""Which module of a Diffusers folder is which module of a single file: one small table per part.

A table maps module paths to module paths; what follows a path (".weight", ".transformer_blocks.0...") stays.
The single-file names are those of CompVis' latent-diffusion, which SD 1.x, 2.x and SDXL files use; the larger text
encoders have OpenCLIP's. All tables follow from the configs, so any depth has its layout: stock SD 1.5 as well as
a three-level toy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastsd_lib.core.errors import UserError

Table = dict[str, str]  # module in the folder -> module in the single file

# Folder of a pipeline -> where its tensors stand in a single file.
BODY_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
SD1_PREFIXES = {**BODY_PREFIXES, "text_encoder": "cond_stage_model.transformer."}
# The text encoders of each kind of single file, in the order in which they are looked for.
TEXT_PREFIXES: dict[str, dict[str, str]] = {
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl_refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
}

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_SIZE_IDS = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
# q, k and v stand in one tensor in the file ("attn.in_proj_weight"); `weights.py` takes them apart.
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.out_proj": "attn.out_proj",
}
VAE_ENDS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.conv_norm_out": "encoder.norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.conv_norm_out": "decoder.norm_out",
    "decoder.conv_out": "decoder.conv_out",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# diffusers before 0.15 wrote these; folders from then are still around.
VAE_ATTENTION_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Modules that a model may lack: everything else in a table must be there.
OPTIONAL = (
    "conv_shortcut",
    "skip_connection",
    "nin_shortcut",
    "mid_block.attentions",
    "mid.attn_1",
    "quant_conv",
)


def unet_table(config: Mapping[str, Any]) -> Table:
    """UNet2DConditionModel's modules; source: openaimodel.py of CompVis/latent-diffusion.

    `input_blocks` counts every residual block and downsampler in one row, `output_blocks` likewise.
    """
    levels = len(config["block_out_channels"])
    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise UserError(
            "This U-Net has a different number of layers per level, which single files cannot express.",
            fix="keep it as a Diffusers folder.",
        )
    table = dict(UNET_ENDS) | (UNET_SIZE_IDS if config.get("addition_embed_type") == "text_time" else {})
    row = 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            table |= _joined(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{row}.0", UNET_RESNET)
            if "CrossAttn" in kind:
                table[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{row}.1"
            row += 1
        if level < levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{row}.0.op"
            row += 1
    for side in (0, 1):
        table |= _joined(f"mid_block.resnets.{side}", f"middle_block.{2 * side}", UNET_RESNET)
    table["mid_block.attentions.0"] = "middle_block.1"
    row = 0
    for level, kind in enumerate(config["up_block_types"]):
        attends = "CrossAttn" in kind
        for layer in range(layers + 1):
            table |= _joined(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{row}.0", UNET_RESNET)
            if attends:
                table[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{row}.1"
            row += 1
        if level < levels - 1:
            table[f"up_blocks.{level}.upsamplers.0.conv"] = (
                f"output_blocks.{row - 1}.{2 if attends else 1}.conv"
            )
    return table


def vae_table(config: Mapping[str, Any]) -> Table:
    """AutoencoderKL's modules; source: model.py of CompVis/latent-diffusion, whose decoder counts upwards."""
    levels = len(config["block_out_channels"])
    layers = config.get("layers_per_block", 1)
    table = dict(VAE_ENDS)
    for level in range(levels):
        mirrored = levels - 1 - level
        for layer in range(layers):
            table |= _joined(
                f"encoder.down_blocks.{level}.resnets.{layer}",
                f"encoder.down.{level}.block.{layer}",
                VAE_RESNET,
            )
        for layer in range(layers + 1):
            table |= _joined(
                f"decoder.up_blocks.{level}.resnets.{layer}",
                f"decoder.up.{mirrored}.block.{layer}",
                VAE_RESNET,
            )
        if level < levels - 1:
            table[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = (
                f"encoder.down.{level}.downsample.conv"
            )
            table[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{mirrored}.upsample.conv"
    for side in ("encoder", "decoder"):
        for number in (0, 1):
            table |= _joined(
                f"{side}.mid_block.resnets.{number}", f"{side}.mid.block_{number + 1}", VAE_RESNET
            )
        table |= _joined(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", VAE_ATTENTION)
    return table


def text_encoder_table(projects: bool = False) -> Table:
    """CLIP keeps its names, under `text_model.`, a word that transformers 5.6 and later leave out on disk."""
    return {"text_model": "text_model"} | ({"text_projection": "text_projection"} if projects else {})


def open_clip_table(layers: int, projects: bool) -> Table:
    """CLIP's modules as OpenCLIP names them, in SD 2.x and, with the projection of the pooled text, in SDXL."""
    table = dict(OPEN_CLIP_ENDS) | ({"text_projection": "text_projection"} if projects else {})
    for layer in range(layers):
        table |= _joined(
            f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}", OPEN_CLIP_LAYER
        )
    return table


def single_file_kind(names: Iterable[str]) -> str:
    """The key of `TEXT_PREFIXES` whose text encoders are all there; UserError when there are none."""
    names = list(names)
    for kind, prefixes in TEXT_PREFIXES.items():
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes.values()):
            return kind
    raise UserError(
        f"No text encoder is among the {len(names)} tensors.", fix="take the full checkpoint of the model."
    )


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """The tensor's name on the other side, by its longest known module path; None when no path is known."""
    head = name
    while head := head.rpartition(".")[0]:
        if head in table:
            return table[head] + name[len(head) :]
    return None


def missing_modules(names: set[str], table: Mapping[str, str]) -> list[str]:
    """Modules of the table without any tensor among `names`, although every model of this shape has them."""
    seen = {name[:cut] for name in names for cut in range(len(name)) if name[cut] == "."}
    return [module for module in table if module not in seen and not any(word in module for word in OPTIONAL)]


def _joined(ours: str, theirs: str, inner: Table) -> Table:
    return {f"{ours}.{mine}": f"{theirs}.{foreign}" for mine, foreign in inner.items()}
