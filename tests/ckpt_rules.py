"""The rules of the strictest safe loaders of .ckpt files, which A1111 and Forge had for years.

They are those of A1111's modules/safe.py from before it knew of byteorder and serialization_id.
"""

from __future__ import annotations

import collections
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

# Names of entries that may be there ...
ALLOWED_ENTRY = re.compile(r"([^/]+)/((data/\d+)|version|(data\.pkl))")
# ... and what a pickle may call for.
ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    *(("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "Int", "Long", "Double", "Byte", "BFloat16")),
}
REFUSED = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")  # other ways to call


def rule_is_kept(path: Path) -> bool:
    """Whether the strict rule lets a file pass: entries by name, and every name that its pickle calls for."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        programs = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(programs) != 1 or not all(ALLOWED_ENTRY.fullmatch(name) for name in names):
            return False
        program = archive.read(programs[0])
    called = set()
    for operation, argument, _ in pickletools.genops(program):
        if operation.name in REFUSED:
            return False
        if operation.name == "GLOBAL":
            called.add(tuple(argument.split(" ")))
    return called <= ALLOWED_GLOBALS


def strictly_built(path: Path) -> dict[str, Any]:
    """Their check in full: the pickle is run, with storages that are empty. What it builds."""
    with zipfile.ZipFile(path) as archive:
        (program,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
        with archive.open(program) as opened:
            return _Strict(opened).load()


class _Strict(pickle.Unpickler):
    def persistent_load(self, reference):
        import torch

        assert reference[0] == "storage"
        return torch.storage.TypedStorage(_internal=True)

    def find_class(self, module, name):
        import torch

        assert (module, name) in ALLOWED_GLOBALS
        return getattr(
            {"collections": collections, "torch": torch, "torch._utils": torch._utils}[module], name
        )
