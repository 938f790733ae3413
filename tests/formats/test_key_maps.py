"""Key maps follow from configs alone; here against keys as they stand in published files."""

from __future__ import annotations

from fastsd_lib.formats.key_maps import missing_modules, rename, text_encoder_table, unet_table, vae_table

SD15_UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}


def test_sd15_unet_names_are_those_of_the_original_checkpoint():
    table = unet_table(SD15_UNET)
    pairs = {
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "down_blocks.0.resnets.1.time_emb_proj.weight": "input_blocks.2.0.emb_layers.1.weight",
        "down_blocks.1.downsamplers.0.conv.weight": "input_blocks.6.0.op.weight",
        "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight": (
            "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "down_blocks.3.resnets.1.conv1.weight": "input_blocks.11.0.in_layers.2.weight",
        "mid_block.resnets.1.conv2.bias": "middle_block.2.out_layers.3.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.proj_out.weight": "output_blocks.11.1.proj_out.weight",
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
    }
    assert {name: rename(name, table) for name in pairs} == pairs


def test_sd15_vae_names_are_those_of_the_original_checkpoint():
    table = vae_table(SD15_VAE)
    pairs = {
        "encoder.down_blocks.2.downsamplers.0.conv.bias": "encoder.down.2.downsample.conv.bias",
        "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
        "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight": "decoder.up.1.block.0.nin_shortcut.weight",
        "decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
        "decoder.conv_norm_out.weight": "decoder.norm_out.weight",
    }
    assert {name: rename(name, table) for name in pairs} == pairs


def test_no_two_modules_share_a_name_in_the_file():
    for table in (unet_table(SD15_UNET), vae_table(SD15_VAE), text_encoder_table()):
        assert len(set(table.values())) == len(table)


def test_unknown_names_stay_unknown():
    assert rename("adapter.0.weight", unet_table(SD15_UNET)) is None


def test_missing_modules_are_named_and_optional_ones_are_not():
    table = vae_table(SD15_VAE)
    names = {f"{module}.weight" for module in table if "nin" not in table[module]}
    assert missing_modules(names, table) == []
    assert missing_modules(names - {"decoder.conv_out.weight"}, table) == ["decoder.conv_out"]
