"""Base models by name: the embedded one, a folder, a file, a known name, or a Hugging Face id."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fingerprint, sha256_file
from fastsd_lib.core.model_files import FAMILY_NAMES, ModelFiles
from fastsd_lib.core.paths import expanded, is_there
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.stopping import TrainingStopped
from fastsd_lib.core.text import escaped
from fastsd_lib.models.download_part import OwnDisk
from fastsd_lib.models.hub_repository import DiskFullError, Token, fetch_files, small_files, wanted_files
from fastsd_lib.models.identify import describe, identify, unet_width
from fastsd_lib.models.known_models import (
    EMBEDDED,
    FILE_ENDINGS,
    HUB_ID,
    HubSource,
    KnownModel,
    find_known,
    hub_source,
    known_models,
    nearest,
    replaced,
    shown_source,
)

if TYPE_CHECKING:
    from fastsd_lib.models.controls import KnownControl
    from fastsd_lib.models.downloading import DownloadRules

STOCK_SD1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
EMBEDDED_FOLDER = Path(__file__).with_name("embedded")
EXTRAS_FOLDER = Path(__file__).with_name(
    "embedded_extras"
)  # LoRA, embeddings, ControlNet for the embedded model
TRAIN_EMBEDDED = "python3 -m benchmarks.tiny_model.train"
#: Where files from plain addresses go.
DOWNLOADS = Path("~/.cache/fastsd/models")


def base_model(
    name_or_path: str | Path = EMBEDDED,
    token: Token = None,
    root: Path | None = None,
    report: Report = silent,
) -> ModelFiles:
    """The model files behind a name, an alias, a path or a Hugging Face id; downloads when it must.

    `token` (or HF_TOKEN, or the one stored by `hf auth login`) opens gated models; it is never printed. `root`: where
    sessions live, whose models.yaml may name more models.
    Raises UserError for unknown names, missing files, gated models and a missing network.
    """
    name = str(name_or_path).strip()
    if name == EMBEDDED:
        return _embedded(EMBEDDED_FOLDER)
    path = expanded(name)
    if name and is_there(path):
        return identify(path).model_files
    model = find_known(name, root=root)
    if model is not None:
        if model.kind != "checkpoint":
            raise UserError(
                f"{model.name} is a {model.kind.upper()}, not a whole model.",
                fix="name the base model here, and this one where a VAE is asked for.",
            )
        if not model.uses:
            raise _not_opened(model, known_models(root=root))
        if told := replaced(name, model):
            report(ProgressEvent("model", 1, 1, {"": told}))
        return identify(fetch_known(model, token, report=report)).model_files
    if path.suffix in FILE_ENDINGS or path.is_absolute() or not HUB_ID.fullmatch(name):
        raise _unknown(name, known_models(root=root))
    return download(name, token=token, report=report)


def download(
    hub_id: str,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    report: Report = silent,
) -> ModelFiles:
    """Fetch a pipeline from the Hugging Face Hub: safetensors only, each part once.

    It goes to `cache_dir` or the usual cache; what is whole there is used when there is no network.
    `endpoint` is a mirror of huggingface.co.
    """
    folder = fetch_files(hub_id, wanted_files, token, endpoint, cache_dir, report=report)
    return identify(folder).model_files


def fetch_known(
    model: KnownModel | KnownControl,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    report: Report = silent,
    rules: DownloadRules | None = None,
) -> Path:
    """The folder or file of a known model or control from the first of its sources that gives it.

    A source that is gone, gated, out of reach or holds something else is passed over; a full disk or a stop
    ends the search.
    UserError names the reason of each source when none gives the model.
    """
    if model.name == EMBEDDED:
        return _embedded(EMBEDDED_FOLDER).path
    problems: list[tuple[str, UserError]] = []
    for source in model.mirrors:
        try:
            path = _fetch(source, model, token, endpoint, cache_dir, report, rules)
            _check_family(path, model)
            return path
        except (DiskFullError, OwnDisk, TrainingStopped):
            raise
        except UserError as error:
            problems.append((source, error))
    raise _none_gave(model, problems)


def _fetch(
    source: str,
    model: KnownModel | KnownControl,
    token: Token,
    endpoint: str | None,
    cache_dir: Path | None,
    report: Report,
    rules: DownloadRules | None,
) -> Path:
    place = hub_source(source)
    if place is None:
        from fastsd_lib.models.downloading import DownloadRules, Source, download_file

        # A folder for each address: what lies there under a model's ending came from it, and came whole.
        folder = (cache_dir or expanded(DOWNLOADS)) / fingerprint([source, model.sha256])
        here = next((file for ending in FILE_ENDINGS for file in sorted(folder.glob(f"*{ending}"))), None)
        return here or download_file([Source(source, model.sha256)], folder, rules or DownloadRules(), report)
    if place.file:
        return _hub_file(place, model.sha256, token, endpoint, cache_dir, report)

    def pick(hub_id: str, files: Iterable[str]) -> list[str]:
        return wanted_files(hub_id, files, place.half)

    return fetch_files(place.hub_id, pick, token, endpoint, cache_dir, report=report)


def _hub_file(
    place: HubSource,
    sha256: str,
    token: Token,
    endpoint: str | None,
    cache_dir: Path | None,
    report: Report,
) -> Path:
    """One file of a repository, once compared with the hash that its publisher gives."""

    def pick(hub_id: str, files: Iterable[str]) -> list[str]:
        if place.file not in files:
            raise UserError(
                f"{hub_id} on Hugging Face has no file {place.file}.",
                fix=f"look at https://huggingface.co/{hub_id}/tree/main for what it is called now.",
            )
        return [place.file]

    folder = fetch_files(place.hub_id, pick, token, endpoint, cache_dir, sign=place.file, report=report)
    file = folder / place.file
    if not sha256 or _was_checked(folder, file, sha256):
        return file
    if (found := sha256_file(file)) != sha256:
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise UserError(
            f"{place.file} of {place.hub_id} is not the published file: its sha256 begins {found[:12]}, not {sha256[:12]}.",
            fix="try again; if it stays so, the repository was changed: take another source.",
        )
    _note_checked(folder, file, sha256)
    return file


def _checked_note(folder: Path, sha256: str) -> Path:
    """In the repository's own folder of the cache, so that it goes when that is deleted."""
    return folder.parent.parent / ".checked" / sha256


def _state_of(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _was_checked(folder: Path, file: Path, sha256: str) -> bool:
    """Whether this very file had its hash: one whose process was killed before that has no note."""
    try:
        return _checked_note(folder, sha256).read_text("utf-8") == _state_of(file)
    except (OSError, ValueError):
        return False


def _note_checked(folder: Path, file: Path, sha256: str) -> None:
    with suppress(OSError), atomic_path(_checked_note(folder, sha256)) as scratch:  # it only spares a reading
        scratch.write_text(_state_of(file), "utf-8")


def _check_family(path: Path, model: KnownModel | KnownControl) -> None:
    """By what it holds. Of a model for other programs it is enough that it can be told."""
    if model.kind != "checkpoint":
        return
    if model.uses:
        identify(path)  # UserError for what cannot be opened here
    kind = describe(path).kind
    if kind.kind not in ("checkpoint", "unet", "transformer"):
        raise UserError(f"It holds {kind.words}, not a whole model.", fix="take another source.")
    wanted = "sdxl" if model.family == "sdxl_refiner" else model.family
    if kind.family not in (wanted, model.family):
        raise UserError(
            f"It holds {FAMILY_NAMES.get(kind.family, kind.family) or 'an unknown family'}, not "
            f"{FAMILY_NAMES[model.family]}.",
            fix="correct family: in your models.yaml, or take another source.",
        )


def _none_gave(model: KnownModel | KnownControl, problems: list[tuple[str, UserError]]) -> UserError:
    """The one reason there is; of several all, and the way out of the first."""
    if len(problems) == 1:
        return problems[0][1]
    reasons = " ".join(f"{number}. {shown_source(source)}: {error.message}"
                       for number, (source, error) in enumerate(problems, 1))  # fmt: skip
    return UserError(
        f"None of the {len(problems)} sources gave {model.name}: {reasons}", fix=problems[0][1].fix
    )


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
    return fetch_files(STOCK_SD1, small_files, token, endpoint, cache_dir)


def _embedded(folder: Path) -> ModelFiles:
    if not (folder / "model_index.json").is_file():
        raise UserError(f"The embedded model is not there ({folder}).", fix=f"train it: {TRAIN_EMBEDDED}")
    return identify(folder).model_files


def _not_opened(model: KnownModel, known: Iterable[KnownModel]) -> UserError:
    """Before a download of many gigabytes, not after it."""
    alike = [
        one
        for one in known
        if one.family == model.family and one.kind == model.kind and one.uses and one.mirrors
    ]
    instead = f"take {(alike[0].aliases or (alike[0].name,))[0]}; " if alike else ""
    return UserError(
        f"{model.name} is not opened here: {model.about}.",
        fix=f"{instead}`fastsd models download {model.name}` fetches it for other programs.",
    )


def _unknown(name: str, known: Iterable[KnownModel]) -> UserError:
    if "/" in name or "\\" in name or Path(name).suffix in FILE_ENDINGS:
        return UserError(
            f"There is no file or folder {escaped(name)[:300]}.",
            fix="check the path; ~ stands for your home folder.",
        )
    near = nearest(name, known) or [EMBEDDED, STOCK_SD1]
    return UserError(
        f"No model '{escaped(name)[:300]}' (nearest: {', '.join(near)}).",
        fix="take one of these, a folder, a .safetensors or .ckpt file, or a Hugging Face id such as org/name.",
    )
