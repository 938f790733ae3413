"""What the user told pip about package indexes, handed on to uv, which does not read pip's configuration."""

from __future__ import annotations

import configparser
import os
import sys
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastsd_lib.core.paths import expanded


@dataclass(frozen=True)
class PipSettings:
    """Indexes and certificates, as pip would use them here. Local folders and indexes that do not exist are left out."""

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    cert: str = ""
    trusted_hosts: tuple[str, ...] = ()
    timeout_s: str = ""

    @property
    def local_folders(self) -> tuple[Path, ...]:
        """The `find-links` that are folders on this machine."""
        return tuple(
            folder for folder in map(_local, self.find_links) if folder is not None and folder.is_dir()
        )

    def uv_options(self) -> list[str]:
        """Options that make uv look where pip would. What the user set for uv itself (UV_...) has the last word."""
        options: list[str] = []
        if self.no_index:
            options.append("--no-index")
        if self.index_url and not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & set(os.environ):
            options += ["--default-index", self.index_url]
        for url in self.extra_index_urls:
            options += ["--index", url]
        for place in self.find_links:
            options += ["--find-links", place]
        for host in self.trusted_hosts:
            options += ["--allow-insecure-host", host]
        return [*options, "--index-strategy", "unsafe-best-match"]  # pip's way: all indexes are equal

    def uv_environment(self) -> dict[str, str]:
        settings = {}
        if self.cert and "SSL_CERT_FILE" not in os.environ:
            settings["SSL_CERT_FILE"] = self.cert
        if self.timeout_s and "UV_HTTP_TIMEOUT" not in os.environ:
            settings["UV_HTTP_TIMEOUT"] = self.timeout_s
        return settings


def _configuration_files() -> list[Path]:
    """pip's own search order, least important first (pip documentation, "Configuration").

    PIP_CONFIG_FILE=/dev/null switches all of them off, as it does for pip.
    """
    chosen = os.environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return []
    home = Path.home()
    if sys.platform == "win32":
        places = [Path(os.environ.get("PROGRAMDATA", "C:/ProgramData"), "pip/pip.ini")]
        places += [home / "pip/pip.ini", Path(os.environ.get("APPDATA", home), "pip/pip.ini")]
        places += [Path(sys.prefix, "pip.ini")]
    else:
        shared = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
        places = [Path(folder, "pip/pip.conf") for folder in shared if folder] + [Path("/etc/pip.conf")]
        places += [home / ".pip/pip.conf"]
        if sys.platform == "darwin":
            places += [home / "Library/Application Support/pip/pip.conf"]
        places += [Path(os.environ.get("XDG_CONFIG_HOME", home / ".config"), "pip/pip.conf")]
        places += [Path(sys.prefix, "pip.conf")]
    return [*places, Path(chosen)] if chosen else places


@cache
def read() -> PipSettings:
    """pip's files, then PIP_... variables over them."""
    values: dict[str, str] = {}
    for path in _configuration_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain about it better than we can
        for section in ("global", "install"):
            if parser.has_section(section):
                values.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            values[name[4:].lower().replace("_", "-")] = value
    return PipSettings(
        index_url=values.get("index-url", ""),
        extra_index_urls=_existing(values.get("extra-index-url", "")),
        find_links=_existing(values.get("find-links", "")),
        no_index=values.get("no-index", "").lower() in {"1", "true", "yes", "on"},
        cert=values.get("cert", ""),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        timeout_s=values.get("timeout", values.get("default-timeout", "")),
    )


def _existing(places: str) -> tuple[str, ...]:
    """pip shrugs at a local folder that is not there; uv refuses to work at all."""
    local = ((place, _local(place)) for place in places.split())
    return tuple(place for place, folder in local if folder is None or folder.exists())


def _local(place: str) -> Path | None:
    if place.startswith("file://"):
        return Path(urllib.request.url2pathname(place[len("file://") :]))
    return None if "://" in place else expanded(place)
