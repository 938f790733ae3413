"""Sessions to other people and back, and every archive that must not get in."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core import archives
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import name_problem, same_name
from fastsd_lib.sessions.archive import export_session
from fastsd_lib.sessions.arrival import settle
from fastsd_lib.sessions.checkpoints import find_damage, list_checkpoints, write_checkpoint
from fastsd_lib.sessions.intake import forgotten, from_archive, from_folder, staging
from fastsd_lib.sessions.session import Session, create_session, open_session, read_manifest, sessions_dir

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
MANIFEST = {
    "schema": 1,
    "name": "cat",
    "created": "2026-01-01",
    "base_model": None,
    "concepts": [],
    "history": [],
}
GOOD = {
    "cat/session.json": json.dumps(MANIFEST).encode(),
    "cat/instance_images/a.png": PNG,
    "cat/captions/a.txt": b"a cat",
}


@pytest.fixture(autouse=True)
def limits():
    """Two seconds of work and 200 MB for each case, hostile or not."""
    before_s, before_kb = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - before_s < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


def bring(root: Path, source: Path, name: str | None = None):
    """What `session import` does with a file or folder."""
    with staging(sessions_dir(root)) as folder:
        intake = from_folder(source, folder) if source.is_dir() else from_archive(source, folder)
        return settle(root, intake, name, source.stem)


def left_of(root: Path) -> list[str]:
    return sorted(path.name for path in sessions_dir(root).iterdir())


def zip_of(path: Path, entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, packing)
    return path


def tar_of(path: Path, entries: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in more:
            archive.addfile(entry)
    return path


def full_session(root: Path, name: str = "my cat") -> Session:
    session = create_session(root, name)
    (session.instance_images / "猫 (1).png").write_bytes(PNG)
    (session.instance_images / ".photos.jsonl").write_text("{}\n")
    (session.captions / "猫 (1).txt").write_text("a cat 🐈", "utf-8")
    session.crops_file.write_text('{"photos": {}}')
    session.model_file.write_bytes(os.urandom(3000))
    (session.samples / "before_after.png").write_bytes(PNG)
    (session.samples / "step_000500_1.png").write_bytes(PNG)
    (session.class_images / "class-1-0001.png").write_bytes(PNG)
    files = {"unet.safetensors": lambda: [b"w" * 99]}
    write_checkpoint(session.checkpoints, step=5, total_steps=9, stage="U-Net", run="ab" * 8, files=files)
    (session.checkpoints / "step_000009").mkdir()
    (session.checkpoints / "step_000009" / "unet.safetensors").write_bytes(b"half")
    for file in (
        "token.txt",
        ".env",
        ".lock.json",
        "cache/latents.safetensors",
        ".a.77.partial.png",
        "Thumbs.db",
        "my.doc",
    ):
        (session.path / file).parent.mkdir(exist_ok=True)
        (session.path / file).write_text("hf_verysecret")
    return session


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# ------------------------------------------------------------------ export


def test_an_export_holds_what_another_person_needs_and_no_secrets(root, tmp_path):
    session = full_session(root)
    before = tree(session.path)
    made = export_session(session, tmp_path / "out.zip")
    with zipfile.ZipFile(made.path) as archive:
        names = {name.removeprefix("my cat/") for name in archive.namelist()}
        assert not any(b"hf_verysecret" in archive.read(name) for name in archive.namelist())
    assert names == {
        "session.json", "recipe.yaml", "README.md", "crops.json", "export.json", "my cat.safetensors",
        "instance_images/猫 (1).png", "instance_images/.photos.jsonl", "captions/猫 (1).txt",
    }  # fmt: skip
    assert tree(session.path) == before
    said = "\n".join(made.lines())
    assert "left out: checkpoints, " in said and "--with checkpoints" in said
    assert "left out: secret, 2 files, 26 B: tokens and keys are never shared" in said
    assert made.bytes == made.path.stat().st_size


def test_the_same_session_gives_the_same_bytes(root, tmp_path):
    session = full_session(root)
    first = export_session(session, tmp_path / "1.zip").path.read_bytes()
    os.utime(session.model_file, (1, 1))
    assert export_session(session, tmp_path / "2.zip").path.read_bytes() == first


def test_without_photos_no_picture_of_them_goes(root, tmp_path):
    made = export_session(full_session(root), tmp_path / "out.zip", photos=False, more=["samples"])
    names = zipfile.ZipFile(made.path).namelist()
    assert [name for name in names if "samples" in name] == ["my cat/samples/step_000500_1.png"]
    assert not [name for name in names if "captions" in name or "instance" in name or "crops" in name]


def test_with_checkpoints_only_sealed_ones_go_and_arrive_intact(root, tmp_path):
    made = export_session(full_session(root), tmp_path / "out.zip", more=["checkpoints"])
    arrived = bring(root, made.path, "other").session
    (checkpoint,) = list_checkpoints(arrived.checkpoints)
    assert find_damage(checkpoint.path) == ""
    assert not (arrived.checkpoints / "step_000009").exists()


@pytest.mark.parametrize(
    ("target", "more", "words", "fix"),
    [
        ("there.zip", [], "is there already", "--overwrite"),
        ("root/Fast-Dreambooth/Sessions/my cat/x.zip", [], "lies in the session itself", "outside"),
        ("new.zip", ["chekpoints"], "no part 'chekpoints'", "one of: checkpoints, class-images"),
    ],
)
def test_an_export_that_would_harm_is_refused(root, tmp_path, target, more, words, fix):
    session = full_session(root)
    (tmp_path / "there.zip").write_bytes(b"old")
    with pytest.raises(UserError, match=words) as error:
        export_session(session, tmp_path / target, more=more)
    assert fix in error.value.fix
    assert (tmp_path / "there.zip").read_bytes() == b"old"


def test_a_full_disk_leaves_no_half_archive(root, tmp_path, monkeypatch):
    session = full_session(root)
    out = tmp_path / "out"
    out.mkdir()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="Could not write the archive: No space left"):
        export_session(session, out)
    assert list(out.iterdir()) == []


# ------------------------------------------------------------------ there and back


def test_a_round_trip_keeps_every_byte_and_renames_the_model_with_the_session(root, tmp_path):
    session = full_session(root)
    made = bring(root, export_session(session, tmp_path / "out.zip").path, "Кот")
    there = made.session
    assert made.verified and there.model_file.read_bytes() == session.model_file.read_bytes()
    for name in ("instance_images/猫 (1).png", "captions/猫 (1).txt", "recipe.yaml", "crops.json"):
        assert (there.path / name).read_bytes() == (session.path / name).read_bytes()
    manifest = read_manifest(open_session(root, "Кот"))
    assert manifest["name"] == "Кот" and manifest["history"][-1]["event"] == "imported"
    assert not (there.path / "export.json").exists()


def test_an_archive_that_was_unpacked_is_verified_as_a_folder(root, tmp_path):
    made = export_session(full_session(root), tmp_path / "out.zip")
    zipfile.ZipFile(made.path).extractall(tmp_path / "unpacked")
    assert bring(root, tmp_path / "unpacked", "b").verified
    (tmp_path / "unpacked/my cat/captions/猫 (1).txt").write_text("other")
    with pytest.raises(UserError, match="damaged: its hash is another"):
        bring(root, tmp_path / "unpacked", "c")


@pytest.mark.parametrize("change", ["byte", "missing", "extra", "manifest", "newer", "odd"])
def test_what_does_not_match_its_hashes_is_refused(root, tmp_path, change):
    made = export_session(full_session(root), tmp_path / "out.zip")
    entries = {name: zipfile.ZipFile(made.path).read(name) for name in zipfile.ZipFile(made.path).namelist()}
    words = {
        "byte": "captions/猫 (1).txt in changed.zip is damaged",
        "missing": "captions/猫 (1).txt is missing in",
        "extra": "captions/b.txt in changed.zip is not listed",
        "manifest": "was changed after it was sealed",
        "newer": "made by a newer fastsd",
        "odd": "export.json in changed.zip is damaged",
    }[change]
    if change == "byte":
        entries["my cat/captions/猫 (1).txt"] += b"!"
    elif change == "missing":
        del entries["my cat/captions/猫 (1).txt"]
    elif change == "extra":
        entries["my cat/captions/b.txt"] = b"b"
    elif change == "odd":
        entries["my cat/export.json"] = b"[" * 100_000
    else:
        old, new = (b'"schema": 1', b'"schema": 9') if change == "newer" else (b'"my cat"', b'"a cat"')
        entries["my cat/export.json"] = entries["my cat/export.json"].replace(old, new)
    with pytest.raises(UserError) as error:
        bring(root, zip_of(tmp_path / "changed.zip", entries), "new")
    assert words in error.value.message and error.value.fix
    assert left_of(root) == ["my cat"]


def test_a_plain_zip_and_a_tar_of_a_session_are_taken_with_a_word_that_hashes_are_missing(root, tmp_path):
    sources = [
        zip_of(tmp_path / "a.zip", GOOD, zipfile.ZIP_DEFLATED),
        tar_of(tmp_path / "b.tar", GOOD),
        tar_of(tmp_path / "c.tar.gz", GOOD, mode="w:gz"),
        zip_of(
            tmp_path / "Drive-20260101T000000Z-001.zip",
            {f"deep/er/{name}": data for name, data in GOOD.items()},
        ),
    ]
    for number, source in enumerate(sources):
        made = bring(root, source, f"n{number}")
        assert "came without hashes" in "\n".join(made.lines())
        assert (made.session.instance_images / "a.png").read_bytes() == PNG
        assert (made.session.captions / "a.txt").read_bytes() == b"a cat"


def test_a_session_of_the_older_notebooks_arrives_and_its_pickle_is_never_loaded(root, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    old = {
        "phtm/instance_images/phtm (1).jpg": PNG, "phtm/captions/phtm (1).txt": b"x", "phtm/phtm.ckpt": pickle.dumps(Trap()),
        "phtm/phtm_step_500.ckpt": b"w", "phtm/instance_images.zip": b"PK", "token.txt": b"hf_x",
    }  # fmt: skip
    made = bring(root, zip_of(tmp_path / "x.zip", old))
    assert not (tmp_path / "ran").exists()
    assert made.session.name == "phtm" and (made.session.path / "phtm_step_500.ckpt").read_bytes() == b"w"
    assert any("phtm.ckpt may hold a pickle" in note for note in made.notes)
    assert made.ignored == 1 and not list(sessions_dir(root).rglob("token.txt"))


def test_the_ckpt_that_is_unpacked_last_does_not_become_the_newest(root, tmp_path):
    old = {"phtm/phtm.ckpt": b"final", "phtm/phtm_step_500.ckpt": b"on the way"}
    with staging(sessions_dir(root)) as folder:
        intake = from_archive(zip_of(tmp_path / "x.zip", old), folder)
        os.utime(intake.pieces[0].path, (1, 1))  # a minute passed while the other was unpacked
        made = settle(root, intake, None, "x")
    assert len({path.stat().st_mtime for path in made.session.path.glob("*.ckpt")}) == 1


def test_an_import_never_touches_a_session_that_is_there(root, tmp_path):
    session = full_session(root, "cat")
    before = tree(session.path)
    for name in (None, "CAT", "cat"):
        with pytest.raises(UserError, match="There is a session 'cat' already") as error:
            bring(root, zip_of(tmp_path / "x.zip", GOOD), name)
        assert error.value.fix.endswith(("--name cat-2", "--name CAT-2"))
    assert tree(session.path) == before and left_of(root) == ["cat"]


# ------------------------------------------------------------------ hostile archives (bad-inputs 41-46)


def _link(path: Path, mode: int) -> Path:
    zip_of(path, GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("cat/instance_images/b.png")
        entry.create_system, entry.external_attr = 3, (mode | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return path


def _tar_link(path: Path, kind: bytes, name: str = "cat/instance_images/b.png") -> Path:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "../../../etc/passwd"
    return tar_of(path, GOOD, entry)


def _patched(path: Path, old: bytes, new: bytes, count: int = -1) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new, count))
    return path


def _encrypted(path: Path) -> Path:
    data = bytearray(zip_of(path, GOOD).read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = data.find(mark)
        while start >= 0:
            data[start + at] |= 1
            start = data.find(mark, start + 4)
    path.write_bytes(data)
    return path


def _overlapping(path: Path) -> Path:
    """Two entries of the directory that share one file: the trick of bombs that unpack to petabytes."""
    zip_of(path, {**GOOD, "cat/instance_images/b.png": PNG})
    with zipfile.ZipFile(path) as archive:
        offsets = [entry.header_offset for entry in archive.infolist()]
    data = path.read_bytes()
    last = data.rfind(b"PK\1\2")
    path.write_bytes(data[: last + 42] + struct.pack("<L", offsets[1]) + data[last + 46 :])
    return path


def _lying_size(path: Path) -> Path:
    """Says 10 bytes in both headers and holds a megabyte."""
    zip_of(path, {**GOOD, "cat/logs/x.txt": b"z" * 1_234_567}, zipfile.ZIP_DEFLATED)
    return _patched(path, struct.pack("<L", 1_234_567), struct.pack("<L", 10))


def _many(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/session.json", "{}")
    data = path.read_bytes()
    start = data.find(b"PK\1\2")
    end = data.rfind(b"PK\5\6")
    record = data[start:end]
    many = record * (archives.MAX_ENTRIES + 10)
    tail = bytearray(data[end:])
    struct.pack_into("<L", tail, 12, len(many))
    path.write_bytes(data[:start] + many + tail)  # and says that it holds one
    return path


def _many_in_tar(path: Path) -> Path:
    header = tarfile.TarInfo("cat/a").tobuf()
    with gzip.open(path, "wb", 1) as file:
        file.write(header * (archives.MAX_ENTRIES + 10) + bytes(1024))
    return path


def _huge_header(path: Path) -> Path:
    """Pax records that are said to be 8 GB long: tarfile would read them into memory."""
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, (1 << 33) - 1
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    return path


def _sparse(path: Path) -> Path:
    entry = tarfile.TarInfo("cat/session.json")
    entry.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(entry.tobuf() + bytes(1024))
    return path


def _tar_gz_bomb(path: Path) -> Path:
    entry = tarfile.TarInfo("cat/session.json")
    entry.size = 60 * 10**6
    with gzip.open(path, "wb", 9) as file:
        file.write(entry.tobuf())
        for _ in range(60):
            file.write(bytes(10**6))
        file.write(bytes(1024))
    return path


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


HOSTILE = {
    "zip slip": (lambda p: zip_of(p, {**GOOD, "cat/../../../x.png": PNG}), "points out of the archive"),
    "zip slip, backslashes": (lambda p: zip_of(p, {**GOOD, "cat\\..\\..\\x.png": PNG}), "points out of the archive"),
    "absolute": (lambda p: zip_of(p, {**GOOD, "/etc/x.png": PNG}), "points out of the archive"),
    "drive letter": (lambda p: zip_of(p, {**GOOD, "C:/x.png": PNG}), "points out of the archive"),
    "UNC": (lambda p: zip_of(p, {**GOOD, "\\\\host\\x": PNG}), "points out of the archive"),
    "NUL in name": (
        lambda p: _patched(zip_of(p, {**GOOD, "cat/a_b.png": PNG}), b"a_b.png", b"a\0b.png"), "points out of the archive"),
    "only dots": (lambda p: zip_of(p, {**GOOD, "cat/..": PNG}), "points out of the archive"),
    "4 kB path": (lambda p: zip_of(p, {**GOOD, "cat/" + "a/" * 2000 + "b": PNG}), "folders deep"),
    "symlink": (lambda p: _link(p, stat.S_IFLNK), "is a link or a device"),
    "device": (lambda p: _link(p, stat.S_IFBLK), "is a link or a device"),
    "pipe": (lambda p: _link(p, stat.S_IFIFO), "is a link or a device"),
    "bomb": (lambda p: zip_of(p, {**GOOD, "cat/a": bytes(60 * 10**6)}, zipfile.ZIP_DEFLATED), "times its size"),
    "bomb of bzip2": (lambda p: zip_of(p, {**GOOD, "cat/a": bytes(10**7)}, zipfile.ZIP_BZIP2), "few programs"),
    "bomb of LZMA": (lambda p: zip_of(p, {**GOOD, "cat/a": bytes(10**7)}, zipfile.ZIP_LZMA), "few programs"),
    "lying size": (_lying_size, "x.txt is damaged in its zip"),
    "declared 30 GB": (
        lambda p: _patched(zip_of(p, {**GOOD, "cat/a": b"a" * 77777}), struct.pack("<L", 77777), b"\xff" * 4), "its size"),
    "too many files": (_many, "more than 50000 files"),
    "overlapping": (_overlapping, "its entries overlap"),
    "encrypted": (_encrypted, "it is encrypted"),
    "bad CRC": (lambda p: _patched(zip_of(p, GOOD), b"a cat", b"a dog"), "a.txt is damaged in its zip"),
    "truncated": (lambda p: _cut(zip_of(p, {**GOOD, "cat/b": b"b" * 9999}), 0.9), "damaged or cut short"),
    "file and folder": (lambda p: zip_of(p, {**GOOD, "cat/logs": b"", "cat/logs/a": b""}), "as file and folder"),
    "two of one name": (lambda p: _link(p, stat.S_IFREG) and _patched(p, b"s/b.png", b"s/a.png"), "twice"),
    "RAR": (lambda p: p.write_bytes(b"Rar!\x1a\x07\x01\0") and p, "it is a RAR archive"),
    "7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c") and p, "it is a 7z archive"),
    "web page": (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in") and p, "it is a web page"),
    "empty": (lambda p: p.write_bytes(b"") or p, "it is an empty file"),
    "program": (lambda p: p.write_bytes(b"MZ\x90\0") and p, "it is a Windows program"),
    "tar slip": (lambda p: tar_of(p, {**GOOD, "cat/../../x": PNG}), "points out of the archive"),
    "tar absolute": (lambda p: tar_of(p, {**GOOD, "/etc/x": PNG}), "points out of the archive"),
    "tar symlink": (lambda p: _tar_link(p, tarfile.SYMTYPE), "is a link or a device"),
    "tar symlink to a folder": (lambda p: _tar_link(p, tarfile.SYMTYPE, "cat/instance_images"), "is a link or a device"),
    "tar hard link": (lambda p: _tar_link(p, tarfile.LNKTYPE), "is a link or a device"),
    "tar device": (lambda p: _tar_link(p, tarfile.BLKTYPE), "is a link or a device"),
    "tar pipe": (lambda p: _tar_link(p, tarfile.FIFOTYPE), "is a link or a device"),
    "tar sparse": (_sparse, "sparse file"),
    "tar with a header of 8 GB": (_huge_header, "made to fill the memory"),
    "tar cut short": (lambda p: _cut(tar_of(p, GOOD), 0.05), "damaged or cut short"),
    "tar cut between files": (lambda p: p.write_bytes(tar_of(p, GOOD).read_bytes()[:1024]) and p, "damaged or cut short"),
    "tar.gz bomb": (_tar_gz_bomb, "more than 100 times its size"),
    "tar.gz of too many": (_many_in_tar, "more than 5000 files"),
    "tar.gz cut short": (
        lambda p: _cut(tar_of(p, {**GOOD, "cat/b": os.urandom(9999)}, mode="w:gz"), 0.7), "damaged or cut short"),
    "tar.gz damaged": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(99)) and p, "damaged or cut short"),
    "tar.xz": (lambda p: tar_of(p, GOOD, mode="w:xz"), "it is an xz archive"),
    "no session": (lambda p: zip_of(p, {"holiday/a.png": PNG}), "holds no session"),
    "two sessions": (
        lambda p: zip_of(p, GOOD | {n.replace("cat", "dog", 1): d for n, d in GOOD.items()}), "holds 2 sessions: cat, dog"),
    "name CON": (lambda p: zip_of(p, {n.replace("cat", "CON", 1): d for n, d in GOOD.items()}), "Windows keeps this name"),
    "newer schema": (
        lambda p: zip_of(p, GOOD | {"cat/session.json": json.dumps(MANIFEST | {"schema": 9}).encode()}), "newer fastsd"),
    "truncated JSON": (
        lambda p: zip_of(p, GOOD | {"cat/session.json": b'{"schema": 1,\n "his'}), "line 2, column 2"),
    "JSON of brackets": (lambda p: zip_of(p, GOOD | {"cat/session.json": b"[" * 200_000}), "no program wrote|not JSON"),
    "JSON with a number of 9,999 digits": (
        lambda p: zip_of(p, GOOD | {"cat/session.json": b'{"schema": ' + b"1" * 9999 + b"}"}), "not JSON"),
    "JSON of 20 MB": (lambda p: zip_of(p, GOOD | {"cat/session.json": b" " * 20_000_000}), "it has 20.0 MB"),
    "JSON that is a picture": (lambda p: zip_of(p, GOOD | {"cat/session.json": PNG}), "is not a text file"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line_and_leaves_nothing(root, tmp_path, case, monkeypatch):
    make, words = HOSTILE[case]
    if case == "tar.gz of too many":  # tarfile takes 60 us for each
        monkeypatch.setattr(archives, "MAX_ENTRIES", 5000)
    source = make(tmp_path / "bad.zip")
    start_s = time.process_time()
    with pytest.raises(UserError, match=words) as error:
        bring(root, source)
    assert time.process_time() - start_s < 2
    assert "\n" not in error.value.message and error.value.fix
    assert "\x1b" not in str(error.value) and ".import-" not in str(error.value)
    assert left_of(root) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "root"]


def test_zip64_with_more_files_than_a_plain_zip_can_count_is_read(tmp_path, root):
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in GOOD.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(data)
    assert bring(root, path).files == 3


def test_a_zip_within_the_session_is_carried_and_not_opened(root, tmp_path):
    inner = zip_of(tmp_path / "inner.zip", {"../../evil": b"x"}).read_bytes()
    made = bring(root, zip_of(tmp_path / "a.zip", GOOD | {"cat/instance_images.zip": inner}))
    assert (made.session.path / "instance_images.zip").read_bytes() == inner


def test_real_bytes_are_counted_whatever_is_declared(tmp_path):
    budget = archives.Budget("x.zip", packed_bytes=100)
    budget.take(archives.SMALL_BYTES)
    with pytest.raises(archives.ArchiveRefused, match="100 times its size"):
        budget.take(1)
    large = archives.Budget("x.zip", packed_bytes=10**10)
    with pytest.raises(archives.ArchiveRefused, match="more than 20 GB"):
        large.take(archives.MAX_BYTES + 1)


# ------------------------------------------------------------------ names and files (bad-inputs 21-29)

ODD_NAMES = {
    "RTL override": "gpj.\u202egnp.png", "newline": "a\nb.png", "escape": "a\x1b[31mb.png", "reserved": "CON.png",
    "trailing dot": "b.png.", "trailing space": "a .png ", "colon": "a:b.png", "leading dash": "-rf.png",
    "255 bytes": "x" * 251 + ".png", "wide and long": "猫" * 83 + ".png",
}  # fmt: skip
PLAIN_NAMES = [
    "$(reboot).png",
    "it's.png",
    "🐈‍⬛ 猫.png",
    "cafe\u0301.png",
    "x (1).png",
    "a%s{}.png",
    "ˈa.png",
]


@pytest.mark.parametrize("case", ODD_NAMES)
def test_a_photo_whose_name_no_disk_takes_is_kept_under_another_and_stays_with_its_caption(
    root, tmp_path, case
):
    name = ODD_NAMES[case]
    text = name.rstrip(" .").rpartition(".")[0] + ".txt"
    source = zip_of(
        tmp_path / "a.zip",
        GOOD | {f"cat/instance_images/{name}": PNG + b"2", f"cat/captions/{text}": b"the odd one",
                "cat/crops.json": json.dumps({"photos": {name: [1, 2, 3]}}).encode()},
    )  # fmt: skip
    made = bring(root, source)
    (photo,) = [path for path in made.session.instance_images.iterdir() if path.read_bytes() == PNG + b"2"]
    (caption,) = [path for path in made.session.captions.iterdir() if path.read_bytes() == b"the odd one"]
    assert photo.stem == caption.stem and photo.suffix == ".png"
    assert name_problem(photo.name) == "" and made.renamed
    assert list(json.loads(made.session.crops_file.read_text())["photos"]) == [photo.name]
    assert not any(letter in "\n".join(made.lines()) for letter in "\x1b\u202e")


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_a_photo_name_that_a_person_would_type_is_kept(root, tmp_path, name):
    made = bring(root, zip_of(tmp_path / "a.zip", GOOD | {f"cat/instance_images/{name}": PNG + b"2"}))
    assert (made.session.instance_images / name).read_bytes() == PNG + b"2" and not made.renamed


@pytest.mark.parametrize(
    ("first", "second"), [("OK", "ok"), ("caf\u00e9", "cafe\u0301"), ("straße", "STRASSE"), ("a", "ａ")]
)
def test_names_that_some_disk_takes_for_one_are_both_kept_each_with_its_caption(
    root, tmp_path, first, second
):
    twins = {
        f"cat/instance_images/{first}.png": PNG + b"1", f"cat/instance_images/{second}.png": PNG + b"2",
        f"cat/captions/{first}.txt": b"1", f"cat/captions/{second}.txt": b"2",
    }  # fmt: skip
    made = bring(root, zip_of(tmp_path / "a.zip", {"cat/session.json": GOOD["cat/session.json"]} | twins))
    photos = {path.read_bytes()[-1:]: path.stem for path in made.session.instance_images.iterdir()}
    captions = {path.read_bytes(): path.stem for path in made.session.captions.iterdir()}
    assert photos == captions and set(photos) == {b"1", b"2"}
    assert len({same_name(stem) for stem in photos.values()}) == 2 and len(made.renamed) == 2


@given(
    st.lists(
        st.text(
            st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=30
        ),
        max_size=4,
    )
)
def test_whatever_photos_are_called_all_arrive_under_names_that_every_disk_takes(tmp_path_factory, stems):
    base = tmp_path_factory.mktemp("names")
    photos = {f"cat/instance_images/p{stem}.png": PNG + stem.encode() for stem in stems}
    made = bring(base, zip_of(base / "a.zip", {"cat/session.json": GOOD["cat/session.json"]} | photos))
    there = list(made.session.instance_images.iterdir())
    assert sorted(path.read_bytes() for path in there) == sorted(photos.values())
    assert all(name_problem(path.name) == "" for path in there)
    assert len({same_name(path.name) for path in there}) == len(there)


def test_junk_is_left_out_and_counted(root, tmp_path):
    junk = {
        "cat/.ipynb_checkpoints/a.png": PNG, "cat/instance_images/Thumbs.db": b"x", "cat/.DS_Store": b"x",
        "__MACOSX/cat/._a.png": b"x", "cat/desktop.ini": b"x",
        "cat/token.txt": b"hf_x", "cat/cache/latents.safetensors": b"x",
    }  # fmt: skip
    made = bring(root, zip_of(tmp_path / "a.zip", GOOD | junk))
    assert made.files == 3 and made.ignored == len(junk)
    assert not (made.session.path / "token.txt").exists()
    assert "7 files that no session needs" in "\n".join(made.lines())


def test_links_and_odd_files_of_a_folder_are_followed_inside_and_left_with_a_note_otherwise(root, tmp_path):
    source = tmp_path / "cat"
    for name, data in GOOD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    photos = source / "instance_images"
    (tmp_path / "secret.png").write_bytes(b"secret")
    (photos / "inside.png").symlink_to(photos / "a.png")
    (photos / "outside.png").symlink_to(tmp_path / "secret.png")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    (photos / "up").symlink_to(source)
    os.mkfifo(photos / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(photos)  # a socket's path has at most 107 bytes
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        made = bring(root, source, "b")
    assert sorted(path.name for path in made.session.instance_images.iterdir()) == ["a.png", "inside.png"]
    said = "\n".join(made.notes)
    for words in (
        "outside.png is left out: it is a link out of",
        "loop.png is left out: it is a link that leads nowhere",
        "pipe.png is left out: it is a pipe",
        "socket.png is left out",
        "up is left out: it is a link to a folder",
    ):
        assert words in said
    assert b"secret" not in b"".join(tree(made.session.path).values())


def test_a_file_that_vanishes_meanwhile_costs_only_itself(root, tmp_path, monkeypatch):
    source = tmp_path / "cat"
    for name, data in GOOD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with staging(sessions_dir(root)) as folder:
        made = settle(
            root,
            from_folder(source, folder, lambda event: (source / "captions/a.txt").unlink(missing_ok=True)),
            None,
            "x",
        )
    assert made.files == 2 and "captions/a.txt is left out: No such file" in made.notes[0]


@pytest.fixture(scope="module")
def holiday(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "holiday"
    folder.mkdir()
    for number in range(20_000):
        os.close(os.open(folder / f"{number}.jpg", os.O_CREAT))
    return folder


def test_a_folder_of_20000_photos_is_looked_through_and_not_copied_when_it_is_no_session(root, holiday):
    with pytest.raises(UserError, match="holiday holds no session"):
        bring(root, holiday)


def test_an_unreadable_file_costs_only_itself(root, tmp_path, monkeypatch):
    source = tmp_path / "cat"
    for name, data in GOOD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    opened = Path.open

    def locked(path, *more, **named):  # the tests may run as root, whom no file mode stops
        if path.name == "a.txt" and path.is_relative_to(source):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more, **named)

    monkeypatch.setattr(Path, "open", locked)
    made = bring(root, source, "b")
    assert made.files == 2 and "captions/a.txt is left out: Permission denied" in made.notes


def test_the_folder_with_all_sessions_is_not_taken_for_one(root):
    create_session(root, "a")
    with pytest.raises(UserError, match="The sessions themselves lie in"):
        bring(root, root, "b")


def test_a_byte_order_mark_and_windows_line_ends_in_session_json_are_read(root, tmp_path):
    text = b"\xef\xbb\xbf" + json.dumps(MANIFEST, indent=1).replace("\n", "\r\n").encode()
    assert bring(root, zip_of(tmp_path / "a.zip", GOOD | {"cat/session.json": text})).session.name == "cat"


# ------------------------------------------------------------------ interrupted


def test_ctrl_c_leaves_nothing(root, tmp_path):
    def stop(event):
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staging(sessions_dir(root)) as folder:
        from_archive(zip_of(tmp_path / "a.zip", GOOD), folder, stop)
    assert left_of(root) == []


def test_what_a_killed_import_left_is_gone_with_the_next_one_and_that_of_a_living_one_stays(root, tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from fastsd_lib.sessions.intake import staging\n"
        "with staging(Path(sys.argv[1])) as folder:\n"
        "    (folder / '1').write_bytes(b'half'); print(folder, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(sessions_dir(root))], stdout=subprocess.PIPE, text=True
    )
    folder = Path(process.stdout.readline().strip())
    bring(root, zip_of(tmp_path / "a.zip", GOOD), "first")
    assert folder.is_dir() and forgotten(sessions_dir(root)) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert forgotten(sessions_dir(root)) == [folder]
    bring(root, zip_of(tmp_path / "a.zip", GOOD), "second")
    assert left_of(root) == ["first", "second"]


def test_a_full_disk_while_unpacking_is_said_and_leaves_nothing(root, tmp_path, monkeypatch):
    from fastsd_lib.workflows.sharing import import_session

    def full(_):
        raise OSError(28, "No space left on device")

    source = zip_of(tmp_path / "a.zip", GOOD)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"Could not .*: No space left on device"):
        import_session(source, root=root)
    assert left_of(root) == []
