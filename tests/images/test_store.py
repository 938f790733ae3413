from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.images.captions import caption_from_filename, read_caption
from fastsd_lib.images.store import add_photos


@pytest.fixture
def add(tmp_path):
    """add(sources...) puts them into tmp_path/session and returns the report."""

    def call(*sources, **options):
        into = tmp_path / "session" / "instance_images"
        return add_photos(sources, into, tmp_path / "session" / "captions", **options)

    call.photos = lambda: list_photos(tmp_path / "session" / "instance_images")
    call.captions = tmp_path / "session" / "captions"
    return call


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def codes(report) -> dict[str, str]:
    return {one.name: one.code for one in report.rejected}


def test_photos_of_a_folder_are_copied_upright_and_bare_and_the_originals_stay(add, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "at home"
    photo("from/cat.JPG", exif=exif, quality=95)
    photo("from/dog.png", seed=1)
    before = snapshot(tmp_path / "from")
    report = add(tmp_path / "from")
    assert [path.name for path in report.accepted] == ["cat.jpg", "dog.png"]
    assert report.rejected == () and report.notes == ()
    assert snapshot(tmp_path / "from") == before
    with Image.open(add.photos()[0]) as cat:
        assert cat.size == (100, 160)
        assert not cat.getexif()
    assert b"at home" not in add.photos()[0].read_bytes()


def test_lossless_sources_keep_every_pixel(add, photo):
    source = photo("p.bmp", (200, 120))
    (stored,) = add(source).accepted
    assert stored.suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(stored)), np.asarray(Image.open(source)))


def test_adding_the_same_again_changes_nothing(add, photo, tmp_path):
    for seed in range(3):
        photo(f"from/{seed}.jpg", seed=seed)
    add(tmp_path / "from")
    before = snapshot(tmp_path / "session")
    report = add(tmp_path / "from")
    assert report.accepted == () and len(report.already_here) == 3
    assert snapshot(tmp_path / "session") == before
    assert report.lines()[0] == "0 photos added, 3 already here."


def test_a_photo_that_is_here_is_known_by_its_bytes_without_decoding_it(add, photo, tmp_path):
    source = photo("cat.jpg")
    add(source)
    ledger = tmp_path / "session/instance_images/.photos.jsonl"
    entry = json.loads(ledger.read_text())
    ledger.write_text(json.dumps(entry | {"pixels": "of another picture"}))
    assert len(add(source).already_here) == 1


def test_a_photo_removed_from_the_session_can_be_added_again(add, photo):
    source = photo("cat.jpg")
    (stored,) = add(source).accepted
    stored.unlink()
    assert add(source).accepted == (stored,)


def test_the_same_picture_twice_is_kept_once_whatever_the_file(add, photo, tmp_path):
    first = photo("from/a.png")
    (tmp_path / "from/b.png").write_bytes(first.read_bytes())
    photo("from/c.bmp")
    report = add(tmp_path / "from")
    assert [path.name for path in report.accepted] == ["a.png"]
    assert {note.name: note.code for note in report.notes} == {"b.png": "duplicate", "c.bmp": "duplicate"}
    assert "a.png" in report.notes[0].text


def test_almost_the_same_picture_is_kept_and_reported(add, photo):
    report = add(photo("a.png"), photo("b.jpg", quality=60), photo("other.png", seed=9))
    assert len(report.accepted) == 3
    assert [(note.name, note.code) for note in report.notes] == [("b.jpg", "near_duplicate")]


def test_a_legacy_photo_that_was_copied_by_hand_is_recognised(add, photo, tmp_path):
    source = photo("from/cat.jpg")
    legacy = tmp_path / "session/instance_images/phtmejhn (1).jpg"
    legacy.parent.mkdir(parents=True)
    legacy.write_bytes(source.read_bytes())
    report = add(source)
    assert report.accepted == () and report.already_here == (legacy,)


def test_name_twins_are_both_kept_under_names_no_file_system_confuses(add, photo):
    sources = [photo("one/A.png"), photo("two/a.PNG", seed=1), photo("three/a.jpg", seed=2)]
    report = add(*sources)
    names = [path.name for path in report.accepted]
    assert names[0] == "A.png"
    assert len({Path(name).stem.casefold() for name in names}) == 3
    assert all(caption_from_filename(Path(name).stem).casefold() == "a" for name in names)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("phtmejhn (1).png", "phtmejhn (1).png"),
        ("кот на диване.png", "кот на диване.png"),
        ("🐈 猫.png", "🐈 猫.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("-rf $(reboot) 'x'.png", "rf $(reboot) 'x'.png"),
        ("a\nb\tc\x1b[31m.png", "a b c.png"),
        ("photo\u202egnp.png", "photognp.png"),
        ("CON.png", "photo CON.png"),
        ("...png", None),
        ("\u200b.png", None),
        ("x" * 240 + ".png", "x" * 150 + ".png"),
    ],
)
def test_names_stay_readable_and_become_safe(add, tmp_path, name, kept):
    data = io.BytesIO()
    Image.effect_noise((80, 80), 50).save(data, "PNG")
    folder = tmp_path / "from"
    folder.mkdir()
    try:
        (folder / name).write_bytes(data.getvalue())
    except OSError:
        raise AssertionError("the test's own disk refuses this name") from None
    report = add(folder / name)
    (stored,) = report.accepted
    assert stored.name == kept or (kept is None and stored.name.startswith("photo~"))
    assert "\x1b" not in "".join(report.lines())


def test_captions_follow_their_photos_and_lone_ones_are_said(add, photo, tmp_path):
    photo("from/cat.jpg")
    photo("from/dog.png", seed=1)
    photo("from/bird.png", seed=2)
    (tmp_path / "from/cat.txt").write_bytes(b"\xef\xbb\xbfa cat\r\non a sofa\0")
    (tmp_path / "from/dog.png.txt").write_bytes("ein Hund".encode("utf-16"))
    (tmp_path / "from/nobody.txt").write_text("x")
    (tmp_path / "from/bird.txt").write_bytes(b"a bird \xff\xfe\xfa")
    report = add(tmp_path / "from")
    stored = {path.stem: read_caption(add.captions, path) for path in report.accepted}
    assert stored["cat"] == "a cat on a sofa"
    assert stored["dog"] == "ein Hund"
    assert stored["bird"].startswith("a bird \ufffd")
    assert report.captions == 3
    assert {note.name: note.text.split(":")[0] for note in report.notes} == {
        "bird.txt": "it is not UTF-8 text",
        "nobody.txt": "is a caption without a photo",
    }


def test_a_caption_in_the_session_is_never_overwritten_but_a_missing_one_is_brought_later(
    add, photo, tmp_path
):
    source = photo("from/cat.jpg")
    (stored,) = add(source).accepted
    (tmp_path / "later").mkdir()
    (tmp_path / "later/cat.txt").write_text("first")
    assert add(tmp_path / "later/cat.txt").captions == 1
    (tmp_path / "from/cat.txt").write_text("second")
    assert add(source).captions == 0
    assert read_caption(add.captions, stored) == "first"


def test_an_endless_caption_is_not_read(add, photo, tmp_path):
    source = photo("cat.jpg")
    (tmp_path / "cat.txt").write_text("x" * 70_000)
    report = add(source)
    assert report.captions == 0 and len(report.accepted) == 1
    assert "larger than 64 kB" in report.notes[0].text


def test_junk_is_counted_and_every_other_stray_file_gets_a_line(add, photo, tmp_path):
    photo("from/cat.jpg")
    for junk in ("Thumbs.db", ".DS_Store", "desktop.ini", "._cat.jpg"):
        (tmp_path / "from" / junk).write_bytes(b"junk")
    (tmp_path / "from/.ipynb_checkpoints").mkdir()
    (tmp_path / "from/notes.md").write_text("hello")
    (tmp_path / "from/empty.png").write_bytes(b"")
    report = add(tmp_path / "from")
    assert report.ignored == 5
    assert codes(report) == {"notes.md": "not_a_picture", "empty.png": "empty"}
    assert len(report.accepted) == 1
    lines = report.lines()
    assert lines[0] == "1 photo added, 2 refused, 5 junk files ignored."
    assert len(lines) == 3 and all("\n" not in line for line in lines)


def test_links_pipes_and_sockets_are_passed_over_with_a_reason(add, photo, tmp_path):
    photo("from/cat.jpg")
    outside = photo("secret/private.jpg", seed=1)
    (tmp_path / "from/out.jpg").symlink_to(outside)
    (tmp_path / "from/outdir").symlink_to(tmp_path / "secret")
    (tmp_path / "from/inside.jpg").symlink_to("cat.jpg")
    (tmp_path / "from/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "from/round").symlink_to(".")
    os.mkfifo(tmp_path / "from/pipe.jpg")
    here = os.getcwd()
    os.chdir(tmp_path / "from")  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.jpg")
    finally:
        os.chdir(here)
    report = add(tmp_path / "from", recursive=True)
    assert codes(report) == {
        "out.jpg": "link_outside", "outdir": "link_outside", "loop.jpg": "broken_link",
        "pipe.jpg": "not_a_file", "socket.jpg": "not_a_file",
    }  # fmt: skip
    assert [path.name for path in report.accepted] == ["cat.jpg"]
    assert [note.code for note in report.notes] == ["duplicate"]


def test_folders_within_are_entered_only_when_asked_and_said_when_not(add, photo, tmp_path):
    photo("from/cat.jpg")
    photo("from/deep/er/dog.jpg", seed=1)
    (tmp_path / "from/folder.png").mkdir()
    report = add(tmp_path / "from")
    assert len(report.accepted) == 1
    assert "2 folders in it were not entered" in report.notes[0].text
    assert [path.name for path in add(tmp_path / "from", recursive=True).accepted] == ["dog.jpg"]


def test_the_session_is_no_source_of_itself(add, photo, tmp_path):
    photo("cat.jpg")
    add(tmp_path / "cat.jpg")
    with pytest.raises(UserError, match="own folder"):
        add(tmp_path / "session/instance_images")
    assert add(tmp_path, recursive=True).accepted == ()
    assert len(add.photos()) == 1


def test_no_photos_and_no_source_are_user_errors_with_a_way_out(add, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"There are no photos in .*empty") as error:
        add(tmp_path / "empty")
    assert "a zip" in error.value.fix
    with pytest.raises(UserError, match="no file or folder"):
        add(tmp_path / "nothing")
    assert not list((tmp_path / "session").rglob("*.png"))


def zip_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_a_zip_gives_its_photos_and_captions_and_leaves_nothing_else(add, tmp_path):
    path = zip_of(
        tmp_path / "photos.zip",
        {
            "holiday/OK.png": png(1), "holiday/ok.PNG": png(2), "holiday/OK.txt": b"on the beach",
            "holiday/note.md": b"hello", "__MACOSX/._OK.png": b"junk", "holiday/deep/er.zip": b"PK\3\4",
        },
    )  # fmt: skip
    report = add(path)
    assert len(report.accepted) == 2
    assert codes(report) == {"note.md": "not_a_picture", "er.zip": "not_a_picture"}
    assert "note.md" in report.rejected[1].reason or "note.md" in report.rejected[0].reason
    assert report.ignored == 1
    assert read_caption(add.captions, report.accepted[0]) == "on the beach"
    assert report.accepted[0].name == "OK.png" and report.accepted[1].name.startswith("ok~")


def encrypted(path: Path) -> Path:
    zip_of(path, {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # local header
    data[data.index(b"PK\1\2") + 8] |= 1  # central directory
    path.write_bytes(data)
    return path


def linked(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("a.png")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return path


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(60 * 10**6))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: zip_of(path, {"a.png": png(), "../../b.png": png()}), "points out of the archive"),
        (lambda path: zip_of(path, {"/etc/b.png": png()}), "points out of the archive"),
        (lambda path: zip_of(path, {"C:/b.png": png()}), "points out of the archive"),
        (lambda path: zip_of(path, {"..\\b.png": png()}), "points out of the archive"),
        (encrypted, "it is encrypted"),
        (linked, "is a link or a device"),
        (bomb, "times its size"),
    ],
    ids=["up", "absolute", "drive", "backslash", "encrypted", "link", "bomb"],
)
def test_a_dangerous_zip_is_refused_whole(add, tmp_path, make, words):
    report = add(make(tmp_path / "bad.zip"))
    assert codes(report) == {"bad.zip": "unsafe_zip"}
    assert words in report.rejected[0].reason
    assert add.photos() == [] and not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"Rar!\x1a\x07\x01\0", "not_a_zip", "it is a RAR archive"),
        (b"<html>login", "not_a_zip", "it is a web page"),
        (b"PK\3\4" + bytes(99), "damaged_zip", "damaged or cut short"),
        (b"", "not_a_zip", "it is an empty file"),
    ],
)
def test_a_zip_that_is_none_is_called_what_it_is(add, tmp_path, data, code, words):
    (tmp_path / "bad.zip").write_bytes(data)
    report = add(tmp_path / "bad.zip")
    assert (report.rejected[0].code, words in report.rejected[0].reason) == (code, True)


def test_an_entry_that_says_it_is_smaller_than_it_is_unpacks_no_further(add, tmp_path):
    path = bomb(tmp_path / "p.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + 24  # the size in the central directory
    data[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    assert codes(add(path)) == {"a.png": "damaged"}


def test_one_damaged_entry_costs_only_itself(add, tmp_path):
    path = zip_of(tmp_path / "p.zip", {"bad.png": png(1), "good.png": png(2)})
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    report = add(path)
    assert codes(report) == {"bad.png": "damaged"}
    assert [one.name for one in report.accepted] == ["good.png"]


def test_a_crash_between_two_photos_is_made_good_by_the_next_call(add, photo, tmp_path):
    photo("from/a.png")
    photo("from/b.png", seed=1)
    calls = []

    def stop_after_one(event):
        calls.append(event)
        if event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(tmp_path / "from", report=stop_after_one)
    assert [path.name for path in add.photos()] == ["a.png"]
    ledger = tmp_path / "session/instance_images/.photos.jsonl"
    ledger.write_text(ledger.read_text() + '\n{"stored": "b.png", "na')  # the line that was being written
    report = add(tmp_path / "from")
    assert [path.name for path in report.accepted] == ["b.png"]
    assert add(tmp_path / "from").already_here == tuple(add.photos())
    assert len([line for line in ledger.read_text().splitlines() if line.endswith("}")]) == 2
    assert json.loads(ledger.read_text().splitlines()[-1])["name"] == "b.png"


def test_progress_counts_every_source(add, photo, tmp_path):
    for seed in range(3):
        photo(f"from/{seed}.png", seed=seed)
    events = []
    add(tmp_path / "from", report=events.append)
    assert [(event.task, event.done, event.total) for event in events] == [("photos", n, 3) for n in range(4)]


def test_large_photos_never_stand_in_memory_together(tmp_path):
    """12 megapixels are 36 MB when decoded; all six at once would be beyond the bound before any is stored."""
    Image.radial_gradient("L").convert("RGB").resize((4000, 3000)).save(tmp_path / "p.jpg", quality=60)
    (tmp_path / "from").mkdir()
    data = (tmp_path / "p.jpg").read_bytes()
    for n in range(6):  # the same picture in six files: a comment after the header tells them apart
        comment = b"\xff\xfe\0\x04" + n.to_bytes(2, "big")
        (tmp_path / "from" / f"{n}.jpg").write_bytes(data[:2] + comment + data[2:])
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom fastsd_lib.images.store import add_photos\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\nreport = add_photos([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[2]))\n"
        "print(len(report.accepted), len(report.notes), peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "from", tmp_path / "into"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    accepted, notes, grown_mib = map(int, done.stdout.split())
    assert (accepted, notes) == (1, 5)
    assert grown_mib < 200
