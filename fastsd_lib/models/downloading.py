"""A model file from the internet: whole or not at all, gone on with after a break, and only from where it may come.

`download_file` is the one way in which files are fetched by their address. core.https_client checks and dials
addresses; `download_transfer` fetches what is missing over `download_line`s, `download_watch` looks on,
`download_answers` reads what servers say, `download_part` keeps what is there, `download_names` finds the name.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fsync_path, sha256_file
from fastsd_lib.core.https_client import shown_url
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.models.download_answers import Changed, Failed
from fastsd_lib.models.download_names import chosen_name, free_place, with_true_suffix
from fastsd_lib.models.download_part import Part
from fastsd_lib.models.download_transfer import Transfer
from fastsd_lib.models.download_watch import DownloadStopped, Watch

__all__ = ["DownloadRefused", "DownloadRules", "DownloadStopped", "Source", "download_file"]

WORTH_A_NEW_TRY = 64 << 10  # bytes: a try that brought so many does not count as one that failed
_KEYS = {
    "token",
    "key",
    "api_key",
    "apikey",
    "access_token",
    "sig",
    "signature",
    "expires",
    "policy",
    "key-pair-id",
}


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
    parts: int = 4  # connections at once, where the server gives parts of a large file
    segment_bytes: int = 32 << 20  # asked for at once; a file that is no larger needs one connection
    redirects: int = 5
    tries: int = 4  # of one source, without progress
    wait_s: float = 1.0  # before the second try; twice as long before each further one
    most_wait_s: float = 120.0  # a server that wants a longer rest is left
    save_s: float = 2.0  # how often it is written down what is there
    http_allowed: bool = False
    private_allowed: bool = False  # tests only, and a mirror that the user set up himself (HF_ENDPOINT)
    ssl_context: ssl.SSLContext | None = None  # None = the certificates that this machine believes


class DownloadRefused(UserError):
    """No source gave the file, each for the reason told."""


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
    DownloadRefused names the reason of each source; OwnDisk, DownloadStopped and a second program that fetches the
    same file are UserErrors of their own.
    """
    if not sources:
        raise DownloadRefused("There is no address to fetch from.", fix="give a link or a path.")
    failures = []
    for source in sources:
        try:
            return _from_source(source, folder, rules, report, should_stop)
        except Failed as failure:
            failures.append((source, failure))
    told = [f"{shown_url(source.url)} {failure.reason}" for source, failure in failures]
    if len(told) == 1:
        raise DownloadRefused(f"{told[0]}.", fix=failures[0][1].fix)
    raise DownloadRefused(
        f"None of {len(told)} addresses gave the file: {'; '.join(told)}.", fix=failures[0][1].fix
    )


def _from_source(
    source: Source, folder: Path, rules: DownloadRules, report: Report, should_stop: Callable[[], bool] | None
) -> Path:
    origin = _fingerprint(_without_keys(source.url))
    key = source.sha256.lower()[:16] or origin
    if (there := _lies_there(source, folder)) is not None:
        return there
    with Part(folder, key).opened() as part:
        # Without a sign of the file's version, only its hash can tell whether old and new bytes belong together.
        if not (source.sha256 or (part.validator and part.origin == origin)):
            part.forget()
        watch = Watch(source, part, rules, report, should_stop, _called(source, part, key))
        resumed = part.bytes_done > 0
        sha256 = _fetch_all(source, part, rules, origin, watch)
        if (found := _other_hash(part, sha256)) and resumed:  # old and new bytes do not belong together
            part.forget()
            sha256 = _fetch_all(source, part, rules, origin, watch)
            found = _other_hash(part, sha256)
        if found:
            part.remove()
            raise Failed(
                f"gives another file than expected (SHA-256 {found[:12]}..., not {sha256[:12]}...)",
                "take another address, or ask who gave you the hash.",
            )
        name = with_true_suffix(_called(source, part, key), part.path)
        return _put(part, folder, name, sha256)


def _fetch_all(source: Source, part: Part, rules: DownloadRules, origin: str, watch: Watch) -> str:
    """Try until every byte is there; the SHA-256 to expect ("" = not known)."""
    context = rules.ssl_context
    if context is None and source.url.startswith("https:"):
        context = ssl.create_default_context()  # one for all connections: it reads hundreds of certificates
    failed = changed = 0
    lines, ranges = rules.parts, True
    while True:
        if part.size is not None and not part.missing():
            return source.sha256.lower()
        before = part.bytes_done
        transfer = Transfer(
            source,
            part,
            rules,
            context,
            lines=lines,
            ranges=ranges,
            origin=origin,
            check_size=watch.check_size,
        )
        try:
            transfer.run(watch)
            part.record()
            return transfer.sha256
        except Changed as failure:
            changed += 1
            if changed > 2:
                part.remove()
                raise Failed(
                    f"{failure.reason}, time and again", "take another address of this file."
                ) from None
            ranges = ranges and failure.ranges
            part.forget()
        except Failed as failure:
            lasting = _lasting(part, source) and ranges
            worth = min(WORTH_A_NEW_TRY, (part.size or 0) // 8)
            failed = 1 if lasting and part.bytes_done - before >= worth else failed + 1
            last = not failure.again or failed >= rules.tries
            _keep(part, lasting, last)
            if last:
                raise
            watch.rest(max(failure.wait_s, rules.wait_s * 2 ** (failed - 1)))
            lines = max(1, lines // 2)
        except BaseException:  # stopped, or our own disk
            _keep(part, _lasting(part, source) and ranges, last=True)
            raise


def _lasting(part: Part, source: Source) -> bool:
    """Whether what is there can be gone on with."""
    return bool(part.size and part.bytes_done and (part.validator or source.sha256))


def _keep(part: Part, lasting: bool, last: bool) -> None:
    """What is there for the next try; nothing when that would begin afresh anyway and none comes."""
    if lasting:
        part.record()
    elif last:
        part.remove()
    else:
        part.forget()


def _other_hash(part: Part, sha256: str) -> str:
    """The hash of what came where another is expected; "" where it is right, or nobody knows."""
    found = sha256_file(part.path) if sha256 else ""
    return "" if found == sha256 else found


def _called(source: Source, part: Part, key: str) -> str:
    return chosen_name(source.name, part.name, source.url, key)


def _put(part: Part, folder: Path, name: str, sha256: str) -> Path:
    """Give the whole file its name, unless the very same lies there under it."""
    there = folder / name
    same_size = there.is_file() and there.stat().st_size == part.size
    if same_size and sha256_file(there) == (sha256 or sha256_file(part.path)):
        part.remove()
        return there
    final = free_place(folder, name)
    part.finish(final)
    fsync_path(folder)
    return final


def _lies_there(source: Source, folder: Path) -> Path | None:
    """The file, if it is there by its name and has the hash that it should have."""
    if not source.sha256:
        return None
    path = folder / chosen_name(source.name, "", source.url, "")
    same = path.is_file() and (not source.size_bytes or path.stat().st_size == source.size_bytes)
    return path if same and sha256_file(path) == source.sha256.lower() else None


def _without_keys(url: str) -> str:
    """An address without what changes from call to call or is nobody's business."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return url
    kept = [
        (name, value)
        for name, value in pairs
        if name.lower() not in _KEYS and not name.lower().startswith("x-amz-")
    ]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(kept), ""))


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
