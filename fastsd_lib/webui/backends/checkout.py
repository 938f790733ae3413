"""A back end's code at one commit: cloned whole or not at all, updated, and taken back to the last that worked."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.paths import expanded
from fastsd_lib.webui.backends import git
from fastsd_lib.webui.backends.config import Backend, BackendConfig
from fastsd_lib.webui.backends.flags import Places, initial_settings
from fastsd_lib.webui.backends.python_env import install_requirements, make_environment

KEPT_GOOD = 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkout:
    """Code and environment that are ready to be started."""

    backend: Backend
    config: BackendConfig = field(repr=False)
    places: Places = field(repr=False)
    python: Path
    ref: str
    commit: str

    @property
    def has_worked(self) -> bool:
        return any(one["commit"] == self.commit for one in _read_state(self.places).get("good", []))

    def worked(self) -> None:
        """Note that this commit became ready: `rollback` returns to it."""
        state = _read_state(self.places)
        good = [one for one in state.get("good", []) if one["commit"] != self.commit]
        state["good"] = [*good, {"ref": self.ref, "commit": self.commit}][-KEPT_GOOD:]
        _write_state(self.places, state)


def prepare(backend: Backend, config: BackendConfig, say: Say = print) -> Checkout:
    """Clone or update the code, make its environment, lay out its settings: as much of it as is missing.

    Without network a ref that is there already is used as it is. UserError in one line for git, disk and Python.
    """
    if config.model and not expanded(config.model).is_file():
        raise UserError(f"There is no model {config.model}.", fix="check the path, or leave model out.")
    places = Places.of(backend, config)
    _make_folders(places)
    ref = config.ref or backend.ref
    url = config.repository or backend.repository
    commit = _code_at(backend, config, places, url, ref, say)
    python = make_environment(backend, config, places)
    if not backend.installs_itself:
        say(f"Installing what {backend.title} needs, where it is missing ...")
        install_requirements(backend, config, places, python, places.code / "requirements.txt")
    if backend.name == "a1111" and config.controlnet:
        _add_controlnet(config, places, say)
    if backend.name != "comfyui":
        _begin_settings(places)
    return Checkout(backend, config, places, python, ref, commit)


def rollback(backend: Backend, config: BackendConfig, say: Say = print) -> Checkout:
    """Go back to the newest commit that became ready and is not the present one; no network is needed.

    To stay there, give its commit as `ref`. UserError when none is known.
    """
    places = Places.of(backend, config)
    state = _read_state(places)
    present = state.get("commit")
    earlier = [one for one in state.get("good", []) if one["commit"] != present]
    if not earlier or not (places.code / ".git").exists():
        raise UserError(
            f"No earlier version of {backend.title} is known to have worked here.",
            fix="name another one: ref=...",
        )
    good = earlier[-1]
    say(
        f"{backend.title} goes back to {good['ref']} ({good['commit'][:10]}), which worked. Keep it: ref={good['commit']}"
    )
    git.checkout(places.code, good["commit"], config.git_s)
    _write_state(places, state | good)
    return prepare(backend, replace(config, ref=good["commit"], update=False), say)


# ------------------------------------------------------------------ code


def _code_at(backend: Backend, config: BackendConfig, places: Places, url: str, ref: str, say: Say) -> str:
    state = _read_state(places)
    there = places.code.is_dir() and state.get("commit")
    kept = _kept(state).get(ref) if there and state.get("url") == url and not config.update else None
    if kept:
        git.checkout(places.code, kept, config.git_s)
        _write_state(places, state | {"ref": ref, "commit": kept})
        return kept
    if not there:
        say(f"Fetching {backend.title} {ref} ...")
        _clone(places, url, ref, config.git_s, backend)
        commit = git.git(["rev-parse", "HEAD"], places.code, 60)
    else:
        say(f"Updating {backend.title} to {ref} ...")
        try:
            commit = git.fetch_commit(places.code, url, ref, config.git_s)
        except UserError as error:
            if not (state.get("ref") == ref and state.get("url") == url):
                raise
            say(f"{error.message} {backend.title} stays at {state['commit'][:10]}.")
            commit = state["commit"]
        git.checkout(places.code, commit, config.git_s)
    if not (places.code / backend.script).is_file():
        raise UserError(
            f"{url} at {ref} is no {backend.title}: it has no {backend.script}.", fix="name another ref."
        )
    _write_state(places, state | {"url": url, "ref": ref, "commit": commit})
    return commit


def _kept(state: dict[str, Any]) -> dict[str, str]:
    """The commits that are here, by the refs that they were fetched for and by their own ids."""
    ones = [*state.get("good", []), {"ref": state["ref"], "commit": state["commit"]}]
    return {one["commit"]: one["commit"] for one in ones} | {one["ref"]: one["commit"] for one in ones}


def _clone(places: Places, url: str, ref: str, limit_s: float, backend: Backend) -> None:
    """Into a folder beside, which becomes the code only when it is whole."""
    for left in places.code.parent.glob(".code.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = places.code.with_name(f".code.{uuid.uuid4().hex[:8]}.partial")
    scratch.mkdir()
    try:
        git.git(["init", "--quiet"], scratch, 60)
        git.checkout(scratch, git.fetch_commit(scratch, url, ref, limit_s), limit_s)
        if not (scratch / backend.script).is_file():
            raise UserError(
                f"{url} at {ref} is no {backend.title}: it has no {backend.script}.", fix="name another ref."
            )
        if places.code.exists():  # of an unknown state
            shutil.rmtree(places.code)
        os.replace(scratch, places.code)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _add_controlnet(config: BackendConfig, places: Places, say: Say) -> None:
    """A1111's extension at its pinned ref, beside the code; its packages are installed by A1111's start."""
    folder = places.data / "extensions" / "sd-webui-controlnet"
    noted = folder / ".git" / "fastsd-ref"
    wanted = f"{config.controlnet_repository} {config.controlnet_ref}"
    with suppress(OSError):
        if noted.read_text() == wanted:
            return
    say("Fetching the ControlNet extension ...")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = places.data / f".controlnet.{uuid.uuid4().hex[:8]}.partial"
    scratch.mkdir()
    try:
        git.git(["init", "--quiet"], scratch, 60)
        commit = git.fetch_commit(scratch, config.controlnet_repository, config.controlnet_ref, config.git_s)
        git.checkout(scratch, commit, config.git_s)
        (scratch / ".git" / "fastsd-ref").write_text(wanted)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ------------------------------------------------------------------ folders, settings, state


def _make_folders(places: Places) -> None:
    try:
        for folder in (places.code.parent, places.data, places.settings, places.outputs, places.private):
            folder.mkdir(parents=True, exist_ok=True)
        places.private.chmod(0o700)
        places.log.touch(mode=0o600)
        places.log.chmod(0o600)  # A1111 writes its arguments there, passwords and all
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be written: {error.strerror}.",
            fix="mount Drive, or name another folder.",
        ) from None


def _begin_settings(places: Places) -> None:
    """What is missing in the settings; what the user chose stays."""
    file = places.settings / "config.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            raise ValueError
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError):
        raise UserError(f"The settings {file} cannot be read.", fix="mend or remove that file.") from None
    full = initial_settings(places) | known
    if full != known:
        with atomic_path(file) as scratch:
            scratch.write_text(json.dumps(full, indent=4), encoding="utf-8")


def _read_state(places: Places) -> dict[str, Any]:
    try:
        state = json.loads((places.code.parent / "state.json").read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def _write_state(places: Places, state: dict[str, Any]) -> None:
    with atomic_path(places.code.parent / "state.json") as scratch:
        scratch.write_text(json.dumps(state, indent=1), encoding="utf-8")
