"""What each command needs: profiles, their requirements and the packages that these pull in.

The source is `pyproject.toml`; `locks/profiles.json` is generated from it by `install --update-locks`, because a bare
Python 3.10 has no TOML reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import markers

LOCKS = Path(__file__).parent / "locks"
PROFILES = ("core", "train", "webui", "vit", "dev", "all")

#: The modules whose presence shows that a profile is installed, one per requirement that commands import first.
SIGN_OF = {
    "core": ("numpy", "PIL", "yaml", "safetensors", "skimage", "huggingface_hub"),
    "train": ("torch", "diffusers", "transformers", "accelerate"),
    "webui": ("torch", "diffusers", "transformers", "gradio", "fastapi"),
    "vit": ("torch", "transformers", "fastapi", "openvino"),
    "dev": ("pytest", "hypothesis"),
    "all": ("torch", "diffusers", "transformers", "gradio", "pytest", "hypothesis"),
}


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    return json.loads((LOCKS / "profiles.json").read_text(encoding="utf-8"))


def check_profile(name: str) -> str:
    if name not in PROFILES:
        raise UserError(
            f"No profile {name!r} (there: {', '.join(PROFILES)}).", fix="python3 -m fastsd_lib install train"
        )
    return name


def requirements(profile: str, variables: Mapping[str, str] | None = None) -> list[str]:
    """The direct requirements with their floors, "torch>=2.11", where `variables` hold (this machine's if none)."""
    asked = (one.partition(";") for one in _table()[check_profile(profile)]["requires"])
    here = dict(variables or markers.environment())
    return [requirement.strip() for requirement, _, marker in asked if markers.holds(marker, here)]


def packages(profile: str) -> frozenset[str]:
    """Normalised names of everything that the profile pulls in, without torch's own CUDA packages."""
    return frozenset(_table()[check_profile(profile)]["packages"])


def split(requirement: str) -> tuple[str, str]:
    """("huggingface-hub", ">=1.27") of "huggingface_hub>=1.27"; extras do not occur in ours."""
    name, floor = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*((?:[<>=!~].*)?)", requirement).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), floor


def floor(name: str, profile: str) -> str:
    """What pyproject.toml asks of a direct requirement, ">=2.11"; "" if it does not name it."""
    return dict(map(split, requirements(profile))).get(name, "")
