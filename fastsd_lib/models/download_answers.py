"""What a server's answer to a request for (a part of) a file means: the bytes that follow, or why there are none."""

from __future__ import annotations

import email.utils
import html
import http.client
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastsd_lib.core.file_kinds import kind_of
from fastsd_lib.core.text import escaped, one_line
from fastsd_lib.models.download_names import name_in_disposition

TITLE_BYTES = 64 << 10  # of a web page: its title stands near the beginning
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_HEX64 = re.compile(r"[0-9a-f]{64}")
#: Where files want an account -> how to show one.
_ACCOUNTS = {
    "huggingface.co": "check the spelling; if the model is gated, accept its licence on its page, and set HF_TOKEN"
    " to a token of that account (huggingface.co/settings/tokens), or put it into token.txt.",
    "civitai.com": "make an API key (civitai.com/user/account) and set CIVITAI_TOKEN, or put it into civitai_token.txt.",
}
LATER = "try again later: what was fetched so far is kept."


class Failed(Exception):
    """A source did not give the file. `again`: the same request may succeed in a while."""

    def __init__(self, reason: str, fix: str = "", *, again: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.fix, self.again, self.wait_s = reason, fix or LATER, again, wait_s


class Changed(Failed):
    """What is there does not belong to what comes now: begin afresh. `ranges` False: without asking for parts."""

    def __init__(self, reason: str, *, ranges: bool = True) -> None:
        super().__init__(reason, again=True)
        self.ranges = ranges


@dataclass(frozen=True)
class Offer:
    """The bytes that an answer brings."""

    start: int
    end: int | None  # None = until the connection ends
    size: int | None  # of the whole file
    validator: str
    name: str
    partial: bool  # the server understands ranges


def read_offer(
    response: http.client.HTTPResponse, asked: tuple[int, int | None] | None, url: str, most_wait_s: float
) -> Offer:
    """What `response` to a request for the bytes `asked` (None = all) brings. Failed for anything that is no file."""
    status = response.status
    if status not in (200, 206):
        raise failure_of(status, response.getheader("retry-after") or "", url, most_wait_s)
    packing = (response.getheader("content-encoding") or "identity").strip().lower()
    if packing != "identity":
        raise Failed(f"sends the file packed ({escaped(packing[:20])})", "take another address of this file.")
    validator, name = (
        _validator(response),
        name_in_disposition(response.getheader("content-disposition") or ""),
    )
    if status == 200:
        size = response.length  # None where it is not told, or nonsense
        return Offer(0, size, size, validator, name, partial=False)
    found = _RANGE.fullmatch((response.getheader("content-range") or "").strip())
    if found is None or asked is None:
        raise Changed("answers with a part that it does not describe", ranges=False)
    start, last, size = map(int, found.groups())
    wrong = start != asked[0] or not start <= last < size or (asked[1] is not None and last >= asked[1])
    if wrong or response.length not in (None, last + 1 - start):
        raise Changed("answers with other bytes than those it was asked for", ranges=False)
    return Offer(start, last + 1, size, validator, name, partial=True)


def failure_of(status: int, retry_after: str, url: str, most_wait_s: float) -> Failed:
    account = account_fix(url)
    if status == 401:
        return Failed("wants you to sign in (401)", account)
    if status == 403:
        return Failed("does not let you have this file (403)", account)
    if status in (404, 410):
        return Failed(
            f"has no such file ({status})", "check the address: the file may have been renamed or removed."
        )
    if status == 416:
        return Changed("has a shorter file now (416)")
    if status in (408, 425, 429) or status >= 500:
        wait_s = _seconds(retry_after)
        why = "has had too many requests" if status == 429 else "has trouble"
        if wait_s > most_wait_s:
            return Failed(f"{why} and wants {wait_s:,.0f} s of rest ({status})")
        return Failed(f"{why} ({status})", again=True, wait_s=wait_s)
    return Failed(f"answers {status}", "check the address, or take another one.")


def account_fix(
    url: str, otherwise: str = "sign in there with your browser, download the file and give its path."
) -> str:
    """How to be let in at the host of `url`."""
    host = urlsplit(url).hostname or ""
    found = (fix for site, fix in _ACCOUNTS.items() if host == site or host.endswith(f".{site}"))
    return next(found, otherwise)


def web_page_title(head: bytes, content_type: str) -> str | None:
    """The title (perhaps "") when these first bytes are of a web page; None when they are not."""
    said = content_type.lower().startswith(("text/html", "application/xhtml"))
    if kind_of(head[:512]) != "web page" and not (
        said and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    ):
        return None
    found = re.search(rb"<title[^>]*>(.*?)</title", head, re.IGNORECASE | re.DOTALL)
    text = html.unescape(found[1].decode("utf-8", "replace")) if found else ""
    return one_line(text)[:120]


def linked_hash(headers: dict[str, str]) -> str:
    """The SHA-256 that Hugging Face tells of a large file when it redirects to where that lies."""
    found = headers.get("x-linked-etag", "").strip('"').lower()
    return found if _HEX64.fullmatch(found) else ""


def _validator(response: http.client.HTTPResponse) -> str:
    tag = (response.getheader("etag") or "").strip()
    if tag and not tag.startswith("W/"):  # a weak one may stand for other bytes
        return tag
    return (response.getheader("last-modified") or "").strip()


def _seconds(retry_after: str) -> float:
    """A Retry-After: a number of seconds, or a date."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    when = email.utils.parsedate_tz(text) if text else None
    return max(email.utils.mktime_tz(when) - time.time(), 0.0) if when else 0.0
