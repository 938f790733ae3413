"""A resumable state on disk: weights, optimizer and position, sealed by a manifest that is written last."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, fsync_path, read_json, sha256_file, write_json
from fastsd_lib.training.saving import save_tensors

SCHEMA = 1
MANIFEST = "manifest.json"
PARTS = ("unet", "text_encoder")  # what training can change
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One directory under checkpoints/; `step` counts both stages, the text encoder's first."""

    path: Path
    step: int
    total_steps: int
    stage: str  # "text encoder" or "U-Net"
    run: str  # fingerprint of base model, training set and config: a run resumes only its own

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    total_steps: int,
    stage: str,
    run: str,
    modules: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer | None,
    extra: dict[str, Any],
) -> Checkpoint:
    """Write a new directory beside its final name, verify it, seal it, then rename: whole or not at all."""
    final = _free_name(folder, f"step_{step:06d}", run)
    scratch = folder / f".{final.name}.{os.getpid()}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, module in modules.items():
            save_tensors(module.state_dict(), scratch / f"{name}.safetensors")
        if optimizer is not None:
            save_tensors(_optimizer_tensors(optimizer), scratch / OPTIMIZER_FILE)
        files = {}
        for path in sorted(scratch.iterdir()):
            fsync_path(path)
            files[path.name] = [path.stat().st_size, sha256_file(path)]
        manifest = {
            "schema": SCHEMA,
            "step": step,
            "total_steps": total_steps,
            "stage": stage,
            "run": run,
            "files": files,
            **extra,
        }
        write_json(scratch / MANIFEST, {**manifest, "seal": fingerprint(manifest)})
        os.replace(scratch, final)
        fsync_path(folder)
    except OSError as error:
        raise UserError(
            f"The checkpoint of step {step} could not be written to {folder}: {error.strerror or error}.",
            fix="free some space there and run again with --resume; older checkpoints are untouched.",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Checkpoint(final, step, total_steps, stage, run)


def _free_name(folder: Path, name: str, run: str) -> Path:
    """Another run, or a damaged checkpoint, may have the name: a directory is never written into twice."""
    names = itertools.chain(
        [name, f"{name}-{run[:8]}"], (f"{name}-{run[:8]}-{n}" for n in itertools.count(2))
    )
    return next(folder / one for one in names if not (folder / one).exists())


def list_checkpoints(folder: Path, run: str | None = None) -> list[Checkpoint]:
    """Sealed checkpoints, oldest first, of one run or of all; what has no manifest does not count."""
    found = []
    for path in folder.glob("step_*") if folder.is_dir() else ():
        manifest = _sealed_manifest(path)
        if manifest and (run is None or manifest["run"] == run):
            found.append(
                Checkpoint(
                    path, manifest["step"], manifest["total_steps"], manifest["stage"], manifest["run"]
                )
            )
    return sorted(found, key=lambda one: (one.step, one.path.name))


def newest_intact(folder: Path, run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of `run` whose every byte is as it was written, and what was passed over, with the reason."""
    rejected = []
    for checkpoint in reversed(list_checkpoints(folder, run)):
        damage = find_damage(checkpoint.path)
        if not damage:
            return checkpoint, rejected
        rejected.append(f"{checkpoint.path.name}: {damage}")
    return None, rejected


def find_damage(path: Path) -> str:
    """Empty for an intact checkpoint, else the first fault."""
    manifest = _sealed_manifest(path)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    for name, (size, digest) in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or sha256_file(file) != digest:
            return f"{name} is damaged"
    return ""


def load_weights(checkpoint: Checkpoint, name: str, module: torch.nn.Module) -> None:
    module.load_state_dict(load_file(checkpoint.path / f"{name}.safetensors"))


def load_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Fill the optimizer with the state of the same parameters, in the same order."""
    file = checkpoint.path / OPTIMIZER_FILE
    if not file.is_file():
        return
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def prune(folder: Path, run: str, keep: int) -> None:
    """Delete the oldest sealed checkpoints of this run, but for the newest `keep`; nobody else's files."""
    for checkpoint in list_checkpoints(folder, run)[:-keep]:
        _discard(checkpoint)


def discard_run(folder: Path, run: str) -> None:
    """Unseal and delete the checkpoints of one run, so that it starts over."""
    for checkpoint in list_checkpoints(folder, run):
        _discard(checkpoint)


def _discard(checkpoint: Checkpoint) -> None:
    (checkpoint.path / MANIFEST).unlink(missing_ok=True)  # from here on it is no checkpoint, whatever dies
    shutil.rmtree(checkpoint.path, ignore_errors=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _sealed_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(path / MANIFEST)
        seal = manifest.pop("seal")
    except (OSError, UserError, KeyError, AttributeError, TypeError):
        return None
    return manifest if seal == fingerprint(manifest) and manifest.get("schema") == SCHEMA else None
