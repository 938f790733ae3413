"""The three web UIs that can stand behind our door, and the choices for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastsd_lib.core.errors import UserError


@dataclass(frozen=True)
class Backend:
    """What is known of one web UI."""

    name: str
    title: str
    repository: str
    ref: str  # a tag or a whole commit id: what we know to work together with the flags here
    script: str
    ready_path: str  # 200 only once it can draw; the port opens earlier
    pythons: tuple[tuple[int, int], ...]  # best first
    installs_itself: bool  # launch.py fetches its packages into the Python that runs it


_OF_2022 = ((3, 10), (3, 11))
BACKENDS: dict[str, Backend] = {
    one.name: one
    for one in (
        Backend(
            "a1111",
            "AUTOMATIC1111",
            "https://github.com/AUTOMATIC1111/stable-diffusion-webui.git",
            "v1.10.1",
            "launch.py",
            "/sdapi/v1/progress",
            _OF_2022,
            installs_itself=True,
        ),
        Backend(
            "forge",
            "Forge",
            "https://github.com/lllyasviel/stable-diffusion-webui-forge.git",
            "dfdcbab685e57677014f05a3309b48cc87383167",  # 2025-06-26; it has no release tags
            "launch.py",
            "/sdapi/v1/progress",
            _OF_2022,
            installs_itself=True,
        ),
        Backend(
            "comfyui",
            "ComfyUI",
            "https://github.com/comfyanonymous/ComfyUI.git",
            "071ff3e208ab8a6d4ac1a9d1bdcf5b73b69ed92c",  # 0.8.1
            "main.py",
            "/system_stats",
            ((3, 12), (3, 11), (3, 10), (3, 13)),
            installs_itself=False,
        ),
    )
}
CONTROLNET = "https://github.com/Mikubill/sd-webui-controlnet.git"
CONTROLNET_REF = "56cec5b2958edf3b1807b7e7b2b1b5186dbd2f81"  # 2024-07-26, the last one
#: Stability AI took its repository down in 2025, and A1111 up to 1.10.1 cannot be installed without it.
STABLE_DIFFUSION_MIRROR = "https://github.com/w-e-w/stablediffusion.git"


@dataclass(frozen=True)
class BackendConfig:
    """Every choice for one back end. Paths are of this machine; `folder` belongs on the local disk, not on Drive."""

    folder: Path  # code, Python environment, log: made again when lost
    settings_dir: Path | None = (
        None  # its settings, kept between starts: may be on Drive; None: folder/settings
    )
    models_dir: Path | None = None  # A1111's or ComfyUI's folders of models, used where they are
    model: Path | None = None  # one model file to begin with
    outputs_dir: Path | None = None  # None: folder/outputs
    ref: str = ""  # tag, branch or commit; empty: the pinned one
    update: bool = False  # ask the repository again although the ref is there
    repository: str = ""  # a fork or a mirror
    stable_diffusion_repository: str = STABLE_DIFFUSION_MIRROR
    controlnet: bool = False  # A1111's extension; Forge and ComfyUI have theirs built in
    controlnet_repository: str = CONTROLNET
    controlnet_ref: str = CONTROLNET_REF
    python: Path | None = None  # the interpreter its environment is made from; None: looked for
    cpu: bool | None = None  # None: when there is no NVIDIA GPU
    credentials: tuple[str, str] | None = field(
        default=None, repr=False
    )  # its own log-in, behind ours; not ComfyUI
    insecure_extensions: bool = False  # lets a page's visitor install code
    arguments: tuple[str, ...] = ()  # further ones, as they are
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    git_s: float = 900.0
    install_s: float = 3600.0
    ready_s: float = 2700.0  # a first start installs gigabytes


def find_backend(name: str) -> Backend:
    """UserError that names the known ones."""
    try:
        return BACKENDS[name]
    except KeyError:
        raise UserError(
            f"There is no back end {name!r}.", fix=f"take one of: {', '.join(BACKENDS)}."
        ) from None
