"""Who is asked for a password, and where passwords come from."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.door import OPEN_TO_ALL_FLAG, open_door

REACHABLE = [{"host": host} for host in ("0.0.0.0", "192.168.1.5", "::", "my-machine")] + [{"tunnel": True}]


@pytest.mark.parametrize("where", REACHABLE)
def test_whatever_others_can_reach_has_a_password_made_and_shown_once(where):
    door, another = open_door(**where), open_door(**where)
    ((user, password),) = door.users.items()
    assert user == "fastsd" and len(password) >= 20 and password not in another.users.values()
    assert door.announcement() == [
        f"User: fastsd   Password: {password}   (made for this start; shown only here)"
    ]
    assert password not in repr(door)


@pytest.mark.parametrize("where", REACHABLE)
def test_no_password_there_must_be_said_twice(where):
    with pytest.raises(UserError, match="can be reached from other machines") as error:
        open_door(**where, no_auth=True)
    assert OPEN_TO_ALL_FLAG in error.value.fix
    door = open_door(**where, no_auth=True, open_to_all=True)
    assert not door.users and door.announcement()[0].startswith("WARNING")
    assert open_door(**where, open_to_all=True).users  # the second flag alone opens nothing


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_loopback_needs_none(host):
    assert not open_door(host).users and not open_door(host, no_auth=True).users
    assert open_door(host).announcement() == []
    assert open_door(host, "me", "secret").users == {"me": "secret"}


def test_a_chosen_password_is_not_shown():
    assert open_door("0.0.0.0", "me", "secret").announcement() == []


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(UserError, match="contradict"):
        open_door(password="x", no_auth=True)
    with pytest.raises(UserError, match="a password and a password file"):
        open_door(password="x", password_file=tmp_path / "p")
    with pytest.raises(UserError, match="cannot be called"):
        open_door(user="a:b", password="x")


def test_a_password_file_holds_users_or_the_one_password(tmp_path):
    file = tmp_path / "passwords"
    file.write_text("me:a:b,c\n\nyou: with spaces \n", encoding="utf-8")
    assert open_door(password_file=file).users == {"me": "a:b,c", "you": " with spaces "}
    assert open_door(user="me", password_file=file).users == {"me": "me:a:b,c"}
    for text, message in (("", "is empty"), ("justone\n", "Line 1"), ("a:b\n:x\n", "Line 2")):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            open_door(password_file=file)
        assert error.value.fix
    with pytest.raises(UserError, match="cannot be read: No such file"):
        open_door(password_file=tmp_path / "none")


def test_a_typed_password_leaves_the_list_of_running_programs():
    program = (
        "import sys; from pathlib import Path; from fastsd_lib.webui.door import hide_from_listings\n"
        "listed, secret = Path('/proc/self/cmdline'), sys.stdin.read()\n"
        "before = listed.read_bytes()\n"
        "done = hide_from_listings(secret)\n"
        "after = listed.read_bytes()\n"
        "counts = before.count(secret.encode()), after.count(secret.encode())\n"
        "print(done, *counts, len(before) == len(after), sys.argv)"
    )
    for words in (["--password", "hunter: 2", "hunter: 2"], ["--password=hunter: 2 hunter: 2"]):
        ran = subprocess.run(
            [sys.executable, "-c", program, *words],
            input="hunter: 2",
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.startswith("True 2 0 True"), ran.stdout
        assert "hunter" not in ran.stdout and "********" in ran.stdout
