"""The one door of the server: an ASGI layer over everything that it answers, whichever route comes later."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import parse_qs, quote

from fastsd_lib.webui import login
from fastsd_lib.webui.access import SESSION_S, Access
from fastsd_lib.webui.answers import OWN, MaskingFilter, Rules
from fastsd_lib.webui.asked import Answer, Asked, Limits, Names, refusal
from fastsd_lib.webui.exchange import Exchange, Receive, Scope, Send, answer, refuse_socket
from fastsd_lib.webui.throttle import Crowd, Throttle, client_key

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]
LONGEST_LOGIN_BYTES = 8192
#: Where a tunnel asks whether its address leads to us: GET /.fsd/<nonce>.
NONCE_PREFIX = "/.fsd/"
SHORTEST_NONCE = 16
#: What a stranger could write to make the routes believe in another address or another sender.
_UNTRUSTED = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-gradio-server", b"x-original-", b"x-rewrite-")


class Guard:
    """Wraps an ASGI app. What it lets through has a name that is ours, an origin that is ours, and a user."""

    def __init__(
        self,
        app: App,
        access: Access,
        names: Names,
        limits: Limits = Limits(),  # noqa: B008  frozen
        secrets: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        rules: Rules = OWN,
    ) -> None:
        self.access, self.names, self.limits, self.rules = access, names, limits, rules
        self.throttle, self._crowd = Throttle(clock), Crowd(limits.requests_per_client)
        self.nonces: set[str] = set()
        self._asked_for: set[str] = set()  # of these
        self._app = app
        self._secrets = [secret for secret in secrets if len(secret) > 3]  # shorter ones stand in every word
        self._filter = MaskingFilter(self._secrets)
        for logger in (log, logging.getLogger("uvicorn.error")):
            logger.addFilter(self._filter)

    def close(self) -> None:
        """Let go of the logs."""
        for logger in (log, logging.getLogger("uvicorn.error")):
            logger.removeFilter(self._filter)

    def mask_too(self, secret: str) -> None:
        """Keep one more secret out of errors and logs."""
        self._secrets.append(secret)

    def answer_nonce(self, nonce: str) -> None:
        """From now on GET /.fsd/<nonce> is answered with the nonce and nothing else, before any password: so a
        tunnel learns that its public address leads here. It is a secret of at least 16 letters or digits.
        """
        if (
            len(nonce) < SHORTEST_NONCE
            or not nonce.isascii()
            or not nonce.replace("-", "").replace("_", "").isalnum()
        ):
            raise ValueError(f"a nonce has at least {SHORTEST_NONCE} letters, digits, - or _")
        self.nonces.add(nonce)

    def was_asked_for(self, nonce: str) -> bool:
        """Whether a nonce arrived, though a page of another site asked, which may not read the answer (Colab's)."""
        return nonce in self._asked_for

    def forget_nonce(self, nonce: str) -> None:
        self.nonces.discard(nonce)
        self._asked_for.discard(nonce)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        asked = Asked(scope)
        echo = self._nonce_asked(asked) if self.names.knows(asked) else None
        found = refusal(asked, self.names, self.limits) or echo
        if found:
            await self._answer(asked, receive, send, found)
            return
        user = self._session_user(asked)
        client = client_key(asked.client)
        key = f"user {user}" if user else client
        if not self._crowd.enter(key):
            text = f"There are {self.limits.requests_per_client} requests of yours under way."
            await self._answer(asked, receive, send, Answer.error(429, text, [(b"retry-after", b"1")]))
            return
        try:
            await self._admit(asked, user, client, receive, send)
        finally:
            self._crowd.leave(key)

    async def _admit(self, asked: Asked, user: str | None, client: str, receive: Receive, send: Send) -> None:
        if self.access.asks and not asked.is_socket and asked.path in ("/login", "/logout"):
            page = self._login if asked.path == "/login" else self._logout
            await self._answer(asked, receive, send, await page(asked, user, client, receive))
            return
        if self.access.asks and user is None:
            user, found = self._basic_user(asked, client)
            if found:
                await self._answer(asked, receive, send, found)
                return
        scope = self._inner_scope(asked, user)
        if asked.is_socket:
            await self._app(scope, receive, send)
            return
        await Exchange(asked, receive, send, self.limits, self._secrets, self.rules).run(self._app, scope)

    def _nonce_asked(self, asked: Asked) -> Answer | None:
        """The echo of a known nonce; any other is a request like all others, and takes as long."""
        if asked.is_socket or asked.method != "GET" or not asked.path.startswith(NONCE_PREFIX):
            return None
        given, known = asked.path[len(NONCE_PREFIX) :].encode("utf-8", "surrogatepass"), False
        for nonce in tuple(self.nonces):  # all of them, always; a tunnel in another thread may add one
            known |= hmac.compare_digest(nonce.encode(), given)
        if known:
            self._asked_for.add(given.decode())
        return Answer.text(given) if known else None

    # ------------------------------------------------------------------ who asks

    def _cookie_name(self, asked: Asked) -> str:
        port = (asked.scope.get("server") or ("", 0))[1]
        return f"fastsd_session_{port}"  # a browser shares cookies among the ports of one host

    def _session_user(self, asked: Asked) -> str | None:
        cookie = asked.cookies().get(self._cookie_name(asked)) if self.access.asks else None
        return self.access.user_of_session(cookie) if cookie else None

    def _basic_user(self, asked: Asked, client: str) -> tuple[str | None, Answer | None]:
        given = self.access.user_of_basic(asked.header(b"authorization"))
        if given is None:
            return None, self._ask_for_password(asked)
        wait = self._wait(client)
        if wait:
            return None, wait
        if not self.access.knows(*given):
            self.throttle.failed(client)
            return None, self._ask_for_password(asked, "Incorrect username or password")
        self.throttle.succeeded(client)
        return given[0], None

    def _wait(self, client: str) -> Answer | None:
        wait_s = math.ceil(self.throttle.wait_s(client))
        if not wait_s:
            return None
        text = f"Too many wrong passwords; try again in {wait_s} s."
        return Answer.error(429, text, [(b"retry-after", str(wait_s).encode())])

    def _ask_for_password(self, asked: Asked, text: str = "Not authenticated") -> Answer:
        if asked.is_page_load:
            then = asked.path + (f"?{asked.query}" if asked.query else "")
            return Answer.redirect("/login" + ("" if then == "/" else f"?next={quote(then)}"))
        # a script of our own page gets a scheme for which browsers show no window of theirs
        scheme = b"Session" if asked.header(b"sec-fetch-mode") else b'Basic realm="fastsd", charset="UTF-8"'
        return Answer.error(401, text, [(b"www-authenticate", scheme)])

    # ------------------------------------------------------------------ sign in, sign out

    async def _login(self, asked: Asked, user: str | None, client: str, receive: Receive) -> Answer:
        if asked.method in ("GET", "HEAD"):
            then = login.local_address(parse_qs(asked.query).get("next", ["/"])[0])
            return Answer.redirect(then) if user else Answer.page(login.login_page(then))
        if asked.method != "POST" or not asked.media_type.endswith("x-www-form-urlencoded"):
            return Answer.error(405 if asked.method != "POST" else 415, "POST the form of the page /login.")
        try:
            form = await asyncio.wait_for(_small_form(receive), self.limits.silence_s)
        except (ValueError, asyncio.TimeoutError):
            return Answer.error(400, "That is not the form of the page /login.")
        name, password, then = (form.get(key, "") for key in ("username", "password", "next"))
        then = login.local_address(then)
        wait = self._wait(client)
        if wait is None and self.access.knows(name, password):
            self.throttle.succeeded(client)
            done = Answer.redirect(then) if asked.wants_html else Answer.json(200, b'{"success": true}')
            return done.with_headers(self._cookie(asked, self.access.begin_session(name), SESSION_S))
        if wait is None:
            self.throttle.failed(client)
            wait = Answer.error(401, "Incorrect username or password")
        if not asked.wants_html:
            return wait
        trouble = "That user and password do not fit." if wait.status == 401 else wait.detail
        return Answer.page(login.login_page(then, name[:200], trouble), wait.status, wait.headers)

    async def _logout(self, asked: Asked, user: str | None, client: str, receive: Receive) -> Answer:
        if asked.method != "POST":
            return Answer.page(login.logout_page(user)) if user else Answer.redirect("/login")
        if user:
            self.access.end_session(asked.cookies()[self._cookie_name(asked)])
        done = Answer.redirect("/login") if asked.wants_html else Answer.json(200, b'{"success": true}')
        return done.with_headers(self._cookie(asked, "", 0))

    def _cookie(self, asked: Asked, value: str, age_s: int) -> list[tuple[bytes, bytes]]:
        secure = "; Secure" if self.names.is_encrypted(asked) else ""
        text = f"{self._cookie_name(asked)}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}"
        return [(b"set-cookie", text.encode())]

    # ------------------------------------------------------------------ further in

    def _inner_scope(self, asked: Asked, user: str | None) -> Scope:
        """The request as the routes see it: no password, no session, nobody's word about another address."""
        headers = [(name, value) for name, value in asked.headers if not name.startswith(_UNTRUSTED)]
        if self.access.asks:
            own = self._cookie_name(asked)
            rest = "; ".join(f"{name}={value}" for name, value in asked.cookies().items() if name != own)
            headers = [pair for pair in headers if pair[0] not in (b"authorization", b"cookie")]
            headers += [(b"cookie", rest.encode("latin-1"))] if rest else []
        if (
            asked.method != "GET" and self.rules.shapes_errors
        ):  # pictures do not shrink, and an error must stay readable for us
            headers = [pair for pair in headers if pair[0] != b"accept-encoding"]
        scheme = self.names.scheme_of(asked)
        if asked.is_socket:
            scheme = "wss" if scheme == "https" else "ws"
        return {**asked.scope, "headers": headers, "scheme": scheme, "fastsd.user": user}

    async def _answer(self, asked: Asked, receive: Receive, send: Send, found: Answer) -> None:
        if asked.is_socket:
            await refuse_socket(asked, receive, send, found)
        else:
            await answer(asked, send, found)


async def _small_form(receive: Receive) -> dict[str, str]:
    """The fields of a form of at most LONGEST_LOGIN_BYTES; ValueError for anything else."""
    raw, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ValueError("the client left")
        raw += message.get("body", b"")
        more = message.get("more_body", False)
        if len(raw) > LONGEST_LOGIN_BYTES:
            raise ValueError("too long")
    fields = parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=10)
    return {name: values[0] for name, values in fields.items()}
