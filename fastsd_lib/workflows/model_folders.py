"""Model files as training and export need them: a Diffusers folder, wherever the model came from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.files import fingerprint
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.models import registry
from fastsd_lib.models.fits import check_base

if TYPE_CHECKING:
    from fastsd_lib.formats.parts import Parts
    from fastsd_lib.sessions.checkpoints import Checkpoint


def as_folder(base: ModelFiles, cache: Path) -> ModelFiles:
    """The base model as a Diffusers folder; a single file is unpacked once, into the folder `cache`.

    UserError for families that are drawn with, but not trained.
    """
    check_base(base, "train", name=str(base.path)).enforced()
    if base.layout == "diffusers":
        return base
    from fastsd_lib.formats.single_file import import_single_file

    stat = base.path.stat()
    folder = cache / f"base-{fingerprint([str(base.path), stat.st_size, stat.st_mtime_ns])}"
    if (folder / "model_index.json").is_file():
        return ModelFiles(base.family, "diffusers", folder)
    return import_single_file(base.path, folder, config_from=configs_for(base.path))


def configs_for(file: Path) -> Path | None:
    """Where a single file's configs come from: itself (None), else a known model of the same shape."""
    from fastsd_lib.formats.single_file import carries_configs

    return None if carries_configs(file) else registry.configs_for(file)


def with_trained_parts(base: ModelFiles, checkpoint: Checkpoint, folder: Path) -> ModelFiles:
    """The base model's folder with the checkpoint's weights in it; what did not change is linked, not copied."""
    from fastsd_lib.formats.lora_file import write_merged
    from fastsd_lib.training.checkpoint import LORA_FILE, PARTS

    trained = [checkpoint.path / f"{part}.safetensors" for part in PARTS]
    if (checkpoint.path / LORA_FILE).is_file():
        merged = folder.with_name(f"{folder.name}.merged")
        merged.mkdir(parents=True)
        trained = write_merged(base, checkpoint.path / LORA_FILE, merged)
    trained = [file for file in trained if file.is_file()]

    def unwanted(directory: str, names: list[str]) -> set[str]:
        replaced = Path(directory).name in {file.stem for file in trained}
        return {
            name
            for name in names
            if name.endswith((".md", ".bin"))
            or name == "judge.safetensors"
            or (replaced and "safetensors" in name)
        }

    shutil.copytree(
        base.path,
        folder,
        ignore=unwanted,
        copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve()),
    )
    for file in trained:
        weights = (
            "model.safetensors" if file.stem == "text_encoder" else "diffusion_pytorch_model.safetensors"
        )
        (folder / file.stem / weights).symlink_to(file.resolve())
    return ModelFiles(base.family, "diffusers", folder)


def name_of(base: ModelFiles) -> str:
    return registry.EMBEDDED if base.path == registry.EMBEDDED_FOLDER else str(base.path)


def weights_fingerprint(model: ModelFiles) -> str:
    """Of names, sizes and the first and last mebibyte of every weight file: quick, and different for different weights."""
    rows = []
    for path in sorted(model.path.rglob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as handle:
            head = handle.read(1 << 20)
            handle.seek(max(0, size - (1 << 20)))
            rows.append(
                [str(path.relative_to(model.path)), size, hashlib.sha256(head + handle.read()).hexdigest()]
            )
    return fingerprint(rows)


def load(folder: ModelFiles, device: str) -> Parts:
    import torch

    from fastsd_lib.formats.parts import load_parts

    return load_parts(folder, torch.device(device), torch.float32)
