"""Small files that change while a run goes on (metrics.jsonl, samples) and their copies on Drive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastsd_lib.core import disk

LARGEST_BYTES = 64 << 20  # what is larger is no small file, and has other ways
_HEAD_BYTES = 256


class Mirror:
    """Copies what changed since it last looked; each copy appears whole, by rename, and never half."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._paths: list[Path] = []
        self._done: dict[Path, tuple[int, float]] = {}  # file -> size and change time of what was copied

    def add(self, paths: Iterable[Path]) -> None:
        """Files or folders in `source`; ValueError for others."""
        for path in paths:
            path.relative_to(self._source)
            if path not in self._paths:
                self._paths = [*self._paths, path]

    def update(self) -> None:
        """OSError when the target cannot be written to; what is copied already is not copied again."""
        for file in self._files():
            seen = disk.file_size(file), disk.changed_at(file)
            if None in seen or seen[0] > LARGEST_BYTES or self._done.get(file) == seen:
                continue
            try:
                content = disk.read_bytes(file)
            except FileNotFoundError:  # a scratch file
                continue
            self._replace(
                self._target / file.relative_to(self._source), content, first=file not in self._done
            )
            self._done[file] = seen

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            if not disk.is_folder(path):
                yield path
                continue
            for parent, _, names in os.walk(path):
                yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))

    def _replace(self, final: Path, content: bytes, first: bool) -> None:
        disk.make_folders(final.parent, root=self._target)
        if first and disk.file_size(final) is not None:
            self._set_aside(final, content)
        scratch = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
        disk.unlink(scratch)  # of an attempt that Drive broke off
        disk.write_file(scratch, (content,))
        disk.rename(scratch, final)
        disk.sync_folder(final.parent)

    def _set_aside(self, final: Path, content: bytes) -> None:
        """A file of other beginnings is of another run, made where its local copy was lost: it is kept."""
        there = disk.read_bytes(final)
        if there[:_HEAD_BYTES] == content[: min(_HEAD_BYTES, len(there))]:
            return
        taken, number = set(disk.names_in(final.parent)), 1
        while (name := f"{final.stem}.earlier-{number}{final.suffix}") in taken:
            number += 1
        disk.write_file(final.with_name(name), (there,))  # a copy: readers find `final` at any time
