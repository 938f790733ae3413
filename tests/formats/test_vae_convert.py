"""VAEs between latent-diffusion's names and diffusers'. Witness: diffusers' from_single_file and from_pretrained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_sdxl, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
from fastsd_lib.formats.vae_convert import convert_vae

Tensors = dict[str, torch.Tensor]


def save(folder: Path, **more: object) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(4)
    shape = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "scaling_factor": 0.3,
    }
    AutoencoderKL(**(shape | more)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["with quantisation", "16 channels"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.06,
    }
    return save(tmp_path_factory.mktemp("vae") / "vae", **(more if request.param == "16 channels" else {}))


def weights(folder: Path) -> Tensors:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_there_and_back_keeps_every_bit_and_the_scale(folder: Path, tmp_path: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    file = convert_vae(folder, tmp_path / "vae.safetensors", "original")
    found = load_file(file)
    assert found["decoder.mid.attn_1.proj_out.weight"].shape == (64, 64, 1, 1)
    loaded = AutoencoderKL.from_single_file(str(file), config=str(folder), local_files_only=True)
    assert same(dict(loaded.state_dict()), weights(folder))
    back = convert_vae(file, tmp_path / "back", "diffusers")
    assert same(weights(back), weights(folder))
    config, said = AutoencoderKL.from_pretrained(back, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    given = json.loads((folder / "config.json").read_text())
    for name in ("scaling_factor", "shift_factor", "latent_channels", "use_quant_conv"):
        assert config.config[name] == given[name], name


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("pickled", [True, False])
def test_a_strangers_file_comes_back_as_it_was(tmp_path: Path, prefix: str, pickled: bool) -> None:
    folder = save(tmp_path / "vae")
    plain = load_file(convert_vae(folder, tmp_path / "vae.safetensors", "original"))
    stranger = {prefix + name: one for name, one in plain.items()}
    source = tmp_path / ("stranger.pt" if pickled else "stranger.safetensors")
    torch.save({"state_dict": stranger}, source) if pickled else save_file(stranger, source)
    made = convert_vae(source, tmp_path / "made", "diffusers")
    assert same(weights(made), weights(folder))
    assert "scaling_factor" not in json.loads((made / "config.json").read_text())
    assert same(load_file(convert_vae(made, tmp_path / "back.safetensors", "original")), stranger)


def test_the_vae_of_a_whole_model_knows_its_familys_scale(tmp_path: Path) -> None:
    model = save_sdxl(tmp_path / "sdxl")
    file = save_single_file(model, tmp_path / "sdxl.safetensors")
    made = convert_vae(file, tmp_path / "made", "diffusers")
    assert same(weights(made), weights(model.path / "vae"))
    assert json.loads((made / "config.json").read_text())["scaling_factor"] == 0.13025
    # From the pipeline's folder, too; and a .ckpt with the names that web UIs look for.
    out = convert_vae(model.path, tmp_path / "vae.ckpt", "original", dtype="fp16")
    found = torch.load(out, weights_only=True)["state_dict"]
    assert found["encoder.conv_in.weight"].dtype == torch.float16
    assert torch.equal(found["quant_conv.bias"], weights(model.path / "vae")["quant_conv.bias"].half())


def test_sixteen_channels_without_a_scale_become_no_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "vae", latent_channels=16)
    plain = load_file(convert_vae(folder, tmp_path / "vae.safetensors", "original"))
    save_file(plain, tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match="16 latent channels and does not say how they are scaled") as refused:
        convert_vae(tmp_path / "ae.safetensors", tmp_path / "out", "diffusers")
    assert "whole model" in refused.value.fix
    assert convert_vae(tmp_path / "ae.safetensors", tmp_path / "out.safetensors", "diffusers").is_file()


def test_what_is_no_whole_vae_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "vae")
    plain = load_file(convert_vae(folder, tmp_path / "vae.safetensors", "original"))
    for name, tensors, line in (
        ("tiny", {"encoder.layers.0.weight": torch.zeros(2)}, "tiny VAE"),
        ("half", {n: v for n, v in plain.items() if not n.startswith("encoder.")}, "no VAE known here"),
        (
            "hole",
            {n: v for n, v in plain.items() if "decoder.mid.block_1.conv1" not in n},
            r"lacks 1 modules",
        ),
        ("lora", {"lora_unet_conv_in.lora_down.weight": torch.zeros(2)}, "no VAE known here"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=line) as refused:
            convert_vae(tmp_path / f"{name}.safetensors", tmp_path / "out", "diffusers")
        assert refused.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("[1]", "is no config of such a model"),
        ('{"_class_name": "AutoencoderKL"}', "is no config of such a model"),
        ('{"block_out_channels": [32, 64], "layers_per_block": 1000000000}', "is no config of such a model"),
        ('{"block_out_channels": [32, 64], "layers_per_block": null}', "is no config of such a model"),
        ('{"block_out_channels": [32, 64], "scaling_factor": null}', "is no config of such a model"),
        ('{"block_out_channels": [32, 64], "scaling_factor": 1e999}', "is no config of such a model"),
        ('{"_class_name": ["AutoencoderTiny"]}', "not AutoencoderKL"),
    ],
)
def test_a_folder_whose_config_is_no_vaes_is_refused(tmp_path: Path, config: str, line: str) -> None:
    folder = save(tmp_path / "vae")
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=line) as refused:
        convert_vae(folder, tmp_path / "out.safetensors", "original")
    assert "config.json" in str(refused.value) and refused.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


def test_a_folder_of_a_tiny_vae_is_refused_alone_and_as_another_models_vae(
    tmp_path: Path, tiny_pipeline: ModelFiles
) -> None:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    ).save_pretrained(tmp_path / "taesd")
    with pytest.raises(UserError, match=r"config\.json says AutoencoderTiny, not AutoencoderKL") as refused:
        convert_vae(tmp_path / "taesd", tmp_path / "out.safetensors", "original")
    assert "tiny one (TAESD) has the same names everywhere" in refused.value.fix
    with pytest.raises(UserError, match="AutoencoderTiny"):
        convert_model(
            tiny_pipeline.path, tmp_path / "m.safetensors", ConversionChoices(vae=tmp_path / "taesd")
        )
    assert [path.name for path in tmp_path.iterdir()] == ["taesd"]
