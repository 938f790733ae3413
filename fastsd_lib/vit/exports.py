"""Exported models: folders that open by their path alone, sealed by an export.json that names every file's SHA-256.

`export` writes one; `quantize.quantize` adds calibration and the accuracy gate; `open_export` reads one back and refuses
it if a byte has changed. Each format has one function in EXPORTERS.
"""

from __future__ import annotations

import importlib
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors, read_json, sha256_file, write_json
from fastsd_lib.vit import export_checks
from fastsd_lib.vit.export_checks import SCHEMA, shape_problem
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.whole_folder import whole_folder

MANIFEST = "export.json"
MADE_BY = "fastsd vit export"
#: What a model folder says beside its weights; an export takes it along, so that it opens by its path.
BESIDE = ("config.json", "preprocessor_config.json", "fastsd_vit.json")

#: format -> "module:function"; the function is an `Exporter`: write(model, precision, folder, recipe) -> Written.
EXPORTERS: dict[str, str] = {
    "safetensors": "fastsd_lib.vit.export_safetensors:write",
    "onnx": "fastsd_lib.vit.export_onnx:write",
    "openvino": "fastsd_lib.vit.export_openvino:write",
    "tensorflow": "fastsd_lib.vit.export_tensorflow:write",
    "tflite": "fastsd_lib.vit.export_tensorflow:write_tflite",
    "coreml": "fastsd_lib.vit.export_coreml:write",
    "tensorrt": "fastsd_lib.vit.export_tensorrt:write",
}
#: The formats that a Runner runs, by the name of its backend; all others are checked by their own exporter.
BACKEND_OF = {"safetensors": "torch", "onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Recipe:
    """What quantising needs beside the model; exporters of other precisions ignore it."""

    calibration: np.ndarray | None = None  # (N, 3, H, W) float32, as the model's transform makes them
    kept: tuple[str, ...] = ()  # modules of the torch model that stay in high precision


@dataclass(frozen=True)
class Written:
    """What an exporter says of the files that it has written into the scratch folder."""

    opens: str  # the file (or folder) in it that other programs are given
    checked: str = ""  # how the exporter has checked it: "structure only: TensorRT is not installed here"
    runs_here: bool = True  # False: only the structure could be checked
    note: str = ""
    #: By how much the logits were off, where the exporter itself ran the file (formats without a Runner).
    max_abs_logit_error: float | None = None


@dataclass(frozen=True)
class Export:
    """One exported model on disk."""

    path: Path
    format: str
    precision: str
    asked: str  # the precision that was asked for; another than `precision` after a fall-back
    opens: Path
    files: Mapping[str, list]  # name -> [bytes, SHA-256]
    source_sha256: str
    labels: tuple[str, ...]
    checked: str
    runs_here: bool
    kept: tuple[str, ...] = ()
    note: str = ""
    max_abs_logit_error: float | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)  # the row of compress's table

    @property
    def size_mib(self) -> float:
        """The weights and graph; not the few kB of configs beside."""
        inside = [size for name, (size, _) in self.files.items() if name not in BESIDE]
        return sum(inside) / 2**20


def export(
    model: VitModel,
    format: str,
    precision: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    note: str = "",
) -> Export:
    """Write `model` as `format` into the folder `out`, whole or not at all, and check what was written.

    `format`: a key of EXPORTERS. UserError for an unknown format or precision, a missing library, or a result that
    does not give the model's logits (fp32: within 1e-3; bf16, fp16: cosine at least 0.999).
    """
    recipe = recipe or Recipe()
    write = _exporter(format)
    with plain_disk_errors(f"export {model.name}"), whole_folder(out, ours=is_export) as folder:
        written = _written(write, model, format, precision, folder, recipe)
        _copy_configs(model, folder)
        write_json(folder / MANIFEST, _manifest(model, format, precision, folder, written, recipe, note))
        if format in BACKEND_OF:
            from fastsd_lib.vit import parity

            found = parity.check(model, folder, precision)
            _amend(folder, checked=found.text, max_abs_logit_error=found.max_abs_error)
    return open_export(out, check_files=False)


def open_export(path: Path, *, check_files: bool = True) -> Export:
    """Read export.json; UserError where it is missing, of strange shape, or a file is not what was written."""
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise UserError(
            f"{path} holds no {MANIFEST}.", fix="name a folder that `fastsd vit export` has made."
        )
    manifest = read_json(manifest_path)
    problem = shape_problem(manifest)
    if problem:
        raise UserError(
            f"{manifest_path} is not what an export writes: {problem}.", fix="export the model again."
        )
    found = Export(
        path=path,
        opens=path / manifest["opens"],
        labels=tuple(manifest["labels"]),
        kept=tuple(manifest["kept"]),
        **{name: manifest[name] for name in _PLAIN},
    )
    if check_files:
        export_checks.check_files(path, found.files, found.opens)
    return found


def is_export(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def of_model(model: VitModel, output: Any, format: str) -> Export | None:
    """The export that model.path is, every byte checked; None for a model. UserError where `output` is not logits."""
    if not is_export(model.path):
        return None
    found = open_export(model.path)
    if output != "logits" and found.format != "safetensors":
        raise UserError(
            f"{model.path} is an export of the classifier: it gives no features.",
            fix="name the model itself.",
        )
    if found.format != format:
        raise UserError(
            f"{model.path} is an export to {found.format}, not {format}.", fix="leave the backend at auto."
        )
    return found


def source_sha256(model: VitModel) -> str:
    """Of the weights; sharded ones hash as the list of their shards' hashes."""
    import hashlib

    shards = sorted(model.path.glob("*.safetensors"))
    if not shards:
        raise UserError(
            f"{model.path} holds no .safetensors weights.", fix="name the model, not an export of it."
        )
    hashes = [sha256_file(shard) for shard in shards]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def set_measured(path: Path, row: Mapping[str, Any]) -> None:
    """Put the row of compress's table into export.json."""
    _amend(path, measured=dict(row))


def set_note(path: Path, *, asked: str, note: str) -> Export:
    """Say in export.json that another precision was asked for, and why this one is there."""
    before = open_export(path, check_files=False).note
    _amend(path, asked=asked, note=" ".join(filter(None, (note, before))))
    return open_export(path, check_files=False)


def files_in(folder: Path) -> dict[str, list]:
    """Name (with / between folders) -> [bytes, SHA-256], export.json apart."""
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_file(path)] for path in inside}


# -- inside -----------------------------------------------------------------------------------------------------------

_PLAIN = (
    "format", "precision", "asked", "files", "source_sha256", "checked", "runs_here", "note",
    "max_abs_logit_error", "measured",
)  # fmt: skip


def _exporter(format: str) -> Any:
    if format not in EXPORTERS:
        known = ", ".join(sorted(EXPORTERS))
        raise UserError(f"No export format {format!r} (there: {known}).", fix="pick one of these.")
    module, _, function = EXPORTERS[format].partition(":")
    return getattr(importlib.import_module(module), function)


def _written(
    write: Any, model: VitModel, format: str, precision: str, folder: Path, recipe: Recipe
) -> Written:
    try:
        return write(model, precision, folder, recipe)
    except (UserError, OSError):
        raise
    except Exception as error:  # converters raise nearly anything where they do not know a kind of layer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{model.name} could not be written as {format} {precision}: {reason}",
            fix="choose another format or precision.",
        ) from error


def _copy_configs(model: VitModel, folder: Path) -> None:
    for name in BESIDE:
        if (model.path / name).is_file() and not (folder / name).exists():
            shutil.copyfile(model.path / name, folder / name)


def _manifest(
    model: VitModel,
    format: str,
    precision: str,
    folder: Path,
    written: Written,
    recipe: Recipe,
    note: str,
) -> dict[str, Any]:
    preprocessor = folder / "preprocessor_config.json"
    return {
        "schema": SCHEMA,
        "made_by": MADE_BY,
        "format": format,
        "precision": precision,
        "asked": precision,
        "opens": written.opens,
        "source": model.name,
        "source_sha256": source_sha256(model),
        "labels": list(model.labels),
        "transform": read_json(preprocessor) if preprocessor.is_file() else {},
        "kept": list(recipe.kept),
        "note": " ".join(filter(None, (note, written.note))),
        "checked": written.checked,
        "runs_here": written.runs_here,
        "max_abs_logit_error": written.max_abs_logit_error,
        "machine": f"{platform.machine()} {platform.system()}",
        "measured": {},
        "files": files_in(folder),
    }


def _amend(folder: Path, **changes: Any) -> None:
    write_json(folder / MANIFEST, {**read_json(folder / MANIFEST), **changes})
