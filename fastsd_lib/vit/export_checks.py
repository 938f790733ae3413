"""Is an export.json what this program writes, and are its files still what it says?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core import disk
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import sha256_file

SCHEMA = 1


def shape_problem(manifest: Any) -> str:
    """An export may come from anywhere: nothing in it is believed unseen."""
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        return f"schema {manifest.get('schema')!r}" if isinstance(manifest, dict) else "not an object"
    kinds = {"format": str, "precision": str, "asked": str, "opens": str, "source_sha256": str, "checked": str,
             "note": str, "runs_here": bool, "files": dict, "labels": list, "kept": list, "measured": dict}  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return f"{name} is {manifest.get(name)!r}"
    error = manifest.get("max_abs_logit_error")
    if error is not None and not isinstance(error, (int, float)):
        return f"max_abs_logit_error is {error!r}"
    for name, facts in manifest["files"].items():
        if not _stays_inside(name) or not (isinstance(facts, list) and len(facts) == 2):
            return f"file {name!r}"
    return "" if _stays_inside(manifest["opens"]) else f"opens {manifest['opens']!r}"


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return bool(name) and not set(name) & set("\\:\0") and all(part not in ("", ".", "..") for part in parts)


def check_files(folder: Path, files: Mapping[str, list], opens: Path) -> None:
    """UserError for the first file whose size or SHA-256 is another."""
    for name, (size, digest) in files.items():
        file = folder / name
        if disk.file_size(file) != size or sha256_file(file) != digest:
            raise UserError(
                f"{file} is not the file that was exported (its size or SHA-256 differs).",
                fix="export the model again, or copy the whole folder again.",
            )
    if not opens.exists():
        raise UserError(f"{opens} is missing.", fix="export the model again.")
