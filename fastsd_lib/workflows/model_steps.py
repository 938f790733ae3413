"""The steps of notebooks/models.ipynb: what a field that is left empty means, and where things go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.environment import tokens
from fastsd_lib.workflows import models
from fastsd_lib.workflows.converting import Converted
from fastsd_lib.workflows.model_downloads import model_folders
from fastsd_lib.workflows.model_rows import ModelRow, row_of

if TYPE_CHECKING:
    from fastsd_lib.models.verifying import Verification
    from fastsd_lib.workflows.model_downloads import Downloaded

#: What the list of the Convert cell says -> the ending of the target; a folder has none.
FORMS = {"safetensors": ".safetensors", "ckpt": ".ckpt", "folder": ""}
AUTO = "auto"
THERE_ALREADY = "It was there already: remove it, or name another target, to convert again."


def tokens_found(root: Path) -> dict[str, str]:
    """Which keys are kept here, for a table: never a key itself."""
    found = {"Hugging Face": tokens.hub_token(root), "CivitAI": tokens.civitai_token(root)}
    names = {"Hugging Face": tokens.NAME, "CivitAI": tokens.CIVITAI_NAMES[0]}
    return {
        site: "found" if key else f"none; what needs one says so. Keep it as the secret {names[site]}"
        for site, key in found.items()
    }


def download(
    root: Path, model: str, links: str = "", kind: str = AUTO, report: Report = silent
) -> list[Downloaded]:
    """The chosen model and what else is named in `links`, each in the folder of its kind below `root`.

    `kind` is what the links must be.
    """
    fetched = models.download([model], root, report=report)
    return fetched + models.download(links, root, kind="" if kind == AUTO else kind, report=report)


def identify(what: str, fetched: Sequence[Downloaded], report: Report = silent) -> list[ModelRow]:
    """A file, or all of a folder; empty: what was fetched."""
    return models.identify(what if what.strip() else [one.path for one in fetched] or _nothing(), report)


def convert(
    root: Path,
    fetched: Sequence[Downloaded],
    source: str = "",
    target: str = "",
    form: str = "safetensors",
    report: Report = silent,
    **choices: str,
) -> Converted:
    """`source` (empty: the first that was fetched) as `target` (empty: a file or folder of its name, by `form`)."""
    models.check_choice("form", form, FORMS)
    place = expanded(source.strip() or (fetched[0].path if fetched else _nothing()))
    if target.strip():
        return models.convert(place, target, report=report, **choices)
    into = _target(root, place, form, choices)
    there = row_of(into) if into.exists() else None
    if there is None or there.problem:
        return models.convert(place, into, report=report, **choices)
    layout = "diffusers" if into.is_dir() else "single_file"  # this cell ran before
    return Converted(into, there.kind, there.family, layout, (THERE_ALREADY,))


def verify(
    what: str, made: Converted | None, sha256: str = "", report: Report = silent
) -> list[Verification]:
    """A file or model folder; empty: what was converted."""
    if not what.strip() and made is None:
        raise UserError("Nothing was converted yet.", fix="name a file, or run step 6 first.")
    return models.verify([what if what.strip() else made.path], sha256.strip(), report)


def table(root: Path, folder: str = "", report: Report = silent) -> list[ModelRow]:
    """Everything in the model folders and sessions below `root`, or in another folder."""
    if folder.strip():
        return models.identify(folder, report)
    return models.lying_there(root, report)


def told_of(made: Converted) -> dict[str, Any]:
    """For a table: what was written, and what is to be known of it."""
    row = row_of(made.path)
    facts = {"file" if made.path.is_file() else "folder": made.path, "kind": made.kind, "for": row.base,
             "weights": row.dtype, "size": row.size, "to be known": " ".join(made.notes)}  # fmt: skip
    return {name: value for name, value in facts.items() if value}


def _nothing() -> NoReturn:
    raise UserError("Nothing was fetched yet.", fix="name a source, or run step 4 first.")


def _target(root: Path, source: Path, form: str, choices: Mapping[str, str]) -> Path:
    """In the folder of its kind, by the source's name and what is to change in it; never the source itself."""
    row = row_of(source)
    if row.problem:
        raise UserError(row.complaint, fix=row.fix)
    usual = {"dtype": "keep", "ema": "drop", "naming": "auto", "vae": ""}
    words = {**choices, "ema": f"ema-{choices.get('ema')}", "vae": f"vae-{Path(choices.get('vae', '')).stem}"}
    changes = "".join(
        f"-{words[name]}" for name, kept in usual.items() if choices.get(name, kept).strip() != kept
    )
    name, folder = _name_of(source) + changes, model_folders(root).get(row.kind, root / "models")
    into = folder / f"{name}{FORMS[form]}"
    same = into.exists() and into.resolve() == source.resolve()
    return folder / f"{name}-converted{FORMS[form]}" if same else into


def _name_of(source: Path) -> str:
    """The Hub's cache calls folders by hashes: then the model's own name."""
    if source.parent.name == "snapshots":
        return source.parent.parent.name.rpartition("--")[2]
    return source.name if source.is_dir() else source.stem
