"""What every route needs to answer: handed to each file's `router(context)`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request

if TYPE_CHECKING:
    from fastsd_lib.generation.service import Service
    from fastsd_lib.webui.options import Options


@dataclass(frozen=True)
class ApiLimits:
    """What one request may ask for; refused with a 4xx before a pixel is decoded or drawn."""

    picture_pixels: int = 64_000_000  # of a picture that is sent
    picture_side_px: int = 16_384
    picture_bytes: int = 64 * 2**20  # of one picture's file
    side_px: int = 8192  # of a picture that is drawn or enlarged
    pixels: int = 4096 * 4096
    pictures: int = 1000  # of one request: batch_size * n_iter
    steps: int = 1000
    prompt_letters: int = 100_000
    networks: int = 64  # <lora:...> tags of one prompt
    control_units: int = 10
    script_args: int = 1000


@dataclass(frozen=True)
class ApiFlags:
    """What whoever starts the server may open; closed unless said otherwise."""

    fetch_urls: bool = False  # pictures by https address, from global addresses only
    server_stop: bool = False  # /sdapi/v1/server-kill, -stop, -restart


@dataclass
class ApiContext:
    """One per server."""

    service: Service
    options: Options
    pictures_dir: Path | None = None  # where `save_images` saves; None = nowhere
    limits: ApiLimits = field(default_factory=ApiLimits)
    flags: ApiFlags = field(default_factory=ApiFlags)
    # Pictures are coded here: neither on the thread that draws nor on the one that answers everybody.
    coders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "pictures"))


def owner_of(request: Request) -> str:
    """Who asks: the user that the guard let in, "" where the server asks for no password."""
    return request.scope.get("fastsd.user") or ""
