"""A model file from the internet: whole or not at all, gone on with after a break, and only from where it may come.

`download_file` is the one way in which files are fetched by their address. Addresses are checked and dialled by
core.https_client; what is on its way is `download_part`'s, who fetches which bytes `download_lines`'s.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import Report, silent


@dataclass(frozen=True)
class Source:
    """One address of a file, and what is known of the file before."""

    url: str
    sha256: str = ""  # hex; "" = not known
    size_bytes: int = 0  # 0 = not known
    name: str = ""  # what the file is to be called; "" = as the server or the address says
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # secrets: for this host alone


@dataclass(frozen=True)
class DownloadRules:
    """What a download may cost, and where it may go."""

    most_bytes: int = 200_000_000_000
    stall_s: float = 60.0  # this long with next to no bytes is the end of a try
    parts: int = 4  # connections at once, where the server gives ranges
    redirects: int = 5
    http_allowed: bool = False
    private_allowed: bool = False  # tests only, and a mirror that the user set up himself (HF_ENDPOINT)
    ssl_context: ssl.SSLContext | None = None  # None = the certificates that this machine believes


class DownloadRefused(UserError):
    """No source gave the file, each for the reason told."""


class DownloadStopped(UserError):
    """`should_stop` said so; the same call goes on from there."""


def download_file(
    sources: Sequence[Source],
    folder: Path,
    rules: DownloadRules = DownloadRules(),
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
) -> Path:
    """The file behind the first source that gives it, whole and checked, in `folder`.

    A broken download is gone on with by the next call for the same file. A file of the same name is never written
    over: with the same content it is what is returned, beside other content the new one is called NAME-2.
    DownloadRefused names the reason of each source.
    """
    raise NotImplementedError
