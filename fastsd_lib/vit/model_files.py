"""Where a model's files lie: found by name, fetched from the Hub, and brought into one layout where they are not in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import CONFIG, WEIGHTS

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).with_name("embedded")
ALIASES = {
    "vit-b16-224": "google/vit-base-patch16-224",
    "vit-l16-384": "google/vit-large-patch16-384",
}
Token = str | Callable[[], str | None] | None
FLOATS = {"F64", "F32", "F16", "BF16"}
EXPORT = "export.json"  # in <model>/exports/<name>/


def find(name_or_path: str | Path, token: Token, revision: str | None) -> tuple[Path, str]:
    """(the folder in transformers' layout, the name to show)."""
    word = str(name_or_path).strip()
    if word == EMBEDDED:
        if not (EMBEDDED_FOLDER / CONFIG).is_file():
            raise UserError(
                f"The embedded ViT is not there ({EMBEDDED_FOLDER}).", fix="install the package again."
            )
        return EMBEDDED_FOLDER, EMBEDDED
    path = Path(word).expanduser()
    if word and path.exists():
        return _local(path)
    raise UserError(f"No model {word!r}.", fix="take a folder.")


def _local(path: Path) -> tuple[Path, str]:
    folder = path.parent if path.is_file() else path
    if (folder / EXPORT).is_file():  # an export of the model two folders up
        folder = folder.parent.parent
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no weights.", fix=f"it needs {WEIGHTS}.")
    return folder, folder.resolve().name
