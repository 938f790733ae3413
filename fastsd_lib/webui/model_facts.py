"""What lies in the library, as rows of a table. Only headers are read, and only of files that the library lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.formats.lora_facts import top_tags
from fastsd_lib.models.identify import identify
from fastsd_lib.webui.context import ApiContext

MOST_WORDS = 12  # of a LoRA's training, shown


@dataclass(frozen=True)
class Row:
    """One file, or folder, of the library."""

    kind: str  # a key of KINDS
    name: str
    path: Path
    place: str  # where it lies, below the library's folder: never a path of the server
    family: str = ""
    size_bytes: int = 0
    hash: str = ""
    words: str = ""  # what a prompt says to wake it
    note: str = ""  # loaded, current, or what is wrong with it


def rows_of(context: ApiContext, kind: str = "") -> list[Row]:
    """All of one kind, or everything, in the order of KINDS. Files that cannot be read are listed with the reason."""
    kinds = [kind] if kind else list(KINDS)
    return [row for one in kinds for row in KINDS[one][1](context)]


def find_row(context: ApiContext, kind: str, name: str) -> Row:
    """By its name in the lists. UserError for anything else: the page names no paths."""
    if kind not in KINDS:
        raise UserError(f"There is no kind {kind[:50]!r}.", fix=f"take one of: {', '.join(KINDS)}.")
    found = next((row for row in rows_of(context, kind) if row.name == name), None)
    if found is None:
        raise UserError(f"There is no {KINDS[kind][0]} {name[:100]!r} here.", fix="choose one of the list.")
    return found


def _checkpoints(context: ApiContext) -> Iterator[Row]:
    shelf = context.service.shelf
    loaded = shelf.loaded()
    for one in shelf.models():
        family, note = (
            "",
            ", ".join(
                word
                for word, so in (("current", one.name == shelf.current), ("loaded", one.name in loaded))
                if so
            ),
        )
        try:
            seen = identify(one.path)
            family, size_bytes = seen.family, seen.size_bytes
        except (UserError, OSError) as error:
            size_bytes, note = _size(one.path), _short(error, one.path)
        place = _place(one.path, "checkpoints", context) or "comes with fastsd"
        digits = (one.known_sha256 or "")[:10]
        yield Row("checkpoints", one.name, one.path, place, _label(family), size_bytes, digits, "", note)


def _vaes(context: ApiContext) -> Iterator[Row]:
    for one in context.service.shelf.vaes():
        yield _plain("vaes", one.name, one.path, context)


def _loras(context: ApiContext) -> Iterator[Row]:
    networks = getattr(context.service.shelf.library, "networks", None)
    for one in networks.loras() if networks else []:
        yield Row(
            "loras",
            one.name,
            one.path,
            _place(one.path, "loras", context),
            _label(one.family),
            _size(one.path),
            str(one.metadata.get("sshs_model_hash", ""))[:12],
            trigger_words(one.metadata),
        )


def _embeddings(context: ApiContext) -> Iterator[Row]:
    networks = getattr(context.service.shelf.library, "networks", None)
    for one in networks.embeddings() if networks else []:
        place, note = _place(one.path, "embeddings", context), f"{one.count} vectors"
        yield Row("embeddings", one.name, one.path, place, _label(one.family), _size(one.path), one.sha256,
                  one.name, note)  # fmt: skip


def _controlnets(context: ApiContext) -> Iterator[Row]:
    controlnets = getattr(context.service.shelf.library, "controlnets", None)
    for one in controlnets.models() if controlnets else []:
        place = _place(one.path, "controlnets", context)
        yield Row("controlnets", one.name, one.path, place, _label(one.family), _size(one.path), one.hash)


def _upscalers(context: ApiContext) -> Iterator[Row]:
    from fastsd_lib.generation.upscale import upscalers  # torch

    for one in upscalers(context.service.shelf.folders.upscalers).values():
        if one.path is not None:
            row = _plain("upscalers", one.name, one.path, context)
            try:
                yield Row(**{**vars(row), "note": f"enlarges by {one.scale}"})
            except UserError as error:
                yield Row(**{**vars(row), "note": _short(error, one.path)})


#: kind -> (one of them in words, how they are listed)
KINDS: dict[str, tuple[str, Callable[[ApiContext], Iterator[Row]]]] = {
    "checkpoints": ("checkpoint", _checkpoints),
    "vaes": ("VAE", _vaes),
    "loras": ("LoRA", _loras),
    "embeddings": ("embedding", _embeddings),
    "controlnets": ("ControlNet", _controlnets),
    "upscalers": ("upscaler", _upscalers),
}


def trigger_words(metadata: Mapping[str, Any]) -> str:
    """What a LoRA was taught by, as far as its file says it: its own phrase, else the words of its captions."""
    said = metadata.get("modelspec.trigger_phrase") or metadata.get("ss_trigger_words")
    if isinstance(said, list):
        said = ", ".join(str(one) for one in said)
    if said:
        return str(said)[:500]
    return ", ".join(tag[:60] for tag, _ in top_tags(metadata, MOST_WORDS))


def _plain(kind: str, name: str, path: Path, context: ApiContext) -> Row:
    return Row(kind, name, path, _place(path, kind, context), size_bytes=_size(path))


def _place(path: Path, kind: str, context: ApiContext) -> str:
    """Its folder by the library's own name, and the subfolder; "" outside of the library."""
    for folder in getattr(context.service.shelf.folders, kind):
        if path.is_relative_to(folder):
            below = path.parent.relative_to(folder).as_posix()
            name = f"{folder.parent.name}/{folder.name}" if folder.parent.name == "models" else folder.name
            return name if below == "." else f"{name}/{below}"
    return ""


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return os.path.getsize(path)
    except OSError:
        return 0


def _label(family: str) -> str:
    return FAMILY_NAMES.get(family, family)


def _short(error: Exception, path: Path) -> str:
    """What is wrong, without the path: the page shows none."""
    message = error.message if isinstance(error, UserError) else error.strerror or str(error)
    return message.replace(str(path), path.name).replace(str(path.parent), "")[:300]
