"""A folder of pictures with classes, whatever they come as: a saved dataset, parquet files, a name on Hugging Face."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.file_kinds import kind_of
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped, safe_stem
from fastsd_lib.vit.folder_data import ImageFolder, open_image_folder
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.whole_folder import whole_folder

_PARTS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
_DONE = ".fastsd_unpacked"
_FIX = "name a folder of class folders, parquet files, a saved dataset, or a dataset of Hugging Face."


def open_training_data(config: VitTrainConfig, out: Path) -> ImageFolder:
    """`config.data`, split as the config says; a dataset's pictures are first written to `out`/pictures, once."""
    if not config.data.strip():
        raise UserError(
            "No pictures are named to learn from.", fix="set data to a folder with one folder per class."
        )
    path = expanded(config.data)
    folder = path if _is_image_folder(path) else _unpacked(path, config, out / "pictures")
    return open_image_folder(
        folder,
        validation=config.validation,
        test=config.test,
        seed=config.seed,
        group_by=config.group_by or None,
    )


def _is_image_folder(path: Path) -> bool:
    """A folder, and neither a dataset that `datasets` saved nor one of parquet files alone."""
    if path.is_file():
        return False
    if not path.exists():
        if (
            os.sep in str(path).rstrip("/")
            and str(path).count("/") == 1
            and not str(path).startswith((".", "~"))
        ):
            return False  # owner/name
        raise UserError(f"There is no folder {path}.", fix=_FIX)
    saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
    return not saved and not any(path.glob("*.parquet"))


def _unpacked(path: Path, config: VitTrainConfig, folder: Path) -> Path:
    """The pictures of a dataset as files, byte for byte; by the first of several processes."""
    if (folder / _DONE).is_file():
        return folder
    if int(os.environ.get("RANK", "0")):
        for _ in range(36_000):
            if (folder / _DONE).is_file():
                return folder
            time.sleep(0.1)
    require("datasets", group="vit")
    parts = _load(path, config.data)
    with whole_folder(folder, ours=lambda held: (held / _DONE).is_file()) as scratch:
        for part, rows in parts.items():
            below = scratch / _PARTS[part] if len(parts) > 1 else scratch
            _write(rows, below)
        (scratch / _DONE).write_text(config.data, encoding="utf-8")
    return folder


def _load(path: Path, name: str) -> dict[str, Any]:
    import datasets

    try:
        if path.is_file() or (path.is_dir() and any(path.glob("*.parquet"))):
            found = [path] if path.is_file() else sorted(path.glob("*.parquet"))
            by_part: dict[str, list[str]] = {}
            for one in found:
                part = next((key for key in _PARTS if one.stem.startswith(key)), "train")
                by_part.setdefault(part, []).append(str(one))
            held = datasets.load_dataset("parquet", data_files=by_part)
        elif path.is_dir():
            held = datasets.load_from_disk(str(path))
        else:
            held = datasets.load_dataset(name)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no network, no such name, a damaged file
        said = (
            escaped(str(error).strip().splitlines()[0][:160]) if str(error).strip() else type(error).__name__
        )
        raise UserError(f"{name} cannot be read as a dataset: {said}", fix=_FIX) from None
    parts = dict(held) if isinstance(held, datasets.DatasetDict) else {"train": held}
    parts = {part: rows for part, rows in parts.items() if part in _PARTS}
    if "train" not in parts:
        raise UserError(f"{name} has no part called train.", fix=_FIX)
    return parts


def _write(rows: Any, folder: Path) -> None:
    import datasets

    pictures = next((key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)), None)
    labels = next((key for key in ("label", "labels", "class", "fine_label") if key in rows.features), None)
    if pictures is None:  # plain parquet: {"bytes", "path"} in a column that nobody declared to be pictures
        pictures = next((key for key in ("image", "img", "picture") if key in rows.features), None)
        if pictures is not None:
            rows = rows.cast_column(pictures, datasets.Image())
    if pictures is None or labels is None:
        raise UserError(
            f"The dataset has the columns {', '.join(map(str, rows.features))}; none of them holds pictures and labels.",
            fix="name the columns image and label.",
        )
    names = getattr(rows.features[labels], "names", None)
    rows = rows.cast_column(pictures, datasets.Image(decode=False))
    for number, (picture, label) in enumerate(_pairs(rows, pictures, labels)):
        kind = folder / (safe_stem(str(names[label] if names else label)) or f"class_{label}")
        kind.mkdir(parents=True, exist_ok=True)
        data = picture["bytes"] or Path(picture["path"]).read_bytes()
        suffix = _SUFFIX.get(kind_of(data[:512]), ".img")
        (kind / f"{number:07d}{suffix}").write_bytes(io.BytesIO(data).getbuffer())


def _pairs(rows: Any, pictures: str, labels: str) -> Iterable[tuple[dict[str, Any], Any]]:
    for row in rows:
        yield row[pictures], row[labels]
