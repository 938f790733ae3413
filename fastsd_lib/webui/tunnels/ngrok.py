"""ngrok: its agent, run by us (pyngrok passes the token where every user of the machine can read it, and can hang).

pyngrok is asked for the program only. The token goes into a file that only we read and that is gone once the agent
has read it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from fastsd_lib.core.paths import expanded
from fastsd_lib.webui.tunnels.child import Child, Ended, Silent
from fastsd_lib.webui.tunnels.opening import Claim, Opening, write_private

_STARTED = re.compile(r'msg="started (?:tunnel|endpoint)".*?\burl="?(https?://[^\s"]+)')
_WEB = re.compile(r'msg="starting web service".*?\baddr="?([\w.:\[\]-]+)')
_TOKEN = re.compile(r"[A-Za-z0-9_-]{10,200}")
BY_LOG_S = 3.0  # then the agent's own interface is asked
_DASHBOARD = "https://dashboard.ngrok.com/get-started/your-authtoken"
_NEW_TOKEN = f"copy it again from {_DASHBOARD}"
TROUBLES = (
    ("ERR_NGROK_4018", "it wants an account's token.", f"get one free of charge at {_DASHBOARD} and give it."),
    ("ERR_NGROK_105", "the token is not one of ngrok's.", _NEW_TOKEN),
    ("ERR_NGROK_107", "the token is not valid any more.", _NEW_TOKEN),
    ("ERR_NGROK_108", "your account runs as many agents as it may.", "stop the other one: https://dashboard.ngrok.com/agents"),
    ("ERR_NGROK_334", "your address is in use by another agent.", "stop that one, or leave the domain out."),
    ("ERR_NGROK_120", "its program is too old.", "remove it: a new one is fetched; or run: ngrok update"),
    ("ERR_NGROK_121", "its program is too old.", "remove it: a new one is fetched; or run: ngrok update"),
    ("ERR_NGROK_8012", "its agent does not reach the web server.", "start the web server first."),
    ("ERR_NGROK_3200", "the address is not in use any more.", "start the tunnel again."),
    ("ERR_NGROK_314", "the domain is not yours, or not in your plan.", "check ngrok_domain."),
    ("ERR_NGROK_319", "the domain is not reserved in your account.", "reserve it, or leave ngrok_domain out."),
    ("ERR_NGROK_6024", "it showed its warning page to a program.", "try again, or take the next route."),
    ("ERR_NGROK_", "it refuses, with a code that is shown below.", "look it up: https://ngrok.com/docs/errors"),
    ("no such host", "ngrok's servers are not found.", "check the network."),
)  # fmt: skip


def open_ngrok(opening: Opening) -> Claim:
    """Start the agent with a config (version 3) of ours alone."""
    token = _token(opening)
    program = _agent(opening)
    file = write_private(opening.folder() / "ngrok.yml", _config(opening, token))
    command = [program, "start", "fastsd", "--config", str(file), "--log", "stdout", "--log-format", "logfmt"]
    child = opening.start(
        [*command, *(["--region", opening.config.region] if opening.config.region else [])], [token]
    )
    url = _address(opening, child)
    file.unlink(missing_ok=True)
    notes = []
    if ".ngrok-free." in url:
        notes.append(
            "On ngrok's free plan each visitor sees a page of ngrok's first and clicks Visit Site;"
            " programs send the header ngrok-skip-browser-warning."
        )
    return Claim(url, tuple(notes), child, troubles=TROUBLES)


def _config(opening: Opening, token: str) -> str:
    """JSON is YAML. The URL of the origin in full: with a bare host:port the agent answers 502."""
    endpoint = {"name": "fastsd", "upstream": {"url": f"http://127.0.0.1:{opening.port}"}}
    if opening.config.ngrok_domain:
        endpoint["url"] = f"https://{opening.config.ngrok_domain.removeprefix('https://').rstrip('/')}"
    agent = {
        "authtoken": token,
        "inspect_db_size": -1,
        "update_check": False,
    }  # -1: keeps no copy of any request
    return json.dumps({"version": "3", "agent": agent, "endpoints": [endpoint]}, indent=1)


def _token(opening: Opening) -> str:
    config = opening.config
    fix = f"get one free of charge at {_DASHBOARD} and give it as a file or in Colab's Secrets."
    try:
        if config.ngrok_token_file:
            token = expanded(config.ngrok_token_file).read_text(encoding="utf-8-sig")
        elif config.ngrok_token:
            token = opening.within(10.0, config.ngrok_token, "getting the token", fix) or ""
        else:
            token = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise opening.failed(f"the file of the token cannot be read: {reason}.", "check its path.") from None
    token = token.strip()
    if not token:
        raise opening.failed("there is no token (ERR_NGROK_4018).", fix)
    if not _TOKEN.fullmatch(token):
        raise opening.failed("what was given cannot be a token (ERR_NGROK_105).", _NEW_TOKEN)
    return token


def _agent(opening: Opening) -> str:
    """The program: the one named, that on PATH, pyngrok's; else pyngrok fetches it (without a checksum: it has none)."""
    if "ngrok" in opening.config.programs or shutil.which("ngrok"):
        return opening.program("ngrok", "check its path.")
    fix = "get it from https://ngrok.com/download and put it on PATH."
    try:
        from pyngrok import installer
        from pyngrok.exception import PyngrokError
    except ImportError:
        raise opening.failed("neither its program nor pyngrok is here.", fix) from None
    path = Path(installer.get_default_ngrok_dir()) / installer.get_ngrok_bin()
    if not path.exists():
        try:
            opening.within(30.0, lambda: installer.install_ngrok(str(path)), "fetching its program", fix)
        except (PyngrokError, OSError) as error:
            raise opening.failed(
                f"its program cannot be fetched: {str(error).splitlines()[0]}.", fix
            ) from None
    return str(path)


def _address(opening: Opening, child: Child) -> str:
    """From the agent's log; where it does not tell, from the interface that it has on this machine."""
    fix = "check the network to ngrok.com, or take the next route."
    web: list[str] = []

    def look(line: str) -> str | None:
        found = _WEB.search(line)
        if found and found[1] not in web:
            web.append(found[1])
        found = _STARTED.search(line)
        return found[1].rstrip("/") if found else None

    def look_for_either(line: str) -> str | None:
        opening.raise_if(TROUBLES, [line], child)
        return look(line)

    with suppress(Silent, Ended):
        return child.wait_for(look_for_either, min(opening.until, time.monotonic() + BY_LOG_S), opening.stop)
    while web and opening.left_s > 2.0 and not child.ended.is_set() and not opening.stop.is_set():
        if url := _told_by(web[-1]):
            return url
        opening.stop.wait(0.5)
    return opening.wait_for(child, look, TROUBLES, fix)


def _told_by(interface: str) -> str:
    """The agent's list of addresses: of version 3 as endpoints, of version 2 as tunnels; empty = none yet."""
    import httpx

    for path, name, field in (("endpoints", "endpoints", "url"), ("tunnels", "tunnels", "public_url")):
        with suppress(httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            answer = httpx.get(f"http://{interface}/api/{path}", timeout=2.0, trust_env=False)
            return str(answer.json()[name][0][field]).rstrip("/")
    return ""
