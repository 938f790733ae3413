"""How a ViT is served. Light: no torch, no fastapi."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastsd_lib.vit.config import Features


@dataclass(frozen=True)
class ServeConfig:
    """Where the server listens, who gets in, and how much one request may ask for."""

    port: int | None = 8080  # None = any free one
    host: str = "127.0.0.1"
    user: str = ""  # "" = "fastsd"
    password: str = field(default="", repr=False)  # "" = none on this machine alone, else one is made
    password_file: Path | None = None
    no_auth: bool = False
    anyone_may_use_this_machine: bool = False  # said beside no_auth when other machines reach the server
    tunnel: bool = False  # a tunnel will lead here: always a password
    names: tuple[str, ...] = ()  # further host names by which the server may be called
    fetch_urls: bool = False  # pictures by https address, of public servers only

    top_k: int = 5
    features: Features = field(default_factory=Features)  # of /embed
    max_batch: int = 16
    max_wait_ms: float = 10.0  # for company, and only on a busy server
    queue_limit: int = 256  # pictures in work and waiting; more are told to come again
    decoders: int = 0  # threads that decode pictures; 0 = as many as processors, 4 at most

    pictures_per_request: int = 32
    body_mib: int = 48
    bodies_mib: int = 512  # of all requests together
    picture_pixels: int = 64_000_000
    picture_side_px: int = 16_384
    timeout_s: float = 60.0  # from the whole request to its answer
    body_s: float = 60.0  # until a body is there
    silence_s: float = 10.0  # between two pieces of it
    requests_per_client: int = 256
    grace_s: float = 30.0  # for requests under way when the server is asked to end
