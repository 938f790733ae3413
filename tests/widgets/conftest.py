"""A session with three small photos, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastsd_lib.sessions.session import Session
from fastsd_lib.workflows import dreambooth


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Three photos of 120 x 80 that differ, and one file that only claims to be one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("on a sofa", "red"), ("in the garden", "green"), ("IMG_0001", "blue")):
        picture = Image.new("RGB", (120, 80), "white")
        picture.paste(colour, (70, 20, 110, 60))
        picture.save(folder / f"{name}.png")
    (folder / "letter.jpg").write_text("dear diary")
    return folder


@pytest.fixture
def empty_session(tmp_path: Path) -> Session:
    return dreambooth.open_session("cat", tmp_path)


@pytest.fixture
def session(empty_session: Session, photo_folder: Path) -> Session:
    dreambooth.add_photos(empty_session, photo_folder)
    return empty_session
