"""Merges of checkpoints that the page asks for: one at a time, in a thread of its own, found again after a reload."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.core.text import name_problem
from fastsd_lib.webui.context import ApiContext

LOG = logging.getLogger(__name__)
ENDING = ".safetensors"


@dataclass(frozen=True)
class MergeState:
    """How far a merge is; `said` is what has come of one that is over."""

    running: bool = False
    name: str = ""
    step: str = ""
    share: float = 0.0
    said: str = ""
    failed: bool = False


class Merging:
    """The merges of one server."""

    def __init__(self, context: ApiContext) -> None:
        self._shelf = context.service.shelf
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.state = MergeState()

    def start(self, choices: dict[str, Any]) -> None:
        """Begin. `choices`: the fields of MergeConfig, models and VAE by their names here, `name` in place of `out`.

        UserError for names that are not known, a name that no file can have, and while another merge runs.
        """
        config, hash_of = self._config(choices)
        with self._lock:
            if self.state.running:
                raise UserError(f"{self.state.name} is being merged.", fix="wait for it, or stop it first.")
            self._stop.clear()
            self.state = MergeState(True, config.out.stem, "opening the models")
        self._thread = threading.Thread(target=self._run, args=(config, hash_of), name="merging", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; nothing is written then."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _config(self, choices: dict[str, Any]) -> tuple[Any, Any]:
        from fastsd_lib.formats.merge import MergeConfig  # numpy

        given = dict(choices)
        if not self._shelf.folders.checkpoints:
            raise UserError(
                "This server has no folder of checkpoints.", fix="start it with --library FOLDER."
            )
        infos = {letter: self._shelf.find(given[letter]) for letter in "abc" if given.get(letter)}
        if "a" not in infos:
            raise UserError("There is no model A.", fix="choose one.")
        vae = self._shelf.find_vae(given.pop("vae", ""))
        paths = {one.name: one.path for one in self._shelf.vaes()}
        name = str(given.pop("name", "")).strip().removesuffix(ENDING) or self._own_name(infos, given)
        if problem := name_problem(name):
            raise UserError(f"{name[:80]!r} cannot name a file: {problem}.", fix="write another custom name.")
        files = {letter: info.model_files for letter, info in infos.items()}
        out = self._shelf.folders.checkpoints[0] / f"{name}{ENDING}"
        if out.exists() or any(one.name == name for one in self._shelf.models()):
            raise UserError(f"A model {name!r} is there already.", fix="choose another name.")
        config = MergeConfig(**{**given, **files, "out": out, "vae": paths.get(vae)})
        return config, infos["a"].hashes.of

    def _own_name(self, infos: dict[str, Any], given: dict[str, Any]) -> str:
        """As A1111 names what nobody named: "0.7(first) + 0.3(second)"."""
        share, names = given["multiplier"], {letter: info.name for letter, info in infos.items()}
        if given["method"] == "weighted_sum" and "b" in names:
            return f"{round(1 - share, 2):g}({names['a']}) + {round(share, 2):g}({names['b']})"
        if given["method"] == "add_difference" and "c" in names:
            return f"{names['a']} + {round(share, 2):g}({names['b']} - {names['c']})"
        return f"{names['a']} merged"

    def _run(self, config: Any, hash_of: Any) -> None:
        from fastsd_lib.formats.merge import merge

        name = config.out.stem

        def report(event: ProgressEvent) -> None:
            self.state = MergeState(True, name, event.task, event.done / max(event.total, 1))

        try:
            merge(config, report, self._stop.is_set, hash_of)
            size = config.out.stat().st_size
            self._shelf.models()  # the lists know it from now on
            self.state = MergeState(
                name=name, said=f"{config.out.name} is in the list of checkpoints ({size / 1e9:.2f} GB)."
            )
        except UserError as error:
            fix = f" {error.fix[:1].upper()}{error.fix[1:]}" if error.fix else ""
            self.state = MergeState(name=name, said=f"{error.message}{fix}", failed=True)
        except Exception:
            LOG.exception("A merge failed")
            self.state = MergeState(
                name=name, said="The merge failed; the server's log says why.", failed=True
            )
