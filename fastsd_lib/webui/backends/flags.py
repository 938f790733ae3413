"""Arguments, variables and settings of a back end, worked out from its config; nothing here is started or written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.webui.backends.config import Backend, BackendConfig

#: kind of model: its folder's names in A1111's, Forge's and ComfyUI's layouts, A1111's first
FOLDERS = {
    "checkpoints": ("Stable-diffusion", "checkpoints"),
    "vae": ("VAE", "vae"),
    "loras": ("Lora", "loras"),
    "embeddings": ("embeddings",),
    "controlnet": ("ControlNet", "controlnet"),
    "upscale_models": ("ESRGAN", "RealESRGAN", "upscale_models"),
    "text_encoders": ("text_encoder", "text_encoders", "clip"),
    "diffusion_models": ("diffusion_models", "unet"),
    "hypernetworks": ("hypernetworks",),
}
_A1111_FLAGS = {
    "checkpoints": "--ckpt-dir",
    "vae": "--vae-dir",
    "loras": "--lora-dir",
    "embeddings": "--embeddings-dir",
    "hypernetworks": "--hypernetwork-dir",
    "upscale_models": "--esrgan-models-path",
}
#: They would open a second door beside ours, or let a model file run code.
REFUSED = {
    "--listen": "it would open the program to everybody, past the password",
    "--share": "our own tunnels lead through the password",
    "--ngrok": "our own tunnels lead through the password",
    "--server-name": "it would open the program to everybody, past the password",
    "--disable-safe-unpickle": "a model file could run code; turn it into .safetensors instead",
    "--gradio-auth": "arguments can be read by every user of this machine: give credentials",
    "--api-auth": "arguments can be read by every user of this machine: give credentials",
    "--enable-insecure-extension-access": "say insecure_extensions=True",
    "--enable-cors-header": "pages of other servers could use it",
    "--cors-allow-origins": "pages of other servers could use it",
    "--allow-code": "its visitors could run code",
    "--port": "the port is chosen here",
}
_WEIGHTS = (".safetensors", ".ckpt", ".gguf")
QUICK_SETTINGS = ["sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers"]


@dataclass(frozen=True)
class Places:
    """Where one back end's things are. The first five are on the local disk."""

    code: Path
    venv: Path
    data: Path  # extensions, caches
    log: Path
    private: Path  # files with secrets
    settings: Path
    outputs: Path

    @staticmethod
    def of(backend: Backend, config: BackendConfig) -> Places:
        own = expanded(config.folder).absolute() / backend.name
        settings = expanded(config.settings_dir).absolute() / backend.name if config.settings_dir else None
        return Places(
            code=own / "code",
            venv=own / "venv",
            data=own / "data",
            log=own / "log.txt",
            private=own / "private",
            settings=settings or own / "settings",
            outputs=expanded(config.outputs_dir or own / "outputs").absolute(),
        )


@dataclass(frozen=True)
class Start:
    """Everything a start needs. `files` are written before it: content by path."""

    arguments: list[str]
    variables: dict[str, str] = field(repr=False)
    files: dict[Path, str] = field(repr=False)


def plan_start(
    backend: Backend, config: BackendConfig, places: Places, port: int, cpu: bool, found: Mapping[str, Path]
) -> Start:
    """Pure: `found` are the folders of models by kind, `cpu` whether there is no GPU. UserError for arguments that
    would open the program past our door.
    """
    _check_arguments(config)
    if backend.name == "comfyui":
        return _plan_comfyui(config, places, port, cpu, found)
    return _plan_a1111(backend, config, places, port, cpu, found)


def _plan_a1111(
    backend: Backend, config: BackendConfig, places: Places, port: int, cpu: bool, found: Mapping[str, Path]
) -> Start:
    forge = backend.name == "forge"
    arguments = ["--api", "--port", str(port), "--skip-version-check", "--disable-console-progressbars"]
    arguments += ["--no-download-sd-model", "--no-half-vae"]
    arguments += ["--data-dir", str(places.data)]
    for flag, name in (
        ("--ui-settings-file", "config.json"),
        ("--ui-config-file", "ui-config.json"),
        ("--styles-file", "styles.csv"),
    ):
        arguments += [flag, str(places.settings / name)]
    for kind, flag in _A1111_FLAGS.items():
        if kind in found:
            arguments += [flag, str(found[kind])]
    if forge and "text_encoders" in found:
        arguments += ["--text-encoder-dir", str(found["text_encoders"])]
    if "controlnet" in found and (forge or config.controlnet):
        arguments += ["--controlnet-dir", str(found["controlnet"])]
    if config.model:
        arguments += ["--ckpt", str(expanded(config.model).absolute())]
    if cpu:
        arguments += ["--skip-torch-cuda-test"]
        arguments += ["--always-cpu"] if forge else ["--use-cpu", "all", "--no-half"]
    if config.insecure_extensions:
        arguments.append("--enable-insecure-extension-access")
    variables = {
        "SD_WEBUI_RESTARTING": "1",  # opens no browser
        "GRADIO_ANALYTICS_ENABLED": "False",
        "STABLE_DIFFUSION_REPO": config.stable_diffusion_repository,
    }
    # CLIP's installer of 2021 needs what setuptools 81 dropped; pip before 25.3 reads the first, later ones the second
    constraints = places.private / "constraints.txt"
    variables |= {"PIP_CONSTRAINT": str(constraints), "PIP_BUILD_CONSTRAINT": str(constraints)}
    files: dict[Path, str] = {constraints: "setuptools<81\n"}
    if config.credentials:
        user, password = config.credentials
        if "," in password or ":" in user or "\n" in password:
            raise UserError(
                f"{backend.title} cannot take this user or password.", fix='leave out "," and line ends.'
            )
        secret_file = places.private / "users.txt"
        files[secret_file] = f"{user}:{password}\n"
        arguments += ["--gradio-auth-path", str(secret_file)]
        # it has no file form, and the program reads this variable as further arguments
        variables["COMMANDLINE_ARGS"] = shlex.join(["--api-auth", f"{user}:{password}"])
    return Start([*arguments, *config.arguments], variables | dict(config.environment), files)


def _plan_comfyui(
    config: BackendConfig, places: Places, port: int, cpu: bool, found: Mapping[str, Path]
) -> Start:
    if config.credentials:
        raise UserError("ComfyUI has no log-in of its own.", fix="leave its credentials out; our door asks.")
    paths = {kind: str(folder) for kind, folder in found.items()}
    if config.model:
        one = str(expanded(config.model).absolute().parent)
        paths["checkpoints"] = "\n".join(dict.fromkeys([*paths.get("checkpoints", one).split("\n"), one]))
    extra = places.private / "extra_model_paths.yaml"
    arguments = ["--port", str(port), "--disable-auto-launch"]
    arguments += ["--extra-model-paths-config", str(extra)]
    arguments += ["--output-directory", str(places.outputs), "--user-directory", str(places.settings)]
    if cpu:
        arguments.append("--cpu")
    files = {
        extra: json.dumps({"fastsd": paths}, indent=1) + "\n"
    }  # JSON is YAML, and needs no quoting rules
    return Start([*arguments, *config.arguments], dict(config.environment), files)


def _check_arguments(config: BackendConfig) -> None:
    for argument in config.arguments:
        name = argument.partition("=")[0]
        for refused, reason in REFUSED.items():
            # argparse takes any beginning that is not ambiguous
            beginning = len(name) > 2 and refused.startswith(name) and name != "--api"
            if name == refused or beginning:
                raise UserError(f"{refused} is not passed on: {reason}.", fix=f"leave {argument} out.")


def model_folders(models_dir: Path | None) -> dict[str, Path]:
    """The folder of each kind of model below `models_dir` that exists; nothing is copied. A folder of model files
    alone is one of checkpoints. UserError when it is not there.
    """
    if models_dir is None:
        return {}
    top = expanded(models_dir).absolute()
    try:
        names = {entry.name.lower(): entry for entry in top.iterdir()}
    except OSError as error:
        raise UserError(
            f"The folder of models {top} cannot be read: {error.strerror}.",
            fix="mount Drive, or name another one.",
        ) from None
    places = [names] if "models" not in names or not names["models"].is_dir() else []
    if not places:  # A1111's whole folder: models/ and embeddings/ side by side
        places = [{entry.name.lower(): entry for entry in names["models"].iterdir()}, names]
    found: dict[str, Path] = {}
    for kind, known in FOLDERS.items():
        there = (level[name.lower()] for level in places for name in known if name.lower() in level)
        folder = next((one for one in there if one.is_dir()), None)
        if folder is not None:
            found[kind] = folder
    loose = any(entry.suffix.lower() in _WEIGHTS for level in places for entry in level.values())
    if "checkpoints" not in found and loose:
        found["checkpoints"] = top
    return found


def initial_settings(places: Places) -> dict[str, Any]:
    """What A1111's and Forge's settings begin with; whatever the user changes later stays."""
    return {
        "quicksettings_list": QUICK_SETTINGS,
        "outdir_samples": str(places.outputs),
        "outdir_grids": str(places.outputs / "grids"),
        "outdir_save": str(places.outputs / "saved"),
        "auto_launch_browser": "Disable",
    }
