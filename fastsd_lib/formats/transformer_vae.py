"""Another VAE in the place of an SD3 or Flux model's own.

The VAEs of both families have the same shapes and differ in numbers and in the scale of their latents, so nothing in a
bare VAE file tells whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.shared_maps import vae_rows
from fastsd_lib.formats.stored_weight import Weights
from fastsd_lib.formats.transformer_configs import bundled_configs, family_of_tensors, model_name
from fastsd_lib.formats.transformer_parts import LABELS, compare_names
from fastsd_lib.formats.vae_file import read_vae

VAE = "vae/config.json"


def other_vae(
    path: Path, family: str, transformer: Mapping[str, Any], configs: Mapping[str, str]
) -> tuple[str, Weights]:
    """The config and the weights (diffusers' names) of the VAE at `path`: a file, a folder, or a whole model.

    `configs`: the model's own, whose VAE it replaces. UserError for one whose latents are not this model's.
    """
    found, weights = read_vae(path, open_weights)
    own = json.loads(configs.get(VAE) or bundled_configs(model_name(transformer))[VAE])
    fix = f"take a VAE that was made for {LABELS[family]}."
    for what, here, there in (
        ("latent channels", found.get("latent_channels", 4), own["latent_channels"]),
        ("pixels per latent", _factor(found), _factor(own)),
    ):
        if here != there:
            raise UserError(f"{path} is a VAE of {here} {what}, the model draws in {there}.", fix=fix)
    said = _said_scale(path, found)
    if said is not None and abs(said - own["scaling_factor"]) > 1e-3:
        raise UserError(
            f"{path} is another family's VAE: it scales latents by {said}, this model by {own['scaling_factor']}.",
            fix=fix,
        )
    config = own | {name: value for name, value in found.items() if not name.startswith("_")}
    config |= {name: own.get(name) for name in ("scaling_factor", "shift_factor")}
    wanted = [ours for row in vae_rows(config).rows.values() for ours in row]
    compare_names(path, "vae", family, weights, wanted)
    return json.dumps(config, indent=2) + "\n", weights


def vae_notes(path: Path, family: str) -> tuple[str, ...]:
    """A line for a VAE that does not say whose it is."""
    found, _ = read_vae(path, open_weights)
    if _said_scale(path, found) is not None:
        return ()
    return (f"{path.name} does not say whose VAE it is; it is taken for one of {LABELS[family]}.",)


def _said_scale(path: Path, found: Mapping[str, Any]) -> float | None:
    """By what its latents are scaled: as its config says it, or as the whole model around it has it."""
    scale = found.get("scaling_factor")
    if isinstance(scale, (int, float)):
        return float(scale)
    family = None if path.is_dir() else family_of_tensors(open_weights(path).tensors)
    stock = {"flux": "flux-dev", "sd3": "sd3-medium"}.get(family or "")
    return float(json.loads(bundled_configs(stock)[VAE])["scaling_factor"]) if stock else None


def _factor(config: Mapping[str, Any]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)
