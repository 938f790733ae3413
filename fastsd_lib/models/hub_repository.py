"""Files of a repository on the Hugging Face Hub: those that are wanted, once, into its cache."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.models.download_watch import SPARE_BYTES
from fastsd_lib.models.hub_progress import HubProgress

# The parts of a pipeline that have weights: those of SD 1.x and 2.x, and what SDXL, SD3 and Flux have besides or
# instead. A safety checker is never fetched.
PARTS = ("unet", "vae", "text_encoder")
OTHER_PARTS = ("transformer", "text_encoder_2", "text_encoder_3")
SMALL_FILES = re.compile(
    r"(model_index|fastsd)\.json"
    r"|(unet|transformer|vae|text_encoder(_[23])?|tokenizer(_[23])?|scheduler)/[^/]+\.(json|txt)"
)


class DiskFullError(UserError):
    """No other source would help."""


# A token, or a function that looks for one: it is asked only when something is downloaded.
Token = str | Callable[[], str | None] | None
Pick = Callable[[str, Iterable[str]], list[str]]  # (hub id, all its files) -> those to fetch


def fetch_files(
    hub_id: str,
    pick: Pick,
    token: Token,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    *,
    sign: str = "model_index.json",
    revision: str | None = None,
    report: Report = silent,
) -> Path:
    """The folder in the Hub's cache with those files of a repository that `pick` wants; downloads what is not there.

    Without a network what is in the cache will do, if `sign` is there and `pick` is content. UserError with one line
    for each cause: unknown, gated, no network, disk full (before the first byte); and whatever `report` raises.
    """
    require("huggingface_hub", group="train")
    from huggingface_hub import HfApi, snapshot_download

    token = (token() if callable(token) else token) or os.environ.get("HF_TOKEN") or None
    try:
        # Not list_repo_files: without a network it retries for 23 s.
        info = HfApi(endpoint=endpoint, token=token).model_info(
            hub_id, revision=revision, timeout=10, files_metadata=True
        )
    except Exception as error:  # of requests or of httpx: the library changed its client with version 1
        cached = _cached(hub_id, pick, cache_dir, sign, revision)
        if cached is None:
            raise _download_error(hub_id, error, token, revision) from None
        return cached
    wanted = pick(hub_id, [sibling.rfilename for sibling in info.siblings or []])
    missing = _bytes_missing(hub_id, info, set(wanted), cache_dir)
    _check_space(hub_id, missing, cache_dir)
    progress = HubProgress(hub_id, missing, report)
    if missing:
        progress.tell(0)
    try:
        folder = snapshot_download(
            hub_id,
            allow_patterns=wanted,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            revision=revision,
            tqdm_class=None if report is silent else progress.bars(),  # None: it draws its own
        )
    except Exception as error:
        if progress.stopped is not None:
            raise progress.stopped from None
        raise _download_error(hub_id, error, token, revision) from None
    progress.finish()
    return Path(folder)


def _bytes_missing(hub_id: str, info: Any, wanted: set[str], cache_dir: Path | None) -> int:
    """What is to come: the sizes that the Hub tells of those that are not in the cache, in this version or another."""
    from huggingface_hub import try_to_load_from_cache

    blobs = _cache_folder(cache_dir) / f"models--{hub_id.replace('/', '--')}" / "blobs"
    total = 0
    for sibling in info.siblings or []:
        if sibling.rfilename not in wanted or not sibling.size:
            continue
        here = try_to_load_from_cache(hub_id, sibling.rfilename, cache_dir=cache_dir, revision=info.sha)
        blob = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        if not isinstance(here, str) and not (blob and (blobs / blob).is_file()):
            total += sibling.size
    return total


def _cache_folder(cache_dir: Path | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return expanded(cache_dir or HF_HUB_CACHE)


def _check_space(hub_id: str, missing: int, cache_dir: Path | None) -> None:
    place = _cache_folder(cache_dir).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # some network disks do not say
        return
    if missing and free < missing + SPARE_BYTES:
        raise DiskFullError(
            f"{place} has {free / 1e9:,.1f} GB free, and {(missing + SPARE_BYTES) / 1e9:,.1f} GB are needed for {hub_id}.",
            fix="free space, or set HF_HOME to another disk.",
        )


def small_files(hub_id: str, files: Iterable[str]) -> list[str]:
    small = [name for name in files if SMALL_FILES.fullmatch(name) and ".index." not in name]
    if "model_index.json" not in small:
        raise UserError(
            f"{hub_id} on Hugging Face is not a Diffusers pipeline: it has no model_index.json.",
            fix="download its .safetensors checkpoint and give the path of that file.",
        )
    return small


def _cached(hub_id: str, pick: Pick, cache_dir: Path | None, sign: str, revision: str | None) -> Path | None:
    """The model's folder in the cache when what is wanted of it is there."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, sign, cache_dir=cache_dir, revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    try:
        pick(hub_id, [path.relative_to(folder).as_posix() for path in folder.rglob("*")])
    except UserError:  # an interrupted download
        return None
    return folder


def wanted_files(hub_id: str, files: Iterable[str], half: bool = False) -> list[str]:
    """Of a repository's files, those that make one pipeline: configs, tokenizer, one set of safetensors.

    `half`: of each part the weights in half precision, where there are any.
    """
    files = list(files)
    wanted = small_files(hub_id, files)
    for part in _parts_among(files):
        weights = [name for name in files if name.startswith(f"{part}/") and name.endswith(".safetensors")]
        plain = [name for name in weights if re.fullmatch(r"[^.]+(-\d+-of-\d+)?\.safetensors", name)]
        halved = [name for name in weights if re.search(r"\.fp16(-\d+-of-\d+)?\.safetensors$", name)]
        if not plain and not halved:
            raise UserError(
                f"{hub_id} on Hugging Face has no .safetensors weights in {part}/.",
                fix="take a repository with safetensors; pickled .bin files are not opened.",
            )
        taken = halved if halved and (half or not plain) else plain
        wanted += taken
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        infix = ".fp16" if taken is halved else ""
        indexes = (
            f"{part}/{stem}.safetensors.index{infix}.json",
            f"{part}/{stem}{infix}.safetensors.index.json",
        )
        wanted += [index for index in indexes[: 2 if infix else 1] if index in files]  # of shards
    return wanted


def _parts_among(files: Iterable[str]) -> list[str]:
    """The parts of the pipeline with these files; SD3 and Flux have a transformer for a U-Net."""
    folders = {name.split("/")[0] for name in files}
    others = [part for part in OTHER_PARTS if part in folders]
    replaced = {"unet"} if "transformer" in others else set()
    if "text_encoder_2" in others and "text_encoder" not in folders:  # the refiner of SDXL
        replaced.add("text_encoder")
    return [part for part in PARTS if part not in replaced] + others


def _download_error(hub_id: str, error: Exception, token: str | None, revision: str | None) -> UserError:
    """One clear line per cause; the library's own text may quote the request and is not repeated."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/{hub_id}"
    kind = type(error).__name__
    if kind == "GatedRepoError" or status == 403:
        return UserError(
            f"{hub_id} is gated: its licence must be accepted first.",
            fix=f"open {page}, accept, then give a token of that account (HF_TOKEN, or token.txt on Drive).",
        )
    if status == 401 and token:
        return UserError(
            f"Hugging Face refused the token for {hub_id}.",
            fix="make a new one: huggingface.co/settings/tokens",
        )
    if kind == "RevisionNotFoundError":
        return UserError(
            f"{hub_id} on Hugging Face has no version {revision!r}.",
            fix=f"take one of those at {page}/commits/main",
        )
    if "NotFoundError" in kind or status in (401, 404):
        return UserError(
            f"Hugging Face has no public model {hub_id}.",
            fix=f"check the spelling at {page}; a private model needs a token (token=..., or HF_TOKEN).",
        )
    if status is not None:
        return UserError(f"Hugging Face answered {status} for {hub_id}.", fix="try again in a few minutes.")
    if isinstance(error, OSError) and getattr(error, "errno", None) == 28:
        return DiskFullError(
            f"The disk is full: {hub_id} did not fit.", fix="free space, or set HF_HOME to another disk."
        )
    return UserError(
        f"No connection to Hugging Face, and {hub_id} is not in the cache ({kind}).",
        fix="connect to the network and try again, or work with the model that is here: embedded",
    )
