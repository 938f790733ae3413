"""Checkpoints by their names, and the hashes of large files, computed once."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastsd_lib.core.files import sha256_file, write_json
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.models import registry

MOST_REMEMBERED = 10_000
SMALL_BYTES = 64 << 20  # a file so small is hashed in a moment


class FileHashes:
    """SHA-256 of files by (path, time of change, size); safe to ask from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        """`path`: a JSON file that remembers them; None = until the program ends. A damaged one is begun anew."""
        self.path = path
        self._known: dict[str, list] = {}
        self._lock = threading.Lock()
        self._hashing: dict[str, threading.Lock] = {}
        if path is not None:
            with suppress(OSError, ValueError, RecursionError):
                read = json.loads(path.read_text("utf-8"))
                self._known = {
                    name: entry
                    for name, entry in (read if isinstance(read, dict) else {}).items()
                    if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], str)
                }

    def known(self, file: Path) -> str | None:
        """The hash if it need not be computed."""
        try:
            seen = file.stat()
        except OSError:
            return None
        with self._lock:
            entry = self._known.get(str(file))
        return entry[2] if entry and entry[:2] == [seen.st_mtime_ns, seen.st_size] else None

    def of(self, file: Path) -> str:
        """64 hex digits; OSError when it cannot be read. Two who ask at once wait for one computation."""
        with self._lock:
            turn = self._hashing.setdefault(str(file), threading.Lock())
        with turn:
            found = self.known(file)
            if found is None:
                seen, found = file.stat(), sha256_file(file)
                with self._lock:
                    self._known[str(file)] = [seen.st_mtime_ns, seen.st_size, found]
                    while len(self._known) > MOST_REMEMBERED:
                        del self._known[next(iter(self._known))]
                    if self.path is not None:
                        with suppress(OSError):  # a folder that cannot be written: they are computed again
                            write_json(self.path, self._known)
        with self._lock:
            self._hashing.pop(str(file), None)
        return found


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint by its names; nothing is read before it is asked for."""

    name: str  # without ending
    path: Path  # a file, or a Diffusers folder
    hashes: FileHashes = field(compare=False, repr=False)
    files: ModelFiles | None = field(default=None, compare=False, repr=False)

    @property
    def _hashed(self) -> Path:
        """Of a folder its U-Net stands for all."""
        if self.path.is_dir():
            return next(
                iter(sorted((self.path / "unet").glob("*.safetensors"))), self.path / "model_index.json"
            )
        return self.path

    @property
    def sha256(self) -> str:
        """Computed when first asked for: seconds for a large file."""
        return self.hashes.of(self._hashed)

    @property
    def known_sha256(self) -> str | None:
        """The hash, unless that would take its time."""
        file = self._hashed
        found = self.hashes.known(file)
        if found is None:
            with suppress(OSError):
                if file.stat().st_size <= SMALL_BYTES:
                    return self.hashes.of(file)
        return found

    @property
    def short_hash(self) -> str:
        """The ten digits of A1111."""
        return self.sha256[:10]

    @property
    def title(self) -> str:
        """A1111's: with the hash, once it is known."""
        known = self.known_sha256
        return f"{self.path.name} [{known[:10]}]" if known else self.path.name

    @property
    def family(self) -> str:
        """UserError when the file is no whole model."""
        return self.model_files.family

    @cached_property
    def model_files(self) -> ModelFiles:
        return self.files or registry.base_model(self.path)
