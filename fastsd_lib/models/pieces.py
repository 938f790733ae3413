"""As much of a model file as decides what it goes with, from whatever describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fastsd_lib.core.files import read_json
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.core.text import escaped

if TYPE_CHECKING:
    from fastsd_lib.models.identify import Description


@dataclass(frozen=True)
class Piece:
    """As much of a file as decides what it goes with; an empty text is not known."""

    kind: str = "checkpoint"
    family: str = ""
    variant: str = ""
    prediction: str = ""
    name: str = ""  # for sentences
    marks: tuple[str, ...] = ()  # of kinds.Kind

    @property
    def shown(self) -> str:
        return escaped(self.name)[:300]

    @property
    def family_name(self) -> str:
        return FAMILY_NAMES.get(self.family, self.family)


class HasFamily(Protocol):
    """ModelFiles, Kind, KnownModel, KnownControl ..."""

    @property
    def family(self) -> str: ...


def piece_of(thing: Piece | Description | HasFamily | str, name: str = "") -> Piece:
    """A Piece from a Description, a Kind, model files, a known model or control, or a family's short name."""
    if isinstance(thing, str):
        return Piece(family=thing, name=name)
    if isinstance(thing, Piece):
        return replace(thing, name=name) if name else thing
    kind = getattr(thing, "kind", "checkpoint")
    told = thing if isinstance(kind, str) else kind  # a Description holds a Kind
    path = getattr(thing, "path", None)
    return Piece(
        kind if isinstance(kind, str) else kind.kind,
        told.family,
        getattr(told, "variant", ""),
        getattr(thing, "prediction", ""),
        name or getattr(thing, "name", "") or (path.name if isinstance(path, Path) else ""),
        getattr(told, "marks", ()),
    )


def native_px_of(model: Description) -> int:
    """The side of the pictures that this very model learned from, as its configs or metadata say; 0 when they do not."""
    said = str(model.metadata.get("modelspec.resolution", "")).partition("x")[0]
    unet, vae = (model.path / part / "config.json" for part in ("unet", "vae"))
    if model.layout != "diffusers" or not (unet.is_file() and vae.is_file()):
        return int(said) if said.isdigit() else 0
    side, widths = read_json(unet).get("sample_size"), read_json(vae).get("block_out_channels")
    return side * 2 ** (len(widths) - 1) if isinstance(side, int) and isinstance(widths, list) else 0
