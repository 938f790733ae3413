"""A VAE of the user's choice for a model that is loaded: from a file of its own, a whole model, or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.configs import read_config
from fastsd_lib.formats.key_maps import BODY_PREFIXES, rename, vae_table
from fastsd_lib.formats.shapes import vae_config
from fastsd_lib.formats.single_file import open_single_file
from fastsd_lib.formats.weights import Weight, Weights, check_complete, modern_name, part_files

CLASS = "AutoencoderKL"

if TYPE_CHECKING:
    import torch

    from fastsd_lib.formats.parts import Parts


def load_vae(path: Path, like: Parts) -> torch.nn.Module:
    """An AutoencoderKL for the model `like`, with the device and dtype of its own VAE.

    `path`: a .safetensors or .ckpt file with the names of latent-diffusion (alone, or within a whole model) or of
    diffusers, or a Diffusers folder of a VAE or of a pipeline. Its latents are scaled as the model was trained
    with. UserError for what is no VAE, and for one whose latents are not the model's.
    """
    from fastsd_lib.formats.parts import module_of  # torch loads here

    own = like.vae.config
    config, weights = read_vae(path)
    _refuse_others(config, own, path, like)
    for name in (
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
    ):  # as the U-Net knows latents
        config[name] = getattr(own, name, None)
    config.setdefault("norm_num_groups", own.norm_num_groups)
    place = next(like.vae.parameters())
    return module_of("vae", config, weights, place.device, place.dtype)


def read_vae(
    path: Path, open_file: Callable[[Path], TensorFile] = open_single_file
) -> tuple[dict[str, Any], Weights]:
    """A VAE's config, as far as its shapes say it, and where its weights lie, under diffusers' names.

    `path`: as in `load_vae`. `open_file`: how a single file is opened; `ckpt_file.open_weights` makes no copy of a
    .ckpt, whose weights can then be streamed but not mapped. UserError for what is no whole VAE.
    """
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{path} is no folder of a VAE: config.json is missing.",
                fix="name the folder that holds config.json and diffusion_pytorch_model.safetensors.",
            )
        config = _folder_config(folder)
        found = part_files(folder, "diffusion_pytorch_model")
        weights = {
            modern_name("vae", key): Weight(file, key, file.tensors[key].shape) for key, file in found.items()
        }
    else:
        config, weights = _from_file(open_file(path), path)
    check_complete(path, "vae", weights, vae_table(config))
    return config, weights


def _folder_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    said = config.get("_class_name", CLASS) if isinstance(config, dict) else CLASS
    if said != CLASS:
        raise UserError(
            f"{folder} is no VAE known here: its config.json says {escaped(str(said))[:100]}, not {CLASS}.",
            fix="take a VAE of the model's family; a tiny one (TAESD) has the same names everywhere.",
        )
    return read_config(folder / "config.json", "vae/config.json") | {"_class_name": CLASS}


def _from_file(file: TensorFile, origin: Path) -> tuple[dict[str, Any], Weights]:
    prefix = next(
        (one for one in (BODY_PREFIXES["vae"], "vae.") if any(name.startswith(one) for name in file.tensors)),
        "",
    )
    inner = {name[len(prefix) :]: name for name in file.tensors if name.startswith(prefix)}
    config = vae_config({name: file.tensors[key] for name, key in inner.items()}, origin)
    diffusers_names = any(name.startswith("encoder.down_blocks.") for name in inner)
    inverse = {theirs: ours for ours, theirs in vae_table(config).items()}
    weights: Weights = {}
    for name, key in inner.items():
        ours = modern_name("vae", name) if diffusers_names else rename(name, inverse)
        if ours is None or not ours.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            continue  # what the VAE was trained with: its judge, counters
        shape = file.tensors[key].shape
        flat = ".attentions." in ours and len(shape) == 4  # attention projections stored as 1x1 convolutions
        weights[ours] = Weight(file, key, shape[:2] if flat else shape)
    return config, weights


def _refuse_others(config: dict[str, Any], own: Any, path: Path, like: Parts) -> None:
    channels, ours = config.get("latent_channels", 4), own.latent_channels
    if channels != ours:
        raise UserError(
            f"{path} is a VAE of {channels} latent channels; {like.name} draws in {ours}.",
            fix=f"take a VAE made for {like.family} models.",
        )
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if factor != like.vae_factor:
        raise UserError(
            f"{path} is a VAE of {factor} pixels per latent; {like.name} draws with {like.vae_factor}.",
            fix=f"take a VAE made for {like.family} models.",
        )
