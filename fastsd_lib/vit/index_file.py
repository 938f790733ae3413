"""An index in a folder.

index.json        kind, metric, maker, measured recall; sealed (sealed_files.py)
vectors-*.npy     a second name for the store's own file where the disk has links, else a copy
squares-*.npy     |v|^2 of each row
keys-*, sources-*  what the rows are called and where the pictures lie (names.py)
more-*.npy        vectors that were added; removed-*.npy: rows that were removed
codes-*.npy, mean-*.npy, *.faiss: what the kind keeps
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fsync_path, plain_disk_errors
from fastsd_lib.vit.exact_search import Vectors
from fastsd_lib.vit.names import Names, write_names
from fastsd_lib.vit.sealed_files import facts_of, open_array, remove_others, seal, sealed_path, unseal
from fastsd_lib.vit.search_kinds import KINDS
from fastsd_lib.vit.vector_store import Maker

if TYPE_CHECKING:
    from fastsd_lib.vit.index import Index

MANIFEST, MADE_BY, WHAT = "index.json", "fastsd index", "index"
_STEMS = (
    "vectors-",
    "more-",
    "removed-",
    "squares-",
    "keys-",
    "sources-",
    "codes-",
    "mean-",
    "ivf-",
    "hnsw-",
)
_TUNED = ("width", "probes", "effort")


def write(index: Index, folder: Path) -> None:
    """All files under new names, then the manifest: until then the folder holds the index that it held before."""
    state = uuid.uuid4().hex[:12]
    with plain_disk_errors("write the index"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            names = _write_files(index, folder, state)
            finder = index.finder.save(folder, state) if index.finder else []
            files = {}
            for name in [*names.values(), *finder]:
                fsync_path(folder / name)
                files[name] = facts_of(folder / name)
            tuned = {name: getattr(index.finder, name) for name in _TUNED if hasattr(index.finder, name)}
            facts = {
                "kind": index.kind, "metric": index.metric, "dimension": index.dimension, "count": len(index),
                "maker": asdict(index.maker), "facts": index.facts, "names": names, "finder": finder, "tuned": tuned,
            }  # fmt: skip
            seal(folder, MANIFEST, MADE_BY, facts, files)
        except BaseException:
            for path in folder.glob(f"*-{state}.*"):
                with suppress(OSError):
                    path.unlink()
            raise
        index.vectors_file = folder / names["vectors"]
        remove_others(folder, _STEMS, files)


def read(folder: Path, kind_of_index: type[Index], *, verify: bool) -> Index:
    """UserError for what is damaged, of another kind, or from a newer fastsd."""
    said = unseal(
        folder, MANIFEST, MADE_BY, WHAT, verify=verify, made_with="python3 -m fastsd_lib vit index VECTORS"
    )
    try:
        names = {what: sealed_path(folder, said, name) for what, name in said["names"].items()}
        finder = [sealed_path(folder, said, name) for name in said["finder"]]
        arrays = [open_array(names[name]) for name in ("vectors", "more") if name in names]
        vectors = Vectors(arrays, said["metric"], np.array(open_array(names["squares"])))
        keys, sources = (Names.open(names[what], names[f"{what}_ends"]) for what in ("keys", "sources"))
        removed = open_array(names["removed"]) if "removed" in names else ()
        maker, file = Maker.of(said["maker"]), names["vectors"]
        index = kind_of_index(said["kind"], vectors, keys, sources, maker, file, removed)
        index.facts = said["facts"]
        if said["kind"] != "exact":
            index.finder = KINDS[said["kind"]]()
            index.finder.load(finder)
            for name, value in said["tuned"].items():
                setattr(index.finder, name, int(value))
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{folder} is not an index that this fastsd can read: {error}.", fix="build it again."
        ) from None
    return index


def _write_files(index: Index, folder: Path, state: str) -> dict[str, str]:
    """{what: name of its file}"""
    names = {"vectors": f"vectors-{state}.npy", "squares": f"squares-{state}.npy"}
    _link(index.vectors_file, folder / names["vectors"])
    np.save(folder / names["squares"], index.vectors.squares)
    for what, said in (("keys", index.keys), ("sources", index.sources)):
        names |= {what: f"{what}-{state}.npy", f"{what}_ends": f"{what}-ends-{state}.npy"}
        write_names(said, folder / names[what], folder / names[f"{what}_ends"])
    if len(index.vectors.arrays) > 1:
        names["more"] = f"more-{state}.npy"
        np.save(folder / names["more"], np.concatenate(index.vectors.arrays[1:]))
    if not index.alive.all():
        names["removed"] = f"removed-{state}.npy"
        np.save(folder / names["removed"], np.flatnonzero(~index.alive))
    return names


def _link(source: Path, final: Path) -> None:
    """A second name for a file that is never changed; a copy where the disk has no links (Drive, another disk)."""
    try:
        os.link(source, final)
    except OSError:
        shutil.copyfile(source, final)
