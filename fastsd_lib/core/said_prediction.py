"""What a model file says that its U-Net predicts: in marks, in metadata, in the .yaml of the same name."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path

SPELLINGS = {
    "v": "v_prediction", "v_prediction": "v_prediction", "velocity": "v_prediction",
    "epsilon": "epsilon", "eps": "epsilon",
}  # fmt: skip
EDM_MARKS = ("edm_mean", "edm_vpred.sigma_max")  # of Playground 2.5 and of CosXL
# Names that ModelSpec gives to the two sorts of SD 2.x.
_ARCHITECTURES = {"stable-diffusion-v2-768-v": "v_prediction", "stable-diffusion-v2-512": "epsilon"}
_PARAMETERIZATION = re.compile(r"^\s*parameterization:\s*[\"']?(v|eps)\b", re.MULTILINE)
MAX_YAML_BYTES = 1 << 20
# SD 2.x that says nothing: the spread of these numbers is above 0.09 in models that predict velocity (a finding of
# ComfyUI's).
TELLING_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
VELOCITY_SPREAD = 0.09


def said_prediction(names: Container[str], metadata: Mapping[str, str], path: Path) -> str:
    """ "epsilon", "v_prediction" or "edm"; "" when nobody says it.

    `names`: of the tensors. `path`: the file as the user names it, beside which a .yaml may stand. Marks go before
    metadata, as other programs read them; the name of an architecture goes last.
    """
    if "v_pred" in names:
        return "v_prediction"
    if any(mark in names for mark in EDM_MARKS):
        return "edm"
    architecture = metadata.get("modelspec.architecture", "").partition("/")[0]
    return said_in_metadata(metadata) or said_beside(path) or _ARCHITECTURES.get(architecture, "")


def said_in_metadata(metadata: Mapping[str, str]) -> str:
    """ "epsilon", "v_prediction" or ""."""
    return SPELLINGS.get(metadata.get("modelspec.prediction_type", "").lower(), "")


def said_beside(path: Path) -> str:
    """What the .yaml of the same name says, which A1111 and Forge read before anything else."""
    beside = path.with_suffix(".yaml")
    try:
        if not beside.is_file() or beside.stat().st_size > MAX_YAML_BYTES:
            return ""
        found = _PARAMETERIZATION.search(beside.read_text("utf-8", errors="replace"))
    except OSError:
        return ""
    return SPELLINGS[found[1]] if found else ""
