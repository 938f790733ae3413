"""Photos from files, folders and zips into one folder of prepared copies; the originals are only read.

A prepared copy is upright RGB at its own resolution, without metadata: PNG where the source was lossless,
else JPEG of high quality. It is never cropped. `.photos.jsonl` beside the copies says which source each
one came from; a line is written before its copy appears, so a crash leaves a line without a copy, which is
dropped on reading, never a copy that would be added twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.files import atomic_path, plain_disk_errors, sha256_file
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped, safe_stem, same_name
from fastsd_lib.images.captions import MAX_BYTES, decode_caption, has_caption, write_caption
from fastsd_lib.images.gather import FoundPhoto, FoundText, gather, text_key
from fastsd_lib.images.load import DEFAULT_LIMITS, Photo, PhotoError, PhotoLimits, photo_kind, read_photo
from fastsd_lib.images.report import PhotoNote, PhotoReport, Rejected

__all__ = ["add_photos", "list_photos"]

LEDGER = ".photos.jsonl"
MAX_SIDE_PX = 4096  # far above any training resolution; more would only fill the Drive
JPEG_QUALITY = 95
_LOOK_PX = 8
_SAME_LOOK = 1.5  # mean difference of two 8x8 pictures, of 255


def add_photos(
    sources: Iterable[Path],
    into: Path,
    captions_into: Path,
    report: Report = silent,
    *,
    recursive: bool = False,
    limits: PhotoLimits = DEFAULT_LIMITS,
) -> PhotoReport:
    """Copy the photos in `sources` (files, folders, zips) into the folder `into`, prepared for training.

    A `.txt` beside a photo, with the same stem, becomes its caption unless it has one. What was added before
    is recognised by content and left as it is, so the same call again changes nothing. Whatever cannot be
    used is in the report, with a reason; the rest goes on. UserError only for a source that is not there, sources
    without any photo, and a disk that cannot be written.
    """
    sources = [Path(source) for source in sources]
    with plain_disk_errors("store the photos"), ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsd-")))
        found = gather(sources, recursive=recursive, scratch=scratch, keep_out=into, stack=stack)
        into.mkdir(parents=True, exist_ok=True)
        shelf = _Shelf(into, captions_into, limits)
        shelf.rejected += found.rejected
        shelf.notes += found.notes
        texts = {(text.folder, text_key(text.name)): text for text in found.texts}
        for done, photo in enumerate(found.photos):
            report(ProgressEvent("photos", done, len(found.photos), {"photo": escaped(photo.name)}))
            stored = shelf.add(photo)
            # cat.txt, or cat.jpg.txt; a caption chosen by itself fits a photo from anywhere.
            for key in (text_key(photo.name), same_name(photo.name)):
                if stored and (text := texts.pop((photo.folder, key), None)):
                    shelf.caption(stored, text)
        shelf.caption_the_rest(texts.values())
        if found.photos:
            report(ProgressEvent("photos", len(found.photos), len(found.photos)))
    if not (found.photos or found.texts or shelf.rejected):
        names = ", ".join(escaped(str(source)) for source in sources) or "nothing"
        hint = (
            "; its folders were not entered, ask for sub-folders as well (recursive)" if found.notes else ""
        )
        raise UserError(
            f"There are no photos in {names}{hint}.",
            fix="name photos, a folder with photos, or a zip of them.",
        )
    return PhotoReport(
        accepted=tuple(shelf.accepted),
        rejected=tuple(shelf.rejected),
        already_here=tuple(shelf.already_here),
        notes=tuple(shelf.notes),
        captions=shelf.captions,
        ignored=found.ignored,
    )


@dataclass(frozen=True)
class _Entry:
    """A line of the ledger: a stored copy and where it came from."""

    stored: str
    name: str  # of the source
    source: str  # sha256 of its bytes
    pixels: str  # sha256 of the prepared picture: the same photo in another file
    look: str  # the picture at 8x8, in hex: for almost the same photo


class _Shelf:
    """The folder of copies while photos are put into it, and what became of each."""

    def __init__(self, folder: Path, captions_dir: Path, limits: PhotoLimits) -> None:
        self.folder, self.captions_dir, self.limits = folder, captions_dir, limits
        self.accepted: list[Path] = []
        self.already_here: list[Path] = []
        self.rejected: list[Rejected] = []
        self.notes: list[PhotoNote] = []
        self.captions = 0
        here = list_photos(folder)
        self._taken = {same_name(path.stem) for path in here}
        self._entries = _read_ledger(folder / LEDGER, {path.name for path in here})
        self._by_source = {entry.source: entry for entry in self._entries}
        self._by_pixels = {entry.pixels: entry for entry in self._entries}
        # Photos of older sessions, and those put here by hand, are known by their bytes.
        listed = {entry.stored for entry in self._entries}
        self._unlisted = [(path.stat().st_size, path) for path in here if path.name not in listed]

    def add(self, found: FoundPhoto) -> Path | None:
        """The copy of one photo, new or old; None when it was refused."""
        try:
            with found.open() as path:
                return self._add(found.name, path)
        except PhotoError as error:
            self.rejected.append(Rejected(escaped(found.name), error.code, error.message))
        except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
            if error.filename and Path(error.filename).is_relative_to(self.folder):
                raise
            reason = f"{escaped(found.name)} cannot be read: {error.strerror}."
            self.rejected.append(Rejected(escaped(found.name), "unreadable", reason))
        return None

    def _add(self, name: str, path: Path) -> Path:
        photo_kind(path)  # a film of 5 GB is refused before it is read whole
        source = sha256_file(path)
        if entry := self._by_source.get(source):
            return self._known(name, self.folder / entry.stored)
        for size, other in self._unlisted:
            if size == path.stat().st_size and sha256_file(other) == source:
                return self._known(name, other)
        photo = read_photo(path, limits=self.limits, max_side_px=MAX_SIDE_PX)
        pixels = hashlib.sha256(repr(photo.image.size).encode() + photo.image.tobytes()).hexdigest()
        if entry := self._by_pixels.get(pixels):
            return self._known(name, self.folder / entry.stored)
        return self._store(name, photo, source, pixels)

    def _known(self, name: str, stored: Path) -> Path:
        if stored in self.accepted:
            text = f"the same picture as {escaped(stored.name)}: kept once"
            self.notes.append(PhotoNote(escaped(name), "duplicate", text))
        elif stored not in self.already_here:
            self.already_here.append(stored)
        return stored

    def _store(self, name: str, photo: Photo, source: str, pixels: str) -> Path:
        stem = safe_stem(Path(name).stem)
        if not stem or same_name(stem) in self._taken:
            stem = f"{stem or 'photo'}~{source[:8]}"  # captions.py knows this mark
        stored = self.folder / f"{stem}{'.jpg' if photo.lossy else '.png'}"
        look = np.asarray(photo.image.resize((_LOOK_PX, _LOOK_PX), Image.Resampling.BOX, reducing_gap=2.0))
        self._note(name, photo, look)
        entry = _Entry(stored.name, escaped(name), source, pixels, look.tobytes().hex())
        with (self.folder / LEDGER).open("a", encoding="utf-8") as ledger:
            ledger.write("\n" + json.dumps(asdict(entry), ensure_ascii=False))  # "\n" first: ends a torn line
        with atomic_path(stored) as scratch:
            if photo.lossy:
                photo.image.save(scratch, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            else:
                photo.image.save(scratch, "PNG")
        self._taken.add(same_name(stem))
        self._entries.append(entry)
        self._by_source[source] = self._by_pixels[pixels] = entry
        self.accepted.append(stored)
        return stored

    def _note(self, name: str, photo: Photo, look: np.ndarray) -> None:
        self.notes += [PhotoNote(escaped(name), "changed", text) for text in photo.notes]
        if not self._entries:
            return
        looks = np.frombuffer(bytes.fromhex("".join(entry.look for entry in self._entries)), np.uint8)
        difference = np.abs(looks.reshape(len(self._entries), -1).astype(np.int16) - look.reshape(-1)).mean(
            axis=1
        )
        nearest = int(difference.argmin())
        if difference[nearest] < _SAME_LOOK:
            twin = escaped(self._entries[nearest].stored)
            text = f"looks almost like {twin}: remove one if they are the same photo"
            self.notes.append(PhotoNote(escaped(name), "near_duplicate", text))

    def caption(self, stored: Path, text: FoundText) -> None:
        """Keep `text` as the caption of a stored photo, unless it has one."""
        if has_caption(self.captions_dir, stored):
            return
        try:
            data = text.read()
        except Exception as error:  # a damaged zip entry raises what its codec likes
            self.notes.append(
                PhotoNote(escaped(text.name), "caption", f"cannot be read: {escaped(str(error))}")
            )
            return
        if len(data) > MAX_BYTES:
            self.notes.append(
                PhotoNote(escaped(text.name), "caption", "is larger than 64 kB: that is no caption")
            )
            return
        caption, warning = decode_caption(data)
        if not caption:
            warning = "is empty: the instance prompt alone is used"
        if warning:
            self.notes.append(PhotoNote(escaped(text.name), "caption", warning))
        if caption:
            write_caption(self.captions_dir, stored, caption)
            self.captions += 1

    def caption_the_rest(self, texts: Iterable[FoundText]) -> None:
        """Captions that came alone belong to photos added earlier, by the name these had or have."""
        by_stem = {text_key(path.name): path for path in list_photos(self.folder)}
        by_stem |= {text_key(entry.name): self.folder / entry.stored for entry in self._entries}
        for text in texts:
            if photo := by_stem.get(text_key(text.name)):
                self.caption(photo, text)
            else:
                self.notes.append(PhotoNote(escaped(text.name), "caption", "is a caption without a photo"))


def _read_ledger(path: Path, stored_names: set[str]) -> list[_Entry]:
    """The lines whose copy exists; a damaged line costs only that its photo may be added twice."""
    entries = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            entry = _Entry(**json.loads(line))
            look = bytes.fromhex(entry.look)
        except (ValueError, TypeError):
            continue
        if entry.stored in stored_names and len(look) == _LOOK_PX * _LOOK_PX * 3:
            entries.append(entry)
    return entries
