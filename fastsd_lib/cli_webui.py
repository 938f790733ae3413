"""`fastsd webui`: the web UI and its API, from the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from fastsd_lib.cli_words import command


def add_webui(known: Any) -> None:
    parser = command(known, "webui", _webui, "the web UI and its HTTP API", as_json=False)
    parser.add_argument("--model", default="embedded", metavar="M")
    parser.add_argument("--no-ui", "--nowebui", action="store_true", help="the HTTP API alone")
    parser.add_argument(
        "--library", type=Path, metavar="DIR", help="a folder with models/Stable-diffusion, models/Lora ..."
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="pictures, history and settings (usual: ~/fastsd/webui)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--dtype", default="auto", help="auto, fp16, bf16, fp32")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--model-memory-mib", type=int, metavar="N", help="for models that stay loaded")
    parser.add_argument("--most-waiting", type=int, metavar="N", help="orders in the queue")
    _add_door(parser)
    risky = parser.add_argument_group("closed unless you open it")
    risky.add_argument(
        "--fetch-urls", action="store_true", help="the API may fetch pictures from https addresses"
    )
    risky.add_argument("--api-server-stop", action="store_true", help="the API may end the server")


def _add_door(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("who gets in").add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=7860)
    add("--user", metavar="U")
    add(
        "--password",
        metavar="P",
        help="seen by all users of this machine while it starts; better: FASTSD_PASSWORD or --password-file",
    )
    add("--password-file", type=Path, metavar="FILE", help="lines user:password, or with --user the password")
    add("--no-auth", action="store_true", help="ask nobody for a password")
    add("--anyone-may-use-this-machine", action="store_true", help="with --no-auth: although others reach it")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name it may be called by")


def _webui(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import webui

    if options.password:
        webui.hide_password(options.password)
    from_surroundings = os.environ.pop("FASTSD_PASSWORD", None)  # what we start need not know it
    webui.serve(
        webui.WebuiConfig(
            options.model,
            ui=not options.no_ui,
            library=options.library,
            folder=options.folder,
            device=options.device,
            dtype=options.dtype,
            threads=options.threads,
            budget_mib=options.model_memory_mib,
            most_waiting=options.most_waiting,
            fetch_urls=options.fetch_urls,
            server_stop=options.api_server_stop,
        ),
        host=options.host,
        port=options.port,
        user=options.user,
        password=options.password or (None if options.password_file else from_surroundings),
        password_file=options.password_file,
        no_auth=options.no_auth,
        open_to_all=options.anyone_may_use_this_machine,
        names=options.allow_host,
    )
    return 0
