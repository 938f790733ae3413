from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core.file_kinds import PICTURE_KINDS, is_junk, kind_of, list_photos, with_article

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty file"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
        (PNG, "PNG"),
        (b"GIF89a", "GIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"RIFF\0\0\0\0WAVEfmt ", "WAV sound"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime video"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "MP4 video"),
        (b"BM6\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "BMP"),
        (b"BMW is a car, and this a note", "text file"),
        (b"P6\n2 2 255\n", "PPM"),
        (b"\xef\xbb\xbf  <!DOCTYPE HTML><title>", "web page"),
        (b"<html lang=en>", "web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns=', "SVG drawing"),
        (b"<?xml version='1.0'?><note/>", "text file"),
        ("Grüße".encode(), "text file"),
        ("Grüße".encode("utf-16"), "text file"),
        (b"%PDF-1.7", "PDF document"),
        (b"PK\3\4", "zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "7z archive"),
        (b"\x80\x02}q\0", "Python pickle"),
        (b"\1\2\3\4", "file of an unknown kind"),
    ],
)
def test_a_file_is_told_by_its_first_bytes(head, kind):
    assert kind_of(head) == kind


@given(st.binary(max_size=600))
def test_any_bytes_have_a_kind(head):
    assert kind_of(head)


def test_kinds_read_well_in_a_sentence():
    kinds = ["JPEG", "HEIC", "AVIF", "MP4 video", "SVG drawing", "web page", "empty file", "zip archive", "RAR archive",
             "Ogg sound or video", "MP3 sound", "ICO", "7z archive", "PNG"]  # fmt: skip
    assert [with_article(kind).split()[0] for kind in kinds] == [
        "a", "a", "an", "an", "an", "a", "an", "a", "a", "an", "an", "an", "a", "a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", [".DS_Store", "._cat.jpg", "Thumbs.db", "DESKTOP.INI", ".ipynb_checkpoints", "__MACOSX"]
)
def test_junk_is_known_in_any_case(name):
    assert is_junk(name) and not is_junk("cat.jpg")


def test_only_true_pictures_in_the_folder_itself_are_listed_by_name(tmp_path):
    for name in ("b.png", "a.weird", "C.PNG", ".hidden.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "deep.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to("b.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [path.name for path in list_photos(tmp_path)] == ["C.PNG", "a.weird", "b.png"]
    assert list_photos(tmp_path / "nothing") == [] == list_photos(tmp_path / "b.png")


def test_every_picture_kind_has_a_signature_that_yields_it():
    heads = [
        b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"RIFF1234WEBP", b"BM" + bytes(12) + b"\x28\0\0\0", b"II*\0",
        b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"\xff\x4f\xff\x51", b"\0\0\1\0", b"8BPS", b"qoif", b"P5 ", b"DDS ",
    ]  # fmt: skip
    assert {kind_of(head) for head in heads} == PICTURE_KINDS
