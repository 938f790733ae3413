"""Where a model's files lie: found by name, fetched from the Hub, and copied into one layout where they are not in it.

The layout is transformers': config.json, model.safetensors, preprocessor_config.json. Pickled weights and timm's own
names are brought into it once, in the user's cache; neither the Hub's cache nor a folder of the user's is written to.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, plain_disk_errors, read_json
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped
from fastsd_lib.models.hub_repository import fetch_files
from fastsd_lib.models.known_models import HUB_ID
from fastsd_lib.vit.calibration_file import NAME as FACTS
from fastsd_lib.vit.config import CONFIG, PROCESSOR, WEIGHTS
from fastsd_lib.vit.whole_folder import whole_folder

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).with_name("embedded")
TRAIN_EMBEDDED = "python3 -m benchmarks.tiny_vit.train"
ALIASES = {
    "vit-b16-224": "google/vit-base-patch16-224",
    "vit-l16-384": "google/vit-large-patch16-384",
}
INDEX = "model.safetensors.index.json"  # of weights in several files
PICKLED = "pytorch_model.bin"
EXPORT = "export.json"  # seals a folder that vit/exports.py wrote: a model in another format
FLOATS = {"F64", "F32", "F16", "BF16"}
_FORMAT = 1  # raise it when copies are made in another way
_COPY_SIGN = "made_by_fastsd.json"

Token = str | Callable[[], str | None] | None


def find(name_or_path: str | Path, token: Token = None, revision: str | None = None) -> tuple[Path, str]:
    """(the folder in transformers' layout, the name to show). UserError for whatever is no model."""
    word = str(name_or_path).strip()
    if word == EMBEDDED:
        if not (EMBEDDED_FOLDER / CONFIG).is_file():
            raise UserError(
                f"The embedded ViT is not there ({EMBEDDED_FOLDER}).", fix=f"train it: {TRAIN_EMBEDDED}"
            )
        return EMBEDDED_FOLDER, EMBEDDED
    path = expanded(word)
    if word and path.exists():
        folder = path.parent if path.is_file() else path
        return in_our_layout(folder, token), folder.resolve().name
    hub_id = ALIASES.get(word, word)
    if path.is_absolute() or path.suffix in (".safetensors", ".bin") or not HUB_ID.fullmatch(hub_id):
        raise _unknown(word)
    return in_our_layout(
        fetch_files(hub_id, wanted_files, token, sign=CONFIG, revision=revision), token
    ), hub_id


def in_our_layout(folder: Path, token: Token = None) -> Path:
    """`folder` where it has the layout or is an export; else the folder of a copy that has it."""
    if (folder / EXPORT).is_file() or not (folder / CONFIG).is_file():
        return folder  # what is missing is told by those who read it
    if _is_timm(folder):
        from fastsd_lib.vit import timm_weights

        return _copied(folder, folder / WEIGHTS, lambda to: timm_weights.convert(folder, to, token))
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return folder
    if (folder / PICKLED).is_file():
        return _copied(folder, folder / PICKLED, lambda to: _unpickle(folder, to))
    raise _no_weights(str(folder), [path.name for path in folder.iterdir()])


def wanted_files(hub_id: str, files: Iterable[str]) -> list[str]:
    """Of a repository's files, the small ones of a model and its safetensors, or for lack of them its pickle."""
    files = list(files)
    if CONFIG not in files:
        raise UserError(
            f"{hub_id} on Hugging Face is not a transformers model: it has no {CONFIG}.",
            fix="take one from huggingface.co/models?pipeline_tag=image-classification",
        )
    small = [name for name in (CONFIG, PROCESSOR, FACTS) if name in files]
    if WEIGHTS in files:
        return [*small, WEIGHTS]
    if INDEX in files:
        shards = [name for name in files if "/" not in name and name.endswith(".safetensors")]
        return [*small, INDEX, *shards]
    if PICKLED in files:
        return [*small, PICKLED]
    raise _no_weights(f"{hub_id} on Hugging Face", files)


def copies_folder() -> Path:
    """Where copies of models lie that had another layout; may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsd" / "vit" / "models"


def _copied(folder: Path, weights: Path, make: Callable[[Path], None]) -> Path:
    """The folder that `make` once filled for these very files; a newer copy replaces the older ones."""
    made_from = fingerprint(str(folder.resolve()))
    parts = [
        path for path in (weights, folder / CONFIG, folder / PROCESSOR, folder / FACTS) if path.is_file()
    ]
    state = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in parts]
    copy = copies_folder() / f"{made_from}-{fingerprint([_FORMAT, state])}"
    if (copy / _COPY_SIGN).is_file():
        return copy
    with plain_disk_errors(f"copy {weights.name}"), whole_folder(copy, ours=_is_copy) as scratch:
        make(scratch)
        (scratch / _COPY_SIGN).write_text(f'{{"schema": {_FORMAT}}}\n')
    for older in copies_folder().glob(f"{made_from}-*"):
        if older != copy and _is_copy(older):
            shutil.rmtree(older, ignore_errors=True)
    return copy


def _is_copy(folder: Path) -> bool:
    return (folder / _COPY_SIGN).is_file()


def _unpickle(folder: Path, to: Path) -> None:
    """Pickled weights as safetensors: nothing in them is executed, and what asks for that is refused by name."""
    from fastsd_lib.formats.ckpt_file import safetensors_copy

    safetensors_copy(folder / PICKLED, cache=to).rename(to / WEIGHTS)
    for name in (CONFIG, PROCESSOR, FACTS):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)


def _is_timm(folder: Path) -> bool:
    if not (folder / WEIGHTS).is_file():
        return False
    config = read_json(folder / CONFIG)
    return (
        isinstance(config, dict)
        and "model_type" not in config
        and isinstance(config.get("architecture"), str)
    )


def _no_weights(where: str, files: Iterable[str]) -> UserError:
    names = set(files)
    if f"{PICKLED}.index.json" in names:
        why = "its weights are pickled, in several files"
    elif names & {"tf_model.h5", "flax_model.msgpack"}:
        why = "its weights are for TensorFlow or Flax only"
    else:
        why = "it holds no weights"
    return UserError(
        f"{where} cannot be opened: {why}.",
        fix=f"take a model with {WEIGHTS}, or save it anew with transformers' save_pretrained.",
    )


def _unknown(word: str) -> UserError:
    shown = escaped(word[:200])
    if "/" in word or "\\" in word:
        return UserError(
            f"There is no model folder {shown}.", fix="check the path; ~ stands for your home folder."
        )
    near = difflib.get_close_matches(word, [EMBEDDED, *ALIASES], n=3, cutoff=0.4) or [EMBEDDED, *ALIASES]
    return UserError(
        f"No ViT model {shown!r} (nearest: {', '.join(near)}).",
        fix="take one of these, a model folder, or a Hugging Face id such as google/vit-base-patch16-224.",
    )
