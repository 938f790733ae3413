"""Who may come in: users and passwords, and the signed cookie that remembers who did."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping

SESSION_S = 7 * 24 * 3600
KEPT_LOGOUTS = 4096


class Access:
    """The users of one server. Without users everybody may come in.

    Passwords are kept as keyed digests only, and the key lives as long as the server: a restart ends every session.
    """

    def __init__(self, users: Mapping[str, str], clock: Callable[[], float] = time.time) -> None:
        self._key = secrets.token_bytes(32)
        self._session_key = secrets.token_bytes(32)
        self._clock = clock
        self._users = {name: self._digest(password) for name, password in users.items()}
        self._logged_out: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"Access({len(self._users)} users)"

    @property
    def asks(self) -> bool:
        return bool(self._users)

    def knows(self, user: str, password: str) -> bool:
        """Whether this user has this password; takes as long whichever of the two is wrong."""
        given = self._digest(password)
        known = False
        for name, digest in self._users.items():  # all of them, always
            right_name = hmac.compare_digest(name.encode(), user.encode("utf-8", "surrogatepass"))
            known |= right_name & hmac.compare_digest(digest, given)
        return known

    def user_of_basic(self, header: str) -> tuple[str, str] | None:
        """User and password of an `Authorization: Basic` header; a password may hold ":" and ","."""
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, colon, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
        return (user, password) if colon else None

    # ------------------------------------------------------------------ sessions

    def begin_session(self, user: str) -> str:
        """The value of a cookie for `user`."""
        until = int(self._clock()) + SESSION_S
        name = base64.urlsafe_b64encode(user.encode()).decode().rstrip("=")
        content = f"{name}.{until}.{secrets.token_hex(8)}"
        return f"{content}.{self._sign(content)}"

    def user_of_session(self, cookie: str) -> str | None:
        """Whose session this cookie is; None when it is forged, too old or logged out."""
        content, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(self._sign(content).encode(), signature.encode("utf-8", "replace")):
            return None
        name, until, _ = content.split(".")  # our own signature: our own shape
        if int(until) < self._clock() or signature in self._logged_out:
            return None
        return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()

    def end_session(self, cookie: str) -> None:
        if self.user_of_session(cookie) is None:
            return
        if len(self._logged_out) >= KEPT_LOGOUTS:  # forgetting one would let it in again: end all of them
            self._session_key = secrets.token_bytes(32)
            self._logged_out.clear()
            return
        self._logged_out[cookie.rpartition(".")[2]] = None

    def _digest(self, password: str) -> bytes:
        return hmac.new(self._key, password.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()

    def _sign(self, content: str) -> str:
        return hmac.new(self._session_key, content.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
