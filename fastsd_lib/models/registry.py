"""Base models by name: the embedded one, a folder, a file, or a Hugging Face id."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.model_files import Family, ModelFiles
from fastsd_lib.models.identify import identify, unet_width

EMBEDDED = "embedded"
STOCK_SD1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
EMBEDDED_FOLDER = Path(__file__).with_name("embedded")
EXTRAS_FOLDER = Path(__file__).with_name(
    "embedded_extras"
)  # LoRA, embeddings, ControlNet for the embedded model
TRAIN_EMBEDDED = "python3 -m benchmarks.tiny_model.train"


@dataclass(frozen=True)
class KnownModel:
    """One line of `models list`."""

    name: str  # "embedded" or a Hugging Face id
    family: Family
    resolution_px: int
    download_mb: int  # 0 = comes with the project
    licence: str
    about: str
    aliases: tuple[str, ...] = ()


KNOWN_MODELS = (
    KnownModel(EMBEDDED, "sd1", 64, 0, "Apache-2.0", "tiny model that comes with fastsd"),
    KnownModel(
        STOCK_SD1, "sd1", 512, 5500, "CreativeML OpenRAIL-M",
        "Stable Diffusion 1.5, the usual base for DreamBooth", ("1.5", "sd15", "sd1.5", "v1-5"),
    ),
    KnownModel(
        "CompVis/stable-diffusion-v1-4", "sd1", 512, 5500, "CreativeML OpenRAIL-M",
        "Stable Diffusion 1.4", ("1.4", "sd14", "sd1.4", "v1-4"),
    ),
)  # fmt: skip

# Hugging Face's own rule for "organisation/name".
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

# The parts of a pipeline that have weights: those of SD 1.x and 2.x, and what SDXL, SD3 and Flux have besides or
# instead. A safety checker is never fetched.
PARTS = ("unet", "vae", "text_encoder")
OTHER_PARTS = ("transformer", "text_encoder_2", "text_encoder_3")
SMALL_FILES = re.compile(
    r"(model_index|fastsd)\.json"
    r"|(unet|transformer|vae|text_encoder(_[23])?|tokenizer(_[23])?|scheduler)/[^/]+\.(json|txt)"
)


# A token, or a function that looks for one: it is asked only when something is downloaded.
Token = str | Callable[[], str | None] | None


def base_model(name_or_path: str | Path = EMBEDDED, token: Token = None) -> ModelFiles:
    """The model files behind a name, an alias, a path or a Hugging Face id; downloads when it must.

    `token` (or HF_TOKEN, or the one stored by `hf auth login`) opens gated models; it is never printed.
    Raises UserError for unknown names, missing files, gated models and a missing network.
    """
    name = str(name_or_path).strip()
    path = Path(name).expanduser()
    if name == EMBEDDED:
        return _embedded(EMBEDDED_FOLDER)
    if name and path.exists():
        return identify(path).model_files
    known = {alias: model.name for model in KNOWN_MODELS for alias in (*model.aliases, model.name)}
    hub_id = known.get(name, name)
    if path.suffix in (".safetensors", ".ckpt", ".pt") or path.is_absolute() or not HUB_ID.fullmatch(hub_id):
        raise _unknown(name, known)
    return download(hub_id, token=token)


def download(
    hub_id: str, token: Token = None, endpoint: str | None = None, cache_dir: Path | None = None
) -> ModelFiles:
    """Fetch a pipeline from the Hugging Face Hub: safetensors only, each part once.

    It goes to `cache_dir` or the usual cache; what is whole there is used when there is no network.
    `endpoint` is a mirror of huggingface.co.
    """
    folder = fetch_files(hub_id, wanted_files, token, endpoint, cache_dir)
    return identify(folder).model_files


def configs_for(file: Path, token: Token = None) -> Path:
    """A folder with the configs and tokenizer that fit a single file which brings none of its own.

    The embedded model's when the U-Net has its width, else those of Stable Diffusion 1.5.
    """
    if (EMBEDDED_FOLDER / "unet").is_dir() and unet_width(file) == unet_width(EMBEDDED_FOLDER):
        return EMBEDDED_FOLDER
    return stock_configs(token=token)


def stock_configs(token: Token = None, endpoint: str | None = None, cache_dir: Path | None = None) -> Path:
    """A folder with the configs and tokenizer of Stable Diffusion 1.5: 2 MB from the Hub, once.

    Single files from elsewhere hold weights only; nearly all of them have this shape.
    """
    return fetch_files(STOCK_SD1, _small_files, token, endpoint, cache_dir)


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
) -> Path:
    """The folder in the Hub's cache with those files of a repository that `pick` wants; downloads what is not there.

    Without a network what is in the cache will do, if `sign` is there and `pick` is content. UserError with one line
    for each cause: unknown, gated, no network, disk full.
    """
    require("huggingface_hub", group="train")
    from huggingface_hub import HfApi, snapshot_download

    token = (token() if callable(token) else token) or os.environ.get("HF_TOKEN") or None
    try:
        # Not list_repo_files: without a network it retries for 23 s.
        info = HfApi(endpoint=endpoint, token=token).model_info(hub_id, revision=revision, timeout=10)
    except Exception as error:  # of requests or of httpx: the library changed its client with version 1
        cached = _cached(hub_id, pick, cache_dir, sign, revision)
        if cached is None:
            raise _download_error(hub_id, error, token, revision) from None
        return cached
    wanted = pick(hub_id, [sibling.rfilename for sibling in info.siblings or []])
    try:
        folder = snapshot_download(
            hub_id,
            allow_patterns=wanted,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            revision=revision,
        )
    except Exception as error:
        raise _download_error(hub_id, error, token, revision) from None
    return Path(folder)


def _small_files(hub_id: str, files: Iterable[str]) -> list[str]:
    small = [name for name in files if SMALL_FILES.fullmatch(name) and not name.endswith(".index.json")]
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


def wanted_files(hub_id: str, files: Iterable[str]) -> list[str]:
    """Of a repository's files, those that make one pipeline: configs, tokenizer, one set of safetensors."""
    files = list(files)
    wanted = _small_files(hub_id, files)
    for part in _parts_among(files):
        weights = [name for name in files if name.startswith(f"{part}/") and name.endswith(".safetensors")]
        plain = [name for name in weights if re.fullmatch(r"[^.]+(-\d+-of-\d+)?\.safetensors", name)]
        half = [name for name in weights if name.endswith(".fp16.safetensors")]
        if not plain and not half:
            raise UserError(
                f"{hub_id} on Hugging Face has no .safetensors weights in {part}/.",
                fix="take a repository with safetensors; pickled .bin files are not opened.",
            )
        wanted += plain or half
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        index = f"{part}/{stem}.safetensors.index.json"  # of shards
        wanted += [index] if plain and index in files else []
    return wanted


def _parts_among(files: Iterable[str]) -> list[str]:
    """The parts of the pipeline with these files; SD3 and Flux have a transformer for a U-Net."""
    folders = {name.split("/")[0] for name in files}
    others = [part for part in OTHER_PARTS if part in folders]
    replaced = {"unet"} if "transformer" in others else set()
    if "text_encoder_2" in others and "text_encoder" not in folders:  # the refiner of SDXL
        replaced.add("text_encoder")
    return [part for part in PARTS if part not in replaced] + others


def _embedded(folder: Path) -> ModelFiles:
    if not (folder / "model_index.json").is_file():
        raise UserError(f"The embedded model is not there ({folder}).", fix=f"train it: {TRAIN_EMBEDDED}")
    return identify(folder).model_files


def _unknown(name: str, known: Iterable[str]) -> UserError:
    if "/" in name or "\\" in name or Path(name).suffix in (".safetensors", ".ckpt", ".pt"):
        return UserError(
            f"There is no file or folder {name}.", fix="check the path; ~ stands for your home folder."
        )
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4) or [EMBEDDED, KNOWN_MODELS[1].name]
    return UserError(
        f"No model {name!r} (nearest: {', '.join(near)}).",
        fix="take one of these, a folder, a .safetensors or .ckpt file, or a Hugging Face id such as org/name.",
    )


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
        return UserError(
            f"The disk is full: {hub_id} did not fit.", fix="free space, or set HF_HOME to another disk."
        )
    return UserError(
        f"No connection to Hugging Face, and {hub_id} is not in the cache ({kind}).",
        fix=f"connect to the network and try again, or work with the model that is here: {EMBEDDED}",
    )
