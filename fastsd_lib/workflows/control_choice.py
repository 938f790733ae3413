"""The usual ControlNets for Stable Diffusion 1.5 by short names: fetched once, into the library."""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows import file_links

SOURCE = "https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/blob/main/"
#: What somebody types -> the file, 720 MB each.
CONTROLNETS = {
    "canny": "control_v11p_sd15_canny_fp16.safetensors",
    "depth": "control_v11f1p_sd15_depth_fp16.safetensors",
    "openpose": "control_v11p_sd15_openpose_fp16.safetensors",
    "lineart": "control_v11p_sd15_lineart_fp16.safetensors",
    "softedge": "control_v11p_sd15_softedge_fp16.safetensors",
    "scribble": "control_v11p_sd15_scribble_fp16.safetensors",
    "normal": "control_v11p_sd15_normalbae_fp16.safetensors",
    "seg": "control_v11p_sd15_seg_fp16.safetensors",
    "mlsd": "control_v11p_sd15_mlsd_fp16.safetensors",
    "inpaint": "control_v11p_sd15_inpaint_fp16.safetensors",
    "tile": "control_v11f1e_sd15_tile_fp16.safetensors",
}


def chosen(text: str) -> tuple[str, ...]:
    """The names in a field, between commas; "none" and "" are none, "all" is all. UserError for an unknown one."""
    words = tuple(word.strip().lower() for word in text.split(",") if word.strip())
    if words in ((), ("none",)):
        return ()
    if words == ("all",):
        return tuple(CONTROLNETS)
    for word in words:
        if word not in CONTROLNETS:
            raise UserError(
                f"There is no ControlNet {word!r} to choose.",
                fix=f"take none, all, or some of {', '.join(CONTROLNETS)}; other files go into models/ControlNet.",
            )
    return words


def fetch(text: str, folder: Path) -> list[Path]:
    """Have the chosen ones in `folder`; those that are there are not fetched again."""
    return file_links.add_to_library((SOURCE + CONTROLNETS[name] for name in chosen(text)), folder)
