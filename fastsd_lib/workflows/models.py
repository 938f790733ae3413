"""Model files as users meet them: what is it, convert it, fetch it, is it whole, what is known, what lies here.

One function for each question of notebooks/models.ipynb and of `fastsd identify|convert|models`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded, is_there
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.stopping import TrainingStopped
from fastsd_lib.core.text import escaped
from fastsd_lib.models.downloading import DownloadStopped
from fastsd_lib.models.kind import KIND_WORDS
from fastsd_lib.workflows.model_kinds import refuse_told
from fastsd_lib.workflows.model_rows import ModelRow, is_model, lying_there, row_of

if TYPE_CHECKING:
    from fastsd_lib.models.controls import KnownControl
    from fastsd_lib.models.known_models import KnownModel
    from fastsd_lib.models.liveness import SourceState
    from fastsd_lib.models.verifying import Verification
    from fastsd_lib.workflows.converting import Converted
    from fastsd_lib.workflows.model_downloads import Downloaded

#: What a converted model can be stored as; "keep" leaves each weight as it is.
DTYPES = ("keep", "fp16", "bf16", "fp32")
EMA = ("drop", "use", "keep")
NAMINGS = ("auto", "original", "diffusers", "kohya", "peft")

_WITHOUT_SCHEME = re.compile(r"(www\.)?(huggingface\.co|hf\.co|civitai\.com|drive\.google\.com)/")


def identify(paths: str | Path | Iterable[str | Path], report: Report = silent) -> list[ModelRow]:
    """What each file or folder is, from headers alone; a folder that is no model gives a row for each model in it.

    A file that cannot be told is a row with its `problem`. UserError for a path where nothing is.
    """
    rows = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        place = _there(path)
        rows += lying_there(place, report, everything=True) if is_searched(place) else [row_of(place)]
    return rows


def is_searched(path: Path) -> bool:
    """Whether `path` is a folder with models in it, not a model itself."""
    return path.is_dir() and not is_model(os.listdir(path))


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "keep",
    vae: str | Path = "",
    ema: str = "drop",
    naming: str = "auto",
    config_from: str | Path = "",
    sha256: bool = False,
    report: Report = silent,
) -> Converted:
    """Any model file into another form; the form is told by `target`'s name: a folder, .safetensors or .ckpt.

    UserError for what cannot be converted so, before anything is written.
    """
    from fastsd_lib.formats.conversion import ConversionChoices
    from fastsd_lib.workflows import converting

    for name, word, choices in (("dtype", dtype, DTYPES), ("ema", ema, EMA), ("naming", naming, NAMINGS)):
        check_choice(name, word, choices)
    into = _target(str(target).strip())
    choices = ConversionChoices(
        dtype=None if dtype == "keep" else dtype,
        vae=_there(vae) if str(vae).strip() else None,
        ema=ema,
        config_from=_there(config_from) if str(config_from).strip() else None,
        naming=naming,
        sha256=sha256,
    )
    return converting.convert(_there(source), into, choices, report)


def _target(text: str) -> Path:
    """Where to write. A misspelt ending must not become the name of a folder."""
    from fastsd_lib.workflows.converting import SINGLE

    place = expanded(text)
    if not text:
        raise UserError(
            "No target is named.", fix="name a folder, or a file that ends in .safetensors or .ckpt."
        )
    near = difflib.get_close_matches(place.suffix.lower(), SINGLE, 1, 0.75)
    if near and place.suffix not in SINGLE:
        raise UserError(
            f"Nothing is written as {escaped(place.suffix)} here.",
            fix=f"did you mean {escaped(place.stem)}{near[0]}?",
        )
    return place


def download(
    names: str | Iterable[str],
    root: Path | None = None,
    *,
    kind: str = "",
    folder: Path | None = None,
    report: Report = silent,
    on_done: Callable[[Downloaded], None] = lambda done: None,
) -> list[Downloaded]:
    """Have each of `names` here: a known name, a Hugging Face id, a link or a path; a text may hold several.

    Each goes to the folder of its kind below `root`, or into `folder`. One that cannot be had does not keep the others
    from coming: `on_done` hears each that came, and the UserError is raised after the last. `kind`: what each must be;
    of another one nothing is kept.
    """
    from fastsd_lib.workflows.file_links import split_links
    from fastsd_lib.workflows.model_downloads import model_folders

    check_choice("kind", kind, ["", *KIND_WORDS])
    root, folder = root and expanded(root), folder and expanded(folder)
    words = names
    if isinstance(names, str):  # a path may hold spaces, links do not
        words = [names] if names.strip() and is_there(expanded(names.strip())) else split_links(names)
    places = None if folder is None else dict.fromkeys(model_folders(folder), folder)
    came: list[Downloaded] = []
    failed: list[UserError] = []
    words = list(words)
    for word in words:
        try:
            done = _fetched(word.strip(), root, kind, places, report)
            if folder is not None and done.path.is_dir():
                told = (
                    f"It is a folder, and stays where it is: only files are put into {escaped(str(folder))}."
                )
                done = replace(done, notes=(*done.notes, told))
            came.append(done)
            on_done(came[-1])
        except (DownloadStopped, TrainingStopped):
            raise
        except UserError as error:
            failed.append(error)
    if failed and len(words) > 1:
        first = f"{len(failed)} of {len(words)} could not be had; the first: {failed[0].message}"
        raise UserError(first, fix=failed[0].fix)
    if failed:
        raise failed[0]
    return came


def _fetched(
    word: str, root: Path | None, kind: str, places: dict[str, Path] | None, report: Report
) -> Downloaded:
    from fastsd_lib.environment.hosts import default_root
    from fastsd_lib.models.identify import describe
    from fastsd_lib.workflows import control_choice, model_downloads

    control = next((one for one in known_controls() if one.name == word), None)
    if control is None:
        if _WITHOUT_SCHEME.match(word):  # as browsers show addresses
            word = f"https://{word}"
        return model_downloads.download(word, root, kind, places, report)
    refuse_told(control.name, control.kind, kind)
    folder = (places or model_downloads.model_folders(root or default_root()))[control.kind]
    there = (folder / control.file_name).is_file()

    def say(line: str) -> None:
        report(ProgressEvent("ControlNet", 1, 1, {"": line}))

    (path,) = control_choice.fetch(control.name, folder, control.family, say, root, report, control.variant)
    return model_downloads.Downloaded(path, describe(path), there)


def verify(paths: Iterable[str | Path], sha256: str = "", report: Report = silent) -> list[Verification]:
    """Whether files are whole: header, places of the weights, every number finite, and the hash if one is given.

    A folder that is no model stands for each model in it.
    """
    from fastsd_lib.models import verifying

    places: list[Path] = []
    for place in map(_there, paths):
        inside = lying_there(place, report, everything=True) if is_searched(place) else []
        places += [row.path for row in inside] if inside else [place]
    if sha256.strip() and len(places) > 1:
        raise UserError("The hash is that of one file, and here are several.", fix="verify that file alone.")
    return [verifying.verify_file(place, sha256, report) for place in places]


def known(family: str = "", use: str = "", root: Path | None = None) -> list[KnownModel]:
    """The models that have a name, of one family and use ("train", "generate") if asked; those added in `root` as well."""
    from fastsd_lib.models.known_models import known_models

    found = known_models(root=root)
    check_choice("use", use, ["", "train", "generate"])
    if family:
        check_choice("family", family, dict.fromkeys(model.family for model in found))
    return [model for model in found if family in ("", model.family) and (not use or use in model.uses)]


def known_controls(family: str = "") -> list[KnownControl]:
    """The ControlNets that have a name, for one family if asked."""
    from fastsd_lib.models.controls import known_controls as listed

    controls = listed()
    if family:
        check_choice("family", family, dict.fromkeys(control.family for control in controls))
    return [control for control in controls if family in ("", control.family)]


def sources_now(model: KnownModel | KnownControl, root: Path | None = None) -> tuple[SourceState, ...]:
    """Whether each source of `model` answers now, in their order; nothing is downloaded."""
    from fastsd_lib.environment.tokens import hub_token
    from fastsd_lib.models.liveness import check_mirrors

    return check_mirrors(model, token=hub_token(root) or "")


def _there(path: str | Path) -> Path:
    place = expanded(str(path).strip())
    if not str(path).strip() or not is_there(place):
        raise UserError(
            f"There is no file or folder {escaped(str(path)) or '(none is named)'}.",
            fix="check the path; ~ stands for your home folder.",
        )
    return place


def check_choice(name: str, word: str, choices: Iterable[str]) -> None:
    """UserError unless `word` is one of `choices`."""
    choices = list(choices)
    if word not in choices:
        near = difflib.get_close_matches(word, choices, 1)
        raise UserError(
            f"{name} cannot be {escaped(word)!r}.",
            fix=f"did you mean {near[0]}?" if near else f"take one of {', '.join(filter(None, choices))}.",
        )
