"""ControlNets by short names, those that fit the base model: fetched once, into the library."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.environment.tokens import hub_token
from fastsd_lib.models import controls, registry
from fastsd_lib.models.controls import KnownControl

Say = Callable[[str], object]


def is_asked(text: str) -> bool:
    """Whether a field asks for any at all."""
    return text.strip().lower() not in ("", "none")


def check(text: str) -> None:
    """UserError for a word that names nothing for any base model."""
    for word in text.split(",") if is_asked(text) else ():
        if word.strip() and word.strip().lower() not in ("all", "t2i"):
            controls.check_purpose(word)


def chosen(text: str, family: str = "sd1", variant: str = "") -> tuple[KnownControl, ...]:
    """Those that a field names, between commas, for base models of this family (and variant, where that decides).

    A purpose ("canny") or a file's name; "all" = the usual one for each purpose, "t2i" = the T2I adapters; "none" and ""
    are none. UserError for what is unknown or for another family.
    """
    if not is_asked(text):
        return ()
    found: list[KnownControl] = []
    for word in (word.strip() for word in text.split(",") if word.strip()):
        if word.lower() == "all":
            found += controls.usual_controls(family, variant)
        elif word.lower() == "t2i":
            found += controls.adapters_for(family)
        else:
            found.append(controls.pick_control(word, family, variant))
    return tuple(dict.fromkeys(found))


def fetch(
    text: str,
    folder: Path,
    family: str = "sd1",
    say: Say = lambda line: None,
    root: Path | None = None,
    report: Report = silent,
    variant: str = "",
) -> list[Path]:
    """Have the chosen ones in `folder`; those that are there are not fetched again. `say` hears the sizes before.

    `root`: where a token may lie; None = the usual place.
    """
    wanted = chosen(text, family, variant)
    missing = [one for one in wanted if not (folder / one.file_name).is_file()]
    if missing:
        sizes = ", ".join(f"{one.purpose} {controls.shown_size(one.size_bytes)}" for one in missing)
        say(f"ControlNets to download: {controls.total_size(missing)} ({sizes})")
    for one in missing:
        found = registry.fetch_known(one, lambda: hub_token(root), report=report)
        read_tensor_file(found)  # a page in place of the file is found here
        with atomic_path(folder / one.file_name) as scratch:
            shutil.copyfile(found, scratch)
    return [folder / one.file_name for one in wanted]
