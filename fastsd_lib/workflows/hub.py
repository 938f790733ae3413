"""Hugging Face repositories as sessions: which ones a word or link means, and how their files are fetched."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from fastsd_lib.core.archives import MAX_BYTES, MAX_ENTRIES, path_danger, unsafe
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.core.text import escaped
from fastsd_lib.models.registry import HUB_ID
from fastsd_lib.sessions.intake import Intake

_SIGNS = re.compile(r"([^/]+/)?(session\.json|recipe\.yaml|instance_images/.+|instance_images\.zip)")


def is_repository(word: str) -> bool:
    """Whether `word` has the form of org/name."""
    return bool(HUB_ID.fullmatch(word)) and ".." not in word and "--" not in word


def repository_of(link: str) -> tuple[str, str] | None:
    """(org/name, "model" or "dataset") of a link to huggingface.co or HF_ENDPOINT; None for any other."""
    try:
        parts, endpoint = urlsplit(link), urlsplit(os.environ.get("HF_ENDPOINT", ""))
    except ValueError:  # half an IPv6 address
        return None
    if parts.netloc not in {
        "huggingface.co",
        "www.huggingface.co",
        "hf.co",
        endpoint.netloc or "huggingface.co",
    }:
        return None
    words = [unquote(word) for word in parts.path.split("/") if word]
    kind = "dataset" if words[:1] == ["datasets"] else "model"
    name = "/".join(words[1:3] if kind == "dataset" else words[:2])
    if not is_repository(name):
        raise UserError(
            "This Hugging Face link names no repository.", fix="it looks like https://huggingface.co/org/name"
        )
    return name, kind


def fetch(repository: str, kind: str, folder: Path, token: str | None, report: Report) -> tuple[Intake, str]:
    """Every file of a repository that holds a session, each compared with the hash that the Hub lists; its name.

    UserError when it holds none, cannot be opened, or a file arrives otherwise than it was listed.
    """
    require("huggingface_hub", group="core")
    from huggingface_hub import HfApi, hf_hub_download

    intake = Intake(folder, repository)
    api = HfApi(token=token or False)
    try:
        info = api.repo_info(repository, repo_type=kind, files_metadata=True, timeout=20)
    except Exception as error:  # of httpx or requests, by version
        raise plain_error(error, repository, token) from None
    listed = _checked(intake, info.siblings or [])
    for number, one in enumerate(listed):
        report(ProgressEvent("fetched", number, len(listed), {"file": escaped(one.rfilename[-60:])}))
        try:
            got = hf_hub_download(
                repository, one.rfilename, repo_type=kind, revision=info.sha, token=token or False,
                cache_dir=folder / "cache",
            )  # fmt: skip
        except Exception as error:
            if isinstance(error, OSError) and error.errno and error.filename:
                raise
            raise plain_error(error, repository, token) from None
        with Path(got).open("rb") as file:
            piece = intake.take(one.rfilename, iter(lambda: file.read(CHUNK_BYTES), b""))
        Path(got).resolve().unlink(missing_ok=True)
        if not _as_listed(one, piece.path, piece.sha256):
            raise UserError(
                f"{escaped(one.rfilename)} arrived damaged from Hugging Face.",
                fix="import it again in a minute.",
            )
    report(ProgressEvent("fetched", len(listed), len(listed)))
    return intake, repository.split("/")[-1]


def _checked(intake: Intake, siblings: list[Any]) -> list[Any]:
    if not any(_SIGNS.fullmatch(one.rfilename) for one in siblings):
        raise UserError(
            f"{intake.label} on Hugging Face is no session: it has no session.json, recipe.yaml or instance_images/.",
            fix=f"for a model: python3 -m fastsd_lib models download {intake.label}",
        )
    if len(siblings) > MAX_ENTRIES:
        raise unsafe(intake.label, f"it holds more than {MAX_ENTRIES} files")
    if sum(one.size or 0 for one in siblings) > MAX_BYTES:
        raise unsafe(intake.label, f"it holds more than {MAX_BYTES / 1e9:.0f} GB")
    for one in siblings:
        if reason := path_danger(one.rfilename):
            raise unsafe(intake.label, reason)
    # The model card is the Hub's; a session has its own README.
    return [
        one
        for one in siblings
        if PurePosixPath(one.rfilename).name != "README.md" and intake.wants(one.rfilename)
    ]


def _as_listed(one: Any, path: Path, sha256: str) -> bool:
    """Large files are listed with their SHA-256, others with git's hash of them."""
    if one.lfs is not None:
        return one.lfs.sha256 == sha256
    if not one.blob_id:
        return True
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return one.blob_id == digest.hexdigest()


def plain_error(error: Exception, repository: str, token: str | None) -> UserError:
    """One clear line per cause; the library's own text may quote the request and is not repeated."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    tokens = "huggingface.co/settings/tokens"
    if kind == "GatedRepoError":
        return UserError(
            f"{repository} is gated: its terms must be accepted first.",
            fix=f"open https://huggingface.co/{repository}, accept, and set HF_TOKEN to a token of that account.",
        )
    if token and status in (401, 403):
        return UserError(
            f"Hugging Face refused the token for {repository}: it is wrong or lacks the right to do this.",
            fix=f"make one with the role Write at {tokens} and set HF_TOKEN, or: hf auth login",
        )
    if status in (401, 403, 404) or "NotFound" in kind:
        return UserError(
            f"There is no repository {repository} on Hugging Face that is open to {'you' if token else 'everybody'}.",
            fix=f"check its name; for a private one set HF_TOKEN ({tokens}), or: hf auth login",
        )
    if status is not None:
        return UserError(
            f"Hugging Face answered {status} for {repository}.", fix="try again in a few minutes."
        )
    return UserError(f"No connection to Hugging Face ({kind}).", fix="connect to the network and try again.")
