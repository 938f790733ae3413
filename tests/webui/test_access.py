"""Sessions end: by time, by logout, and however many logouts there are."""

from __future__ import annotations

from fastsd_lib.webui import access
from fastsd_lib.webui.access import Access


def test_a_session_ends_after_its_time():
    now = 1000.0
    users = Access({"me": "x"}, clock=lambda: now)
    session = users.begin_session("me")
    now += access.SESSION_S
    assert users.user_of_session(session) == "me"
    now += 1
    assert users.user_of_session(session) is None


def test_a_session_of_another_server_is_none():
    assert Access({"me": "x"}).user_of_session(Access({"me": "x"}).begin_session("me")) is None


def test_no_logout_is_ever_forgotten(monkeypatch):
    monkeypatch.setattr(access, "KEPT_LOGOUTS", 3)
    users = Access({"me": "x"})
    ended = [users.begin_session("me") for _ in range(5)]
    for session in ended:
        users.end_session(session)
        assert len(users._logged_out) <= 3
    assert not [one for one in ended if users.user_of_session(one)]
    assert users.knows("me", "x")


def test_passwords_are_not_kept():
    users = Access({"me": "the password"})
    assert "the password" not in repr(vars(users)) and users.knows("me", "the password")
