"""Storage on every host. Google's side is a small real package: it moves an account's folders to the mount point."""

from __future__ import annotations

import errno
import os
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import drive, hosts
from fastsd_lib.environment.drive import Places, flush, is_remote, local_disk, open_workspace, revive
from fastsd_lib.environment.runtime import disconnect

GOOGLE_COLAB_DRIVE = '''
"""What google.colab.drive does, with folders: refuses what it refuses, prints what it prints."""
import json, os, pathlib
HOME = pathlib.Path(__file__).parents[2]
ACCOUNT, TABLE, CALLS, DEAD = HOME / "account", HOME / "mounts", HOME / "calls", HOME / "dead"

def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    with CALLS.open("a") as calls:
        calls.write(json.dumps({"force": force_remount, "readonly": readonly}) + "\\n")
    if (HOME / "refuse").exists():
        raise ValueError("mount failed: access was not granted")
    point = pathlib.Path(mountpoint)
    if force_remount:
        DEAD.unlink(missing_ok=True)
        return
    if point.is_symlink() or (point.is_dir() and os.listdir(point)):
        raise ValueError("Mountpoint must not already contain files")
    point.mkdir(parents=True, exist_ok=True)
    for folder in list(ACCOUNT.iterdir()):
        folder.rename(point / folder.name)
    TABLE.write_text(TABLE.read_text() + f"drive {point} fuse.drive rw,nosuid 0 0\\n")

def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    with CALLS.open("a") as calls:
        calls.write(json.dumps({"flush_ms": timeout_ms}) + "\\n")
    if (HOME / "stuck").exists():
        raise ValueError("flush timed out")
    *kept, last = TABLE.read_text().splitlines()
    point = pathlib.Path(last.split()[1])
    for folder in list(point.iterdir()):
        folder.rename(ACCOUNT / folder.name)
    TABLE.write_text("\\n".join(kept) + "\\n")
'''


@dataclass
class Colab:
    home: Path
    places: Places
    said: list[str] = field(default_factory=list)

    def open(self, *arguments, **named):
        return open_workspace(*arguments, report=self.said.append, places=self.places, **named)

    @property
    def point(self) -> Path:
        return self.places.mount_points[0]

    @property
    def calls(self) -> list[str]:
        file = self.home / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def dies(self, monkeypatch, number=errno.ENOTCONN) -> None:
        """From now on every listing below the mount fails, until Drive is mounted by force."""
        dead, listdir = self.home / "dead", os.listdir
        dead.touch()

        def broken(path="."):
            if dead.exists() and Path(path).is_relative_to(self.point):
                raise OSError(number, os.strerror(number), str(path))
            return listdir(path)

        monkeypatch.setattr(os, "listdir", broken)


@pytest.fixture
def colab(tmp_path, monkeypatch) -> Colab:
    package = tmp_path / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(textwrap.dedent(GOOGLE_COLAB_DRIVE))
    (package / "runtime.py").write_text(
        "import pathlib\ndef unassign():\n    (pathlib.Path(__file__).parents[2] / 'ended').touch()\n"
    )
    for folder in ("MyDrive", "Shareddrives/Team Cat", "Shareddrives/Archiv"):
        (tmp_path / "account" / folder).mkdir(parents=True)
    (tmp_path / "mounts").write_text("overlay / overlay rw 0 0\n")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    content = tmp_path / "content"
    content.mkdir()
    points = (content / "drive", content / "gdrive")
    monkeypatch.setattr(hosts, "DRIVE_MOUNTS", points)
    monkeypatch.setattr(hosts, "MOUNT_TABLE", tmp_path / "mounts")
    yield Colab(tmp_path, Places(points, tmp_path / "mounts", content))
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        sys.modules.pop(name)


def no_host(monkeypatch):
    for name in (
        "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "RUNPOD_POD_ID", "PAPERSPACE_NOTEBOOK_REPO_ID",
        "PAPERSPACE_FQDN",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Places:
    no_host(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "mounts").write_text("/dev/sda1 / ext4 rw 0 0\n")
    return Places(mount_table=tmp_path / "mounts")


# ---------------------------------------------------------------------------------------------- Colab's Drive


def test_drive_is_mounted_once_however_often_the_cell_runs(colab):
    first, second = colab.open(), colab.open()
    assert first == second
    assert (first.root, first.kind, first.durable, first.remote) == (
        colab.point / "MyDrive",
        "drive",
        True,
        True,
    )
    assert first.local == colab.home / "content"
    assert colab.calls == ['{"force": false, "readonly": false}']
    assert colab.said[0] == f"Sessions are kept in {colab.point / 'MyDrive'}."
    assert hosts.default_root() == first.root  # what the commands use


def test_a_drive_that_an_older_notebook_mounted_elsewhere_is_used_as_it_is(colab):
    old = colab.places.mount_points[1]
    (old / "MyDrive").mkdir(parents=True)
    (colab.home / "mounts").write_text(f"overlay / overlay rw 0 0\ndrive {old} fuse.drive rw 0 0\n")
    assert colab.open().root == old / "MyDrive" == hosts.default_root()
    assert colab.calls == []
    folder = colab.open(colab.point / "MyDrive" / "models")  # written for the usual mount point
    assert folder.root == old / "MyDrive" / "models"


def test_a_shared_drive_is_opened_by_its_name(colab):
    workspace = colab.open(shared_drive="Team Cat")
    assert workspace.root == colab.point / "Shareddrives" / "Team Cat"
    assert (workspace.kind, workspace.durable) == ("shared drive", True)
    assert any(f'--root "{workspace.root}"' in line for line in colab.said)


def test_an_unknown_shared_drive_lists_those_there_are_and_the_nearest(colab):
    with pytest.raises(UserError) as error:
        colab.open(shared_drive="team-cat")
    assert error.value.message == "There is no shared drive 'team-cat' (there: Archiv, Team Cat)."
    assert error.value.fix == "did you mean 'Team Cat'?"
    with pytest.raises(UserError) as error:
        colab.open(shared_drive="zzz")
    assert error.value.fix == "type one of these names, or none for your own Drive."
    assert sorted(os.listdir(colab.point / "Shareddrives")) == ["Archiv", "Team Cat"]


def test_without_any_shared_drive_that_is_said(colab):
    for name in ("Team Cat", "Archiv"):
        (colab.home / "account" / "Shareddrives" / name).rmdir()
    with pytest.raises(UserError, match="a member of no shared drive"):
        colab.open(shared_drive="Team Cat")


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED, errno.EIO])
def test_a_mount_that_died_is_mounted_once_more_by_force(colab, monkeypatch, number):
    colab.open()
    colab.dies(monkeypatch, number)
    assert hosts.mounted_drive() is None
    assert colab.open().root == colab.point / "MyDrive"
    assert colab.calls[1:] == ['{"force": true, "readonly": false}']
    assert any("has stopped answering" in line for line in colab.said)


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ECONNABORTED])
def test_no_force_while_files_are_on_their_way_and_the_daemon_may_live(colab, monkeypatch, number):
    colab.open()
    colab.dies(monkeypatch, number)
    with pytest.raises(UserError, match="files are still on their way") as error:
        colab.open(pending=True)
    assert "leave this runtime open" in error.value.fix
    assert not revive(colab.point / "MyDrive", pending=True, report=colab.said.append, places=colab.places)
    assert len(colab.calls) == 1
    assert revive(colab.point / "MyDrive", report=colab.said.append, places=colab.places)
    assert revive(colab.point / "MyDrive", report=colab.said.append, places=colab.places)
    assert len(colab.calls) == 2


def test_a_daemon_that_is_gone_can_lose_no_more_and_is_started_again(colab, monkeypatch):
    colab.open()
    colab.dies(monkeypatch, errno.ENOTCONN)
    assert revive(colab.point / "MyDrive", pending=True, report=colab.said.append, places=colab.places)
    assert colab.calls[1:] == ['{"force": true, "readonly": false}']


def test_a_drive_that_stays_away_is_tried_once_and_said(colab, monkeypatch):
    colab.open()
    colab.dies(monkeypatch)
    (colab.home / "refuse").touch()
    with pytest.raises(UserError, match="Google Drive could not be opened: mount failed") as error:
        colab.open()
    assert "untick use_drive" in error.value.fix
    assert len(colab.calls) == 2


def test_a_plain_folder_where_drive_belongs_is_refused_and_nothing_is_put_into_it(colab):
    (colab.point / "MyDrive" / "sd").mkdir(parents=True)  # as the older web UI notebook made it
    (colab.places.mount_points[1] / "MyDrive").mkdir(parents=True)
    with pytest.raises(UserError, match="is a plain folder on this machine, not Google Drive") as error:
        colab.open()
    assert "remove it and run the cell again" in error.value.fix
    with pytest.raises(UserError, match="is a plain folder"):
        colab.open(colab.point / "MyDrive")
    assert os.listdir(colab.point / "MyDrive") == ["sd"] and colab.calls == []
    assert hosts.default_root() == Path.home() / "fastsd"


def test_a_plain_folder_at_the_other_place_is_said_and_drive_is_mounted_where_there_is_room(colab):
    (colab.point / "MyDrive").mkdir(parents=True)
    assert colab.open().root == colab.places.mount_points[1] / "MyDrive"
    assert any(f"{colab.point} is a plain folder, not Drive" in line for line in colab.said)


def test_without_drive_the_storage_is_said_to_be_temporary(colab, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    workspace = colab.open(use_drive=False)
    assert (workspace.kind, workspace.durable, workspace.remote) == ("temporary", False, False)
    assert workspace.root == workspace.local == tmp_path / "home" / "fastsd"
    assert "This storage is temporary" in colab.said[1] and colab.calls == []
    assert colab.open(tmp_path / "elsewhere").kind == "temporary"


def test_a_refused_access_says_what_to_do(colab):
    (colab.home / "refuse").touch()
    with pytest.raises(UserError, match="access was not granted") as error:
        colab.open()
    assert "allow the access, or untick use_drive" in error.value.fix
    assert not (colab.point / "MyDrive").exists()


def test_a_colab_without_its_package_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setitem(sys.modules, "google.colab", None)
    (tmp_path / "mounts").write_text("overlay / overlay rw 0 0\n")
    with pytest.raises(UserError, match="Google Drive could not be opened"):
        open_workspace(places=Places((tmp_path / "drive",), tmp_path / "mounts", tmp_path))


def test_at_the_end_drive_is_flushed_for_ten_minutes_at_most_and_opened_to_look(colab):
    workspace = colab.open()
    (workspace.root / "last.txt").write_text("saved")
    assert flush(workspace, colab.said.append, places=colab.places)
    assert colab.calls[1:] == ['{"flush_ms": 600000}', '{"force": false, "readonly": true}']
    assert (workspace.root / "last.txt").read_text() == "saved"
    (colab.home / "stuck").touch()
    assert not flush(workspace, colab.said.append, places=colab.places)
    assert "leave this runtime open" in colab.said[-1]


def test_a_runtime_is_given_back_after_drive_took_everything_and_only_when_asked(colab):
    workspace = colab.open()
    assert not disconnect(workspace, wanted=False, report=colab.said.append, places=colab.places)
    assert not (colab.home / "ended").exists()
    assert disconnect(workspace, report=colab.said.append, places=colab.places)
    assert (colab.home / "ended").exists()
    assert colab.calls[1] == '{"flush_ms": 600000}'


def test_a_runtime_stays_when_drive_has_not_confirmed_or_there_is_no_drive(colab, monkeypatch, tmp_path):
    workspace = colab.open()
    (colab.home / "stuck").touch()
    assert not disconnect(workspace, report=colab.said.append, places=colab.places)
    assert "leave this runtime open" in colab.said[-1]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    temporary = colab.open(use_drive=False)
    assert not disconnect(temporary, report=colab.said.append, places=colab.places)
    assert "Download your model first" in colab.said[-1]
    assert not (colab.home / "ended").exists()


# ---------------------------------------------------------------------------------------------- elsewhere


def test_a_named_folder_is_made_and_said(plain, tmp_path):
    said = []
    workspace = open_workspace(f" {tmp_path / 'a' / 'b'} ", report=said.append, places=plain)
    assert workspace == drive.Workspace(tmp_path / "a" / "b", "folder", True, tmp_path / "a" / "b", False)
    assert (tmp_path / "a" / "b").is_dir()
    assert said[0] == f"Sessions are kept in {tmp_path / 'a' / 'b'}."
    assert said[1].endswith(f'--root "{tmp_path / "a" / "b"}"')


def test_without_a_name_it_is_what_the_commands_use(plain):
    said = []
    assert open_workspace(report=said.append, places=plain).root == hosts.default_root()
    assert len(said) == 1


@pytest.mark.parametrize("host", ["kaggle", "runpod", "paperspace"])
@pytest.mark.parametrize("volume", [True, False])
def test_each_host_keeps_sessions_on_its_volume_and_says_when_there_is_none(
    plain, tmp_path, monkeypatch, host, volume
):
    sign = {"kaggle": "KAGGLE_KERNEL_RUN_TYPE", "runpod": "RUNPOD_POD_ID", "paperspace": "PAPERSPACE_FQDN"}[
        host
    ]
    monkeypatch.setenv(sign, "x")
    place = tmp_path / "volume"
    place.mkdir()
    monkeypatch.setattr(hosts, "VOLUMES", {host: place})
    if volume:
        with plain.mount_table.open("a") as table:
            table.write(f"/dev/sdb {place} ext4 rw 0 0\n")
    said = []
    workspace = open_workspace(report=said.append, places=plain)
    assert workspace.root == place / "fastsd"
    if host == "kaggle":
        assert (workspace.kind, workspace.durable) == ("kaggle", False)
        assert "Persistence" in said[1]
    else:
        assert (workspace.kind, workspace.durable) == ((host, True) if volume else ("temporary", False))
    assert open_workspace(tmp_path / "x", report=said.append, places=plain).kind == "temporary"


def test_a_folder_in_memory_is_temporary(plain, tmp_path):
    plain.mount_table.write_text(f"/dev/sda1 / ext4 rw 0 0\ntmpfs {tmp_path / 'ram'} tmpfs rw 0 0\n")
    workspace = open_workspace(tmp_path / "ram", report=lambda line: None, places=plain)
    assert (workspace.kind, workspace.durable) == ("temporary", False)


def test_shared_drives_are_for_colab_and_that_is_said(plain):
    with pytest.raises(UserError, match="opened on Colab only") as error:
        open_workspace(shared_drive="Team", places=plain)
    assert "name its folder as storage folder" in error.value.fix


def test_a_file_in_the_way_and_a_folder_one_may_not_write_to_are_named(plain, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken") as error:
        open_workspace(tmp_path / "taken", places=plain)
    assert error.value.fix == "choose another storage folder."
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="you may not write to it"):
        open_workspace(tmp_path / "locked", places=plain)


# ---------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize(
    ("kind", "remote"),
    [
        ("fuse.drive", True), ("fuse.sshfs", True), ("fuse", True), ("nfs4", True), ("cifs", True), ("9p", True),
        ("drvfs", True), ("ext4", False), ("xfs", False), ("overlay", False), ("fuseblk", False), ("tmpfs", False),
    ],
)  # fmt: skip
def test_disks_behind_a_network_or_a_daemon_are_told_from_local_ones(tmp_path, kind, remote):
    table = tmp_path / "mounts"
    table.write_text(f"x / ext4 rw 0 0\ny {tmp_path}/my\\040disk {kind} rw 0 0\n")
    assert is_remote(tmp_path / "my disk" / "deep" / "down", table) is remote
    assert not is_remote(tmp_path / "my disk too", table)


def test_the_longest_mount_point_decides_and_the_last_of_two_at_one_place(tmp_path):
    table = tmp_path / "mounts"
    table.write_text(
        f"a {tmp_path} nfs rw 0 0\nb {tmp_path}/in ext4 rw 0 0\nc {tmp_path}/two ext4 rw 0 0\n"
        f"d {tmp_path}/two nfs rw 0 0\nbroken\n"
    )
    assert is_remote(tmp_path / "x", table) and not is_remote(tmp_path / "in" / "x", table)
    assert is_remote(tmp_path / "two" / "x", table)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert not is_remote(tmp_path / "link" / "x", table)
    assert not is_remote(tmp_path, tmp_path / "no table")


def test_work_on_a_remote_disk_moves_to_a_local_one(plain, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    share, home = tmp_path / "share", tmp_path / "home"
    home.mkdir()
    plain.mount_table.write_text(f"x / ext4 rw 0 0\nserver:/x {share} nfs4 rw 0 0\n")
    workspace = open_workspace(share, report=lambda line: None, places=plain)
    assert workspace.remote and workspace.local == home / ".cache"
    with plain.mount_table.open("a") as table:  # homes on the server, too
        table.write(f"server:/home {home} nfs4 rw 0 0\n")
    assert local_disk(share, plain) == Path("/var/tmp")
    assert local_disk(tmp_path / "own", plain) == tmp_path / "own"
