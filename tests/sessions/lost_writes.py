"""What may be left on a disk, or on Drive, of recorded calls: states as {path: bytes}, and an `os` that reads them.

Simulated, and no more than that: files of a few kB; on Drive whole-file versions (no half uploads but empty ones).
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from crash import Call

State = dict[str, bytes]  # files only: a folder is there when something lies in it


@dataclass
class _Node:
    """A file or folder: what a reader sees now, and what is sure to be there after a power cut."""

    is_folder: bool
    data: bytes = b""
    sure: bytes = b""
    entries: dict[str, _Node] = field(default_factory=dict)
    sure_entries: dict[str, _Node] = field(default_factory=dict)
    unsure: list[tuple[str, Any]] = field(default_factory=list)  # (name, node or None), oldest first


def posix_states(calls: list[Call], root: str, draws: int, seed: int) -> Iterator[tuple[list[Any], State]]:
    """After each call a power cut: (marks so far, what is left), `draws` times.

    What was not synced is lost, halved or kept, each file and each name in a folder on its own; of one name's changes
    the later are lost first. This is what POSIX allows, and more than most file systems do.
    """
    rng = random.Random(seed)
    tree = _Node(True)
    marks: list[Any] = []
    for call in calls:
        if call.name == "mark":
            marks.append(call.data)
        elif not call.failed:
            _apply(tree, call, root)
        for draw in range(draws):
            keep = {0: 0.0, 1: 1.0}.get(draw, 0.5)  # all lost, all kept, anything between
            state: State = {}
            _survivors(tree, root, rng, keep, state)
            yield list(marks), state


def _apply(tree: _Node, call: Call, root: str) -> None:
    def find(path: str) -> _Node:
        node = tree
        for part in _parts(path, root):
            node = node.entries[part]
        return node

    def enter(path: str, node: _Node | None) -> None:
        folder, name = find(os.path.dirname(path)), os.path.basename(path)
        if node is None:
            folder.entries.pop(name)
        else:
            folder.entries[name] = node
        folder.unsure.append((name, node))

    if call.name in {"mkdir", "open"}:
        if call.name == "open" and os.path.basename(call.path) in find(os.path.dirname(call.path)).entries:
            find(call.path).data = b""  # without O_EXCL, the old content is cut off
        else:
            enter(call.path, _Node(call.name == "mkdir"))
    elif call.name == "write":
        find(call.path).data += call.data
    elif call.name == "fsync":
        node = find(call.path)
        node.sure, node.sure_entries, node.unsure = node.data, dict(node.entries), []
    elif call.name in {"unlink", "rmdir"}:
        enter(call.path, None)
    elif call.name == "replace":
        moved = find(call.path)
        enter(call.path, None)
        enter(call.data, moved)


def _survivors(node: _Node, path: str, rng: random.Random, keep: float, state: State) -> None:
    if not node.is_folder:
        unsure = node.data[len(node.sure) :]
        choices = [node.sure, node.sure + unsure[: len(unsure) // 2], node.data]
        state[path] = choices[2 if keep == 1 else 0 if keep == 0 else rng.randrange(3)]
        return
    entries, lost = dict(node.sure_entries), set()
    for name, child in node.unsure:
        if name in lost or not rng.random() < keep:
            lost.add(name)
        elif child is None:
            entries.pop(name, None)
        else:
            entries[name] = child
    for name, child in entries.items():
        _survivors(child, f"{path}/{name}", rng, keep, state)


def cloud_states(calls: list[Call], root: str, draws: int, seed: int) -> Iterator[tuple[list[Any], State]]:
    """After each call another machine looks at Drive: each path shows any of its last three versions, or is absent.

    From draw to draw the share of paths that show what they should varies, so that nearly whole ones are among them.
    """
    rng = random.Random(seed)
    versions: dict[str, list[bytes | None]] = {}
    current: State = {}
    marks: list[Any] = []
    for call in calls:
        if call.name == "mark":
            marks.append(call.data)
        elif call.name == "open":
            current[call.path] = b""
        elif call.name == "write":
            current[call.path] += call.data
        elif call.name == "unlink":
            current.pop(call.path, None)
        if call.name in {"open", "unlink"} or (call.name == "fsync" and call.path in current):
            versions.setdefault(call.path, []).append(current.get(call.path))
        for draw in range(draws):
            true_share = draw / draws
            seen = {
                path: known[-1] if rng.random() < true_share else rng.choice([*known[-3:], None])
                for path, known in versions.items()
            }
            yield list(marks), {path: data for path, data in seen.items() if data is not None}


def _parts(path: str, root: str) -> list[str]:
    return [part for part in path[len(root) :].split("/") if part]


class MemoryOs:
    """As much of `os` as reading checkpoints takes, on a state instead of a disk."""

    def __init__(self, state: State) -> None:
        self._files = state
        self._folders: dict[str, set[str]] = {}
        for path in state:
            self._enter(path)
        self._open: dict[int, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _enter(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        known = folder in self._folders
        self._folders.setdefault(folder, set()).add(name)
        if folder and not known:
            self._enter(folder)

    def listdir(self, path: Any) -> Iterable[str]:
        try:
            return list(self._folders[str(path)])
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    def stat(self, path: Any, follow_symlinks: bool = True) -> os.stat_result:
        path = str(path)
        if path in self._folders:
            mode, size = stat.S_IFDIR, 0
        elif path in self._files:
            mode, size = stat.S_IFREG, len(self._files[path])
        else:
            raise FileNotFoundError(2, "No such file or directory")
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, 0, 0))

    def open(self, path: Any, flags: int, mode: int = 0) -> int:
        if str(path) not in self._files:
            raise FileNotFoundError(2, "No such file or directory")
        handle = 1 << 20 | len(self._open)
        self._open[handle] = [self._files[str(path)], 0]
        return handle

    def read(self, handle: int, size: int) -> bytes:
        data, at = self._open[handle]
        self._open[handle][1] = at + size
        return data[at : at + size]

    def close(self, handle: int) -> None:
        pass

    def posix_fadvise(self, *_: int) -> None:
        pass
