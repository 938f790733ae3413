"""CivitAI: what a link to it means, and what its API tells of the file before a byte is fetched.

By its public description (developer.civitai.com/site): GET /api/v1/model-versions/ID and /api/v1/models/ID, the key as
`Authorization: Bearer KEY`; files have `hashes.SHA256`, and downloads redirect to a signed address elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.fetching import fetch
from fastsd_lib.core.https_client import PUBLIC, FetchRefused, Reach, UnknownHost
from fastsd_lib.core.text import escaped, one_line
from fastsd_lib.models.downloading import Source

ENDPOINT = "https://civitai.com"
HOSTS = {
    "civitai.com",
    "www.civitai.com",
    "civitai.red",
    "www.civitai.red",
    "civitai.green",
    "www.civitai.green",
}
MOST_BYTES = 8 << 20  # of an answer: some list a thousand pictures
#: Its types -> our kinds.
KINDS = {
    "Checkpoint": "checkpoint", "LORA": "lora", "LoCon": "lora", "DoRA": "lora", "TextualInversion": "embedding",
    "VAE": "vae", "Controlnet": "controlnet", "Upscaler": "upscaler", "MotionModule": "motion-module",
}  # fmt: skip
_AIR = re.compile(r"(?:urn:)?air:[\w-]+:[\w-]+:civitai:(\d+)(?:@(\d+))?")
_WAYS_TO_VERSION = re.compile(r"/(?:api/download/models|api/v1/model-versions|model-versions)/(\d+)")
_WAY_TO_MODEL = re.compile(r"/(?:api/v1/)?models/(\d+)")
#: What a download address may say of the file that it means -> where the file says it.
_CHOICES = ("type", "format", "size", "fp")
_FORM = "it looks like https://civitai.com/models/NUMBER?modelVersionId=NUMBER, from its page or its download button."


@dataclass(frozen=True)
class Release:
    """One file of one version of a model."""

    sources: tuple[Source, ...]
    kind: str  # ours; "" for types that we have no folder for
    notes: tuple[str, ...]  # title, base model, trigger words
    title: str = ""


def is_civitai(link: str, endpoint: str = ENDPOINT) -> bool:
    if _AIR.fullmatch(link.strip()):
        return True
    try:
        parts = urlsplit(link.strip())
    except ValueError:
        return False
    return parts.hostname in HOSTS or parts.netloc == urlsplit(endpoint).netloc


def release(link: str, token: str | None = None, endpoint: str = ENDPOINT, reach: Reach = PUBLIC) -> Release:
    """The file behind a link to a model's page, a version, a download, or an AIR; the newest version where none is named.

    A key in the link (`?token=`) is used like `token`. UserError for links that name no model, for models that are
    gone, and when CivitAI cannot be asked.
    """
    model, version, query = _named(link)
    token = query.get("token") or token
    secrets = {"Authorization": f"Bearer {token}"} if token else {}
    if version:
        told = _ask(f"{endpoint}/api/v1/model-versions/{version}", secrets, reach, f"version {version}")
        about = told.get("model")
    else:
        about = _ask(f"{endpoint}/api/v1/models/{model}", secrets, reach, f"model {model}")
        versions = [one for one in _rows(about.get("modelVersions")) if _rows(one.get("files"))]
        if not versions:
            raise UserError(f"Model {model} on CivitAI has no file to fetch.", fix="take another model.")
        told = versions[0]  # the newest comes first
    about = about if isinstance(about, Mapping) else {}
    file = _chosen_file(_rows(told.get("files")), query)
    return Release(
        _sources(told, file, endpoint, secrets),
        KINDS.get(_text(about.get("type")), ""),
        _notes(told, about),
        _shown(about.get("name")),
    )


def _named(link: str) -> tuple[str, str, dict[str, str]]:
    """(model, version, query): numbers as text, "" where the link does not name it."""
    if found := _AIR.fullmatch(link.strip()):
        return found[1], found[2] or "", {}
    parts = urlsplit(link.strip())
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    model, version = _WAY_TO_MODEL.match(parts.path), _WAYS_TO_VERSION.match(parts.path)
    number = version[1] if version else query.get("modelVersionId", "")
    if not re.fullmatch(r"\d{0,18}", number, re.ASCII) or not (number or model):
        raise UserError("This CivitAI link names no model.", fix=_FORM)
    return model[1] if model else "", number, query


def _ask(url: str, secrets: Mapping[str, str], reach: Reach, what: str) -> dict[str, Any]:
    try:
        told = json.loads(
            fetch(url, MOST_BYTES, redirects=3, accept="application/json", secrets=secrets, reach=reach)
        )
    except UnknownHost:
        raise UserError("CivitAI could not be asked: no connection.", fix="check your network.") from None
    except FetchRefused as error:
        if "answers 404" in error.why:
            raise UserError(f"CivitAI has no {what}.", fix=f"check the link: {_FORM}") from None
        if "answers 401" in error.why or "answers 403" in error.why:
            fix = "make a new one at civitai.com/user/account and set CIVITAI_TOKEN to it."
            raise UserError(f"CivitAI does not show {what} with this API key.", fix=fix) from None
        raise UserError(
            f"CivitAI could not be asked: its API {error.why}.", fix="try again in a few minutes."
        ) from None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise UserError("CivitAI gave no answer that can be read.", fix="try again in a few minutes.")
    return told


def _chosen_file(files: list[Mapping[str, Any]], query: Mapping[str, str]) -> Mapping[str, Any]:
    """The file that the link means; else the main one, as safetensors where there is a choice."""
    if not files:
        raise UserError(
            "This version on CivitAI has no file to fetch.", fix="take another version of the model."
        )
    if wanted := query.get("fileId"):
        files = [one for one in files if str(one.get("id")) == wanted] or files
    for name in _CHOICES:
        said = query.get(name, "").lower()
        files = [one for one in files if said and _said(one, name) == said] or files

    def order(one: Mapping[str, Any]) -> tuple[bool, bool, bool]:
        model = _text(one.get("type")) in ("", "Model", "Pruned Model")
        return not model, _said(one, "format") != "safetensor", not one.get("primary")

    return min(files, key=order)


def _said(file: Mapping[str, Any], name: str) -> str:
    metadata = file.get("metadata")
    value = file.get(name) if name == "type" else metadata.get(name) if isinstance(metadata, Mapping) else ""
    return _text(value).lower()


def _sources(
    told: Mapping[str, Any], file: Mapping[str, Any], endpoint: str, secrets: Mapping[str, str]
) -> tuple[Source, ...]:
    """The file's own address, then by its number: the one that the API tells is not always alive."""
    hashes = file.get("hashes")
    sha256 = _text(hashes.get("SHA256")) if isinstance(hashes, Mapping) else ""
    sha256 = sha256.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", sha256) else ""
    name = _text(file.get("name"))
    addresses = [_text(file.get("downloadUrl"))]
    if all(isinstance(one, int) for one in (told.get("id"), file.get("id"))):
        addresses.append(f"{endpoint}/api/download/models/{told['id']}?fileId={file['id']}")
    ours = (endpoint, "https://civitai.com")
    return tuple(
        Source(
            url,
            sha256,
            name=name,
            headers=secrets if url.startswith(tuple(f"{one}/" for one in ours)) else {},
        )
        for url in dict.fromkeys(addresses)
        if url
    )


def _notes(told: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[str, ...]:
    words = [_shown(one) for one in told.get("trainedWords") or [] if isinstance(one, str)]
    rows = (
        ("CivitAI", " ".join(filter(None, (_shown(about.get("name")), _shown(told.get("name")))))),
        ("for", _shown(told.get("baseModel"))),
        ("trigger words", ", ".join(filter(None, words))[:300]),
    )
    return tuple(f"{name}: {text}" for name, text in rows if text)


def _shown(value: object) -> str:
    return escaped(one_line(_text(value)))[:120]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
