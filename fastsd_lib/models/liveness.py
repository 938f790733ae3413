"""Whether the sources of known models answer today: asked one by one, and nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING

from fastsd_lib.core.https_client import PUBLIC, Deadline, FetchRefused, Reach, UnknownHost, open_url
from fastsd_lib.models.known_models import KnownModel, hub_source, shown_source

if TYPE_CHECKING:
    from fastsd_lib.models.controls import KnownControl

HUB = "https://huggingface.co"
LONGEST_S = 15.0
#: (https address, headers that are secret) -> the status of the answer. UnknownHost, OSError: no connection.
Head = Callable[[str, Mapping[str, str]], int]


@dataclass(frozen=True)
class SourceState:
    """What one source answered."""

    source: str  # as people write it
    there: bool
    told: str  # "there", "gone (404)", "gated: ...", "no connection"


def ask(url: str, secrets: Mapping[str, str], reach: Reach = PUBLIC) -> int:
    """The status with which `url` answers. A redirect is an answer: large files are kept elsewhere."""
    with Deadline(LONGEST_S) as deadline:
        opened = open_url(
            url,
            {"range": "bytes=0-0"},
            secrets=secrets,
            reach=reach,
            seconds_left=deadline.seconds_left,
            watch=deadline.watch,
        )
        opened.connection.close()
        return opened.response.status


def check_mirrors(
    model: KnownModel | KnownControl, head: Head = ask, token: str = "", endpoint: str = ""
) -> tuple[SourceState, ...]:
    """The state of each source of a known model or control, in their order.

    `token`: of Hugging Face, sent to it alone; `endpoint`: a mirror of huggingface.co (or HF_ENDPOINT).
    """
    hub = (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return tuple(_state(source, model.gated, head, token, hub) for source in model.mirrors)


def _state(source: str, gated: bool, head: Head, token: str, hub: str) -> SourceState:
    place = hub_source(source)
    secrets = {"authorization": f"Bearer {token}"} if place and token else {}
    # A folder's index stands for it: what is told of a repository itself leaves out whether its files are gated.
    url = f"{hub}/{place.hub_id}/resolve/main/{place.file or 'model_index.json'}" if place else source
    tell = partial(SourceState, shown_source(source))
    try:
        status = head(url, secrets)
    except UnknownHost:
        return tell(False, "no connection, or no such host")
    except FetchRefused as error:
        return tell(
            False, f"not asked: the address {error.why}" if error.why else f"not asked: {error.message}"
        )
    except (OSError, HTTPException) as error:
        return tell(False, f"no connection ({type(error).__name__})")
    if status < 400:
        return tell(True, "there")
    if status == 403 or (status == 401 and gated):
        page = f" at {HUB}/{place.hub_id}" if place else ""
        return tell(True, f"gated: its licence must be accepted{page}, and a token of that account given")
    if status in (401, 404, 410):
        return tell(False, f"gone ({status})")
    return tell(False, f"answers {status}; try again in a few minutes")
