"""Where the file behind a link is fetched from: Hugging Face, CivitAI, Google Drive, any https address."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from fastsd_lib.core.archives import path_danger
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.https_client import Reach
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.environment.tokens import civitai_token, hub_token
from fastsd_lib.models.downloading import DownloadRules, Source, download_file
from fastsd_lib.workflows import civitai, drive_links, hub
from fastsd_lib.workflows.model_kinds import refuse_told

HUB = "https://huggingface.co"
WORKS = (
    "the link of a file on Hugging Face or CivitAI, a Google Drive link that everyone may open, any https address of "
    "a file, or the path of one that you have"
)
_FILE_OF_HUB = re.compile(r"/(?:blob|resolve|raw)/([^/]+)/(.+)")
_FILE_ID = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)/(.+\.(?:safetensors|ckpt|pt|pth|bin|gguf))", re.IGNORECASE)


@dataclass(frozen=True)
class Hosts:
    """Where the sites are; tests have theirs on this machine, and HF_ENDPOINT names a mirror of the Hub."""

    hub: str = field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB)
    civitai: str = civitai.ENDPOINT
    rules: DownloadRules = field(default_factory=DownloadRules)


@dataclass(frozen=True)
class Fetched:
    """A file that has come, and what its site tells of it."""

    path: Path
    kind: str = ""
    notes: tuple[str, ...] = ()


def is_link(text: str) -> bool:
    """Also CivitAI's names of files ("urn:air:...")."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://|urn:air:", text.strip(), re.IGNORECASE))


def is_file_of_hub(text: str) -> bool:
    """A link to one file of a repository, or ORG/NAME/FILE."""
    if not is_link(text):
        return bool(_FILE_ID.fullmatch(text.strip()))
    return hub.repository_of(text) is not None and bool(_FILE_OF_HUB.search(urlsplit(text).path))


def fetch_link(
    link: str, folder: Path, root: Path | None, hosts: Hosts, report: Report, kind: str = ""
) -> Fetched:
    """The file behind `link`, whole, in `folder`, where a broken download is gone on with. UserError for no file.

    `kind`: what it must be; only CivitAI tells before.
    """
    link = link.strip()
    if civitai.is_civitai(link, hosts.civitai):
        reach = Reach(hosts.rules.http_allowed, hosts.rules.private_allowed, hosts.rules.ssl_context)
        found = civitai.release(link, civitai_token(root), hosts.civitai, reach)
        refuse_told(found.title or "This model", found.kind, kind)
        for note in found.notes:
            report(ProgressEvent("CivitAI", 1, 1, {"": note.removeprefix("CivitAI: ")}))
        return Fetched(download_file(found.sources, folder, hosts.rules, report), found.kind, found.notes)
    if drive_links.is_drive(link):
        return Fetched(drive_links.fetch_model(link, folder, report))
    if _FILE_ID.fullmatch(link) or hub.repository_of(link) is not None:
        source, rules = _of_hub(link, root, hosts)
        return Fetched(download_file([source], folder, rules, report))
    return Fetched(download_file([Source(link)], folder, hosts.rules, report))


def _of_hub(link: str, root: Path | None, hosts: Hosts) -> tuple[Source, DownloadRules]:
    """The address of one file of a repository; the token goes to the Hub alone."""
    if found := _FILE_ID.fullmatch(link):
        repository, kind, revision, name = found[1], "model", "main", found[2]
    else:
        repository, kind = hub.repository_of(link) or ("", "")
        found = _FILE_OF_HUB.search(urlsplit(link).path)
        if found is None:
            raise UserError(f"This link names {repository}, but no file of it.", fix=f"give {WORKS}.")
        revision, name = unquote(found[1]), unquote(found[2])
    if reason := path_danger(name) or path_danger(revision):
        raise UserError(f"This link cannot be followed: {reason}.", fix=f"give {WORKS}.")
    token = hub_token(root)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    place = f"{'datasets/' if kind == 'dataset' else ''}{repository}/resolve/{quote(revision, safe='')}/{quote(name)}"
    rules = hosts.rules
    if hosts.hub != HUB:  # a mirror that the user set up himself: where it stands is his business
        rules = replace(rules, http_allowed=True, private_allowed=True)
    return Source(f"{hosts.hub}/{place}", headers=headers), rules
