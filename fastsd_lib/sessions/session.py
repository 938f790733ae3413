"""A session: the folder on Drive, or any disk, that holds all of one subject's training."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import is_junk, list_photos
from fastsd_lib.core.files import atomic_path, plain_disk_errors, read_json, write_json, write_text
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped, same_name
from fastsd_lib.sessions import legacy
from fastsd_lib.sessions.names import check_name

SCHEMA = 1
FOLDERS = ("instance_images", "captions", "class_images", "checkpoints", "samples", "logs")
HISTORY_SHOWN = 10


@dataclass(frozen=True)
class Session:
    """Where everything of one session lies. The folder name is the session's name."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def instance_images(self) -> Path:
        """Prepared copies of the user's photos, never cropped."""
        return self.path / "instance_images"

    @property
    def captions(self) -> Path:
        """One .txt per photo, same stem."""
        return self.path / "captions"

    @property
    def class_images(self) -> Path:
        return self.path / "class_images"

    @property
    def checkpoints(self) -> Path:
        """step_000500/ and so on: states that training can resume."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def crops_file(self) -> Path:
        return self.path / "crops.json"

    @property
    def recipe(self) -> Path:
        """Every choice of the last run."""
        return self.path / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "session.json"

    @property
    def model_file(self) -> Path:
        """The model to use elsewhere."""
        return self.path / f"{self.name}.safetensors"

    @property
    def lora_file(self) -> Path:
        """The adapters alone, after a run with `method: lora`."""
        return self.path / f"{self.name}-lora.safetensors"


def sessions_dir(root: Path) -> Path:
    """Where the sessions of `root` (a Drive, or any folder) lie: the layout of the older notebooks."""
    return expanded(root) / "Fast-Dreambooth" / "Sessions"


def template_dir() -> Path:
    """The folder that new sessions are copies of: at the top of a checkout, or where the package put it."""
    in_checkout = Path(__file__).resolve().parents[2] / "sessions_template"
    if (in_checkout / "recipe.yaml").is_file():
        return in_checkout
    try:
        installed = metadata.files("fastsd") or []
    except metadata.PackageNotFoundError:
        installed = []
    for file in installed:
        if file.parts[-2:] == ("sessions_template", "recipe.yaml"):
            return Path(str(file.locate())).resolve().parent
    raise UserError(
        "This copy of fastsd lacks its sessions_template.",
        fix="install fastsd again, or work in its repository.",
    )


def create_session(root: Path, name: str) -> Session:
    """A new session, or the one that is there under this very name, completed.

    UserError for a name that cannot be a folder, and for one that differs only in case from another session.
    """
    name = check_name(name)
    folder = sessions_dir(root)
    if existing := _spelled(folder, name):
        name = existing
    elif twin := _twin(folder, name):
        raise UserError(
            f"There is a session {escaped(twin)!r} already; {name!r} differs only in upper and lower case.",
            fix=f"open {escaped(twin)!r}, or choose another name.",
        )
    return complete_session(Session(folder / name))


def complete_session(session: Session) -> Session:
    """Add the parts that `session` lacks, such as a folder of the older notebooks; what is there stays."""
    with plain_disk_errors(f"create the session {session.name!r}"):
        for part in FOLDERS:
            (session.path / part).mkdir(parents=True, exist_ok=True)
        if not session.recipe.exists():
            write_text(session.recipe, _first_recipe(session))
        readme = session.path / "README.md"
        if not readme.exists():
            with atomic_path(readme) as scratch:
                shutil.copyfile(template_dir() / readme.name, scratch)
        if not session.manifest.exists():
            record(session, "created")
    return session


def open_session(root: Path, name: str) -> Session:
    """The session of this name. Nothing is written, so that a shared or read-only folder opens too.

    UserError that lists the sessions that are there; a folder of the older notebooks needs no session.json.
    """
    name = check_name(name)
    folder = sessions_dir(root)
    existing = _spelled(folder, name)
    if existing is None:
        there = [session.name for session in list_sessions(root)]
        known = ", ".join(escaped(one) for one in there[:20]) + (", ..." if len(there) > 20 else "")
        near = _twin(folder, name) or next(iter(difflib.get_close_matches(name, there, 1)), "")
        fix = (
            f"did you mean {escaped(near)!r}?"
            if near
            else f"create it: python3 -m fastsd_lib session create {shlex.quote(name)}"
        )
        raise UserError(f"No session {name!r} in {folder} (there: {known or 'none yet'}).", fix=fix)
    session = Session(folder / existing)
    read_manifest(session)  # a damaged or newer one is said now, not after an hour of training
    return session


def list_sessions(root: Path) -> list[Session]:
    """All sessions of `root` by name: folders with a session.json or an instance_images folder."""
    names = [name for name in _names(sessions_dir(root)) if not is_junk(name)]
    sessions = (
        Session(sessions_dir(root) / name) for name in sorted(names, key=lambda name: (same_name(name), name))
    )
    return [session for session in sessions if _is_session(session)]


def read_manifest(session: Session) -> dict[str, Any]:
    """session.json, or what it would hold in a folder of the older notebooks; UserError when damaged."""
    if not session.manifest.exists():
        return _new_manifest(session)
    manifest = read_json(session.manifest)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int or schema < 1 or not isinstance(manifest.get("history"), list):
        raise UserError(
            f"{session.manifest} is not a session's manifest.",
            fix="delete it: it is made anew, only its history is lost.",
        )
    if schema > SCHEMA:
        raise UserError(
            f"{session.manifest} was written by a newer fastsd (schema {schema}, this one reads {SCHEMA}).",
            fix="update fastsd.",
        )
    return manifest


def record(session: Session, event: str, **details: Any) -> None:
    """Append an event to the history in session.json. Paths inside the session are kept relative to it."""
    manifest = read_manifest(session)
    entry = {"when": _now(), "event": event} | {
        key: _storable(session, value) for key, value in details.items()
    }
    manifest["history"] = [*manifest["history"], entry]
    with plain_disk_errors(f"write {session.manifest.name}"):
        _write_manifest(session, manifest)


def set_facts(session: Session, **facts: Any) -> None:
    """Change top-level facts of session.json, such as base_model or concepts."""
    manifest = read_manifest(session) | {key: _storable(session, value) for key, value in facts.items()}
    with plain_disk_errors(f"write {session.manifest.name}"):
        _write_manifest(session, manifest)


def summary(session: Session) -> dict[str, Any]:
    """What `session show` prints; plain values, ready for JSON."""
    manifest = read_manifest(session)
    models = [session.model_file, *reversed(legacy.trained_models(session.path))]
    return {
        "name": session.name,
        "path": str(session.path),
        "created": manifest.get("created"),
        "base_model": manifest.get("base_model"),
        "photos": len(list_photos(session.instance_images)),
        "identifiers": legacy.identifiers(legacy.photos_to_come(session.path)),
        "proposed_prompt": legacy.instance_prompt_for(legacy.photos_to_come(session.path)),
        "captions": _files(session.captions, ".txt"),
        "class_images": len(list_photos(session.class_images)),
        "checkpoints": [path.name for path in sorted(session.checkpoints.glob("step_*")) if path.is_dir()],
        "samples": _files(session.samples, ".png"),
        "models": [path.name for path in models if path.is_file()],
        "zips": [path.name for path in legacy.zips(session.path)],
        "bytes": _bytes_below(session.path),
        "legacy": not session.manifest.exists(),
        "history": manifest["history"][-HISTORY_SHOWN:],
    }


def _is_session(session: Session) -> bool:
    return session.manifest.is_file() or session.instance_images.is_dir() or legacy.is_legacy(session.path)


def _first_recipe(session: Session) -> str:
    """The template's recipe; the photos of an older notebook's session name its subject already."""
    recipe = (template_dir() / "recipe.yaml").read_text(encoding="utf-8")
    prompt = legacy.instance_prompt_for(legacy.photos_to_come(session.path))
    filled = f"instance_prompt: {json.dumps(prompt, ensure_ascii=False)}  # from the names of the photos"
    return re.sub(r'^instance_prompt: "".*$', lambda _: filled, recipe, flags=re.M) if prompt else recipe


def _spelled(folder: Path, name: str) -> str | None:
    """The name on disk of the session called `name`: macOS may have stored it in other Unicode pieces."""
    for on_disk in _names(folder):
        if unicodedata.normalize("NFC", on_disk) == name:
            return on_disk
    return None


def _twin(folder: Path, name: str) -> str | None:
    return next((on_disk for on_disk in _names(folder) if same_name(on_disk) == same_name(name)), None)


def _names(folder: Path) -> list[str]:
    """What a case-insensitive disk could take for a session: every folder, even one that is none yet."""
    with plain_disk_errors("look for sessions"):
        try:
            return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _new_manifest(session: Session) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": session.name,
        "created": _now(),
        "base_model": None,
        "concepts": [],
        "history": [],
    }


def _write_manifest(session: Session, manifest: Mapping[str, Any]) -> None:
    write_json(session.manifest, manifest)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _storable(session: Session, value: Any) -> Any:
    """`value` as JSON can hold it; a session can be moved, so its own paths are relative."""
    if isinstance(value, Path):
        return (
            value.relative_to(session.path).as_posix() if value.is_relative_to(session.path) else str(value)
        )
    if isinstance(value, Mapping):
        return {str(key): _storable(session, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(session, part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _files(folder: Path, suffix: str) -> int:
    return sum(path.suffix.lower() == suffix and not is_junk(path.name) for path in folder.glob("*"))


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # links are not followed: they take no space here
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # a scratch file that was just renamed
                continue
    return total
