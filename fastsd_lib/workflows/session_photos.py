"""The photos of a session as a page shows and changes them: crops, captions, deleting."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.sessions.session import Session
from fastsd_lib.webui.trainings import PhotoShown
from fastsd_lib.workflows import dreambooth

if TYPE_CHECKING:
    from fastsd_lib.images.crop import CropBox

CROP_PX = 192
MOST_CROPS = 400  # kept in memory, 100 kB each


class ShownPhotos:
    """Small pictures of what training will see, kept because photos are slow to open."""

    def __init__(self) -> None:
        self._crops: OrderedDict[Any, Any] = OrderedDict()

    def shown(self, session: Session) -> list[PhotoShown]:
        from fastsd_lib.images.captions import read_caption

        with plain_disk_errors("look at the photos"):
            crops = dreambooth.crop_photos(session)
            return [
                PhotoShown(
                    photo.name,
                    self._crop(photo, crops[photo.name]),
                    crops[photo.name].reason,
                    read_caption(session.captions, photo),
                )
                for photo in dreambooth.photos(session)
            ]

    def _crop(self, photo: Path, box: CropBox) -> Any:
        from fastsd_lib.images.crop import crop_to
        from fastsd_lib.images.load import open_photo

        seen = photo.stat()
        key = str(photo), seen.st_mtime_ns, seen.st_size, box.edges
        found = self._crops.get(key)
        if found is None:
            found = self._crops[key] = crop_to(open_photo(photo), box, CROP_PX)
            while len(self._crops) > MOST_CROPS:
                self._crops.popitem(last=False)
        return found


def delete(session: Session, photo: str) -> None:
    """Remove a photo and its caption from the session; the user's own file is elsewhere."""
    path = _photo(session, photo)
    with plain_disk_errors("delete the photo"):
        path.unlink()
        (session.captions / f"{path.stem}.txt").unlink(missing_ok=True)


def set_caption(session: Session, photo: str, caption: str) -> None:
    from fastsd_lib.images.captions import write_caption

    path = _photo(session, photo)
    with plain_disk_errors("write the caption"):
        write_caption(session.captions, path, caption)


def _photo(session: Session, name: str) -> Path:
    for photo in dreambooth.photos(session):
        if photo.name == name:
            return photo
    raise UserError(f"Session {session.name!r} has no photo {name!r}.", fix="choose one of those shown.")
