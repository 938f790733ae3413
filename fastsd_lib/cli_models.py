"""`fastsd identify`, `fastsd convert` and `fastsd models ACTION`: what model files are, from where, into what."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from pathlib import Path
from typing import Any

from fastsd_lib.cli_words import Parser, add_root, command, console_progress, show
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded, is_there
from fastsd_lib.core.text import escaped
from fastsd_lib.models.known_models import hub_source, shown_source
from fastsd_lib.workflows import models
from fastsd_lib.workflows.model_rows import ModelRow, prediction_of, size_words


def add_identify(known: Any) -> None:
    parser = command(known, "identify", _identify, "what model files are, from their headers alone")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files and folders")


def add_convert(known: Any) -> None:
    parser = command(
        known, "convert", _convert, "a model file into another form: Diffusers folder, .safetensors, .ckpt"
    )
    parser.add_argument("source", metavar="SRC", help="a file or a Diffusers folder")
    parser.add_argument("target", metavar="DST", help="ends in .safetensors or .ckpt, or names a new folder")
    parser.add_argument("--dtype", choices=models.DTYPES, default="keep", help="keep: as it is (default)")
    parser.add_argument("--vae", default="", metavar="FILE", help="put this VAE in place of the model's own")
    parser.add_argument(
        "--ema",
        choices=models.EMA,
        default="drop",
        help="averaged weights: leave out, take instead, or keep beside",
    )
    parser.add_argument(
        "--naming",
        choices=models.NAMINGS,
        default="auto",
        help="whose tensor names, for LoRA, ControlNet and VAE",
    )
    parser.add_argument(
        "--config-from",
        default="",
        metavar="FOLDER",
        help="a Diffusers folder of the same shape, for models not known here",
    )
    parser.add_argument(
        "--hash",
        action="store_true",
        help="put a SHA-256 of all weights into the metadata (takes as long again)",
    )


def add_models(known: Any) -> None:
    text = "known models, downloads, and what lies on the disk"
    parser = known.add_parser("models", help=text, description=text, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=Parser, required=True)

    parser = command(actions, "list", _list, "the models that have a name")
    parser.add_argument("--family", default="", metavar="F", help="only of this family: sd1, sdxl ...")
    parser.add_argument("--controls", action="store_true", help="the ControlNets and T2I adapters instead")
    add_root(parser)

    parser = command(actions, "info", _info, "what is known of one model, or what a file is")
    parser.add_argument("model", metavar="NAME|FILE")
    parser.add_argument(
        "--online", action="store_true", help="ask each source whether it has the model today"
    )
    add_root(parser)

    parser = command(actions, "download", _download, "fetch models, each into the folder of its kind")
    parser.add_argument(
        "models", nargs="+", metavar="NAME|LINK", help="a name, a Hugging Face id, a link or a path"
    )
    parser.add_argument(
        "--kind", default="", metavar="K", help="refuse what is of another kind: lora, vae, controlnet ..."
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="into this folder instead")
    add_root(parser)

    parser = command(actions, "verify", _verify, "is it whole: places, numbers, hash")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--sha256", default="", metavar="H", help="what its maker says (of one FILE)")

    parser = command(actions, "table", _table, "every model that lies there, and what is wrong with it")
    add_root(parser)


# ------------------------------------------------------------------ identify, convert


def _identify(options: argparse.Namespace, rest: list[str]) -> int:
    rows = models.identify(options.files, console_progress(options))
    if len(options.files) > 1 or models.is_searched(expanded(options.files[0])):
        _tell(options, rows, "no model lies there")
        named = {str(expanded(file)) for file in options.files}
        bad = [row for row in rows if row.problem and str(row.path) in named]
        if bad:
            raise UserError(
                f"{len(bad)} of {len(rows)} cannot be told; the first: {bad[0].complaint}", fix=bad[0].fix
            )
        return 0
    if rows[0].problem:
        raise UserError(rows[0].complaint, fix=rows[0].fix)
    value = _all_facts(rows[0].path)
    show(options, value, [f"{key}: {text}" for key, item in value.items() if (text := _readable(key, item))])
    return 0


def _all_facts(path: Path) -> dict[str, Any]:
    from fastsd_lib.models.identify import describe

    found = describe(path)
    facts = {**dataclasses.asdict(found), "needs": found.needs, "prediction": prediction_of(found)}
    if facts["prediction"]:  # the header may not say it, and is not the last word
        facts["unknown"] = tuple(one for one in found.unknown if not one.startswith("prediction"))
    return {"path": str(facts.pop("path")), **facts.pop("kind"), **facts}


def _tell(options: argparse.Namespace, rows: list[ModelRow], none: str) -> None:
    lines = _columns(ROW_HEADS, [_row(row) for row in rows]) if rows else [f"{none[0].upper()}{none[1:]}."]
    show(options, [_facts(row) for row in rows], lines)


ROW_HEADS = ("kind", "for", "dtype", "size", "file", "")


def _row(row: ModelRow) -> tuple[str, ...]:
    return (row.sort, row.base, row.dtype, row.size, escaped(str(row.path)), escaped(row.problem))


def _facts(row: ModelRow) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "path": str(row.path)}


def _readable(key: str, item: Any) -> str:
    """For people; "" for what is not known, or does not concern them."""
    if key == "dtypes":
        return ", ".join(f"{name} ({size_words(size)})" for name, size in item.items())
    if key == "metadata":
        return f"{len(item)} entries (--json shows them)" if item else ""
    if isinstance(item, (tuple, list)):
        return escaped(", ".join(map(str, item)))
    if isinstance(item, bool) or not item:
        return "yes" if item else ""
    return f"{item:,}" if isinstance(item, int) else escaped(str(item))


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    made = models.convert(
        options.source,
        options.target,
        dtype=options.dtype,
        vae=options.vae,
        ema=options.ema,
        naming=options.naming,
        config_from=options.config_from,
        sha256=options.hash,
        report=console_progress(options),
    )
    notes = [escaped(note) for note in made.notes]
    show(options, {**dataclasses.asdict(made), "path": str(made.path)}, [str(made.path), *notes])
    return 0


# ------------------------------------------------------------------ models


MODEL_HEADS = ("name", "family", "px", "size", "for", "about")
CONTROL_HEADS = ("name", "purpose", "family", "kind", "size", "about")


def _list(options: argparse.Namespace, rest: list[str]) -> int:
    if options.controls:
        controls = models.known_controls(options.family)
        value, lines = controls, _columns(CONTROL_HEADS, [_control_row(one) for one in controls])
    else:
        known = models.known(options.family, root=_root(options))
        value, lines = known, _columns(MODEL_HEADS, [_model_row(one) for one in known])
    show(options, [_known(one) for one in value], lines)
    return 0


def _known(model: Any) -> dict[str, Any]:
    """Its fields; of addresses without what may be a key."""
    mirrors = tuple(one if hub_source(one) else shown_source(one) for one in model.mirrors)
    return {**dataclasses.asdict(model), "mirrors": mirrors}


def _root(options: argparse.Namespace) -> Path:
    from fastsd_lib.environment.hosts import default_root

    return expanded(options.root or default_root())


def _model_row(model: Any) -> tuple[str, ...]:
    """By its first alias where it has one: `models info NAME` tells the rest."""
    return (
        next(iter(model.aliases), model.name),
        model.family,
        str(model.resolution_px or ""),
        size_words(model.size_bytes) if model.size_bytes else "",
        "+".join(model.uses),
        model.about + (" (gated)" if model.gated else ""),
    )


def _control_row(control: Any) -> tuple[str, ...]:
    size = size_words(control.size_bytes) if control.size_bytes else ""
    about = control.about + (" (gated)" if control.gated else "")
    return (control.name, control.purpose, control.family, control.kind, size, about)


def _info(options: argparse.Namespace, rest: list[str]) -> int:
    known = [*models.known(root=_root(options)), *models.known_controls()]
    names = {name: one for one in known for name in getattr(one, "names", (one.name,))}
    if options.model in names:
        model = names[options.model]
        value = _known(model)
        lines = [f"{key}: {_listed(item)}" for key, item in value.items() if item not in ("", (), 0)]
        if options.online:
            states = models.sources_now(model, _root(options))
            value["online"] = [dataclasses.asdict(state) for state in states]
            lines += [f"today: {state.source}: {state.told}" for state in states] or ["today: comes along"]
        show(options, value, lines)
        return 0
    if is_there(expanded(options.model)):
        if options.online:
            raise UserError(
                f"{escaped(options.model)} is a file here; only known models have sources.",
                fix="leave out --online, or take a name of: python3 -m fastsd_lib models list",
            )
        options.files = [options.model]
        return _identify(options, rest)
    near = difflib.get_close_matches(options.model, names, 1, 0.4)
    raise UserError(
        f"No model {escaped(options.model)!r}.",
        fix=f"did you mean {near[0]}? All names: python3 -m fastsd_lib models list"
        if near
        else "python3 -m fastsd_lib models list names those that are known; or give the path of a file.",
    )


def _listed(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        return ", ".join(map(str, item))
    return "yes" if item is True else "no" if item is False else str(item)


def _download(options: argparse.Namespace, rest: list[str]) -> int:
    came: list[Any] = []
    try:
        models.download(
            options.models, options.root, kind=options.kind, folder=options.to,
            report=console_progress(options), on_done=came.append,
        )  # fmt: skip
    finally:  # also when another could not be had
        if came:
            lines = [line for one in came for line in (str(one.path), *map(escaped, one.notes))]
            show(options, _one_or_all([_downloaded(one) for one in came]), lines)
    return 0


def _downloaded(one: Any) -> dict[str, Any]:
    kind = one.description.kind
    return {
        "path": str(one.path),
        "kind": kind.kind,
        "family": kind.family,
        "layout": one.description.layout,
        "there_already": one.there_already,
        "notes": one.notes,
    }


def _one_or_all(values: list[Any]) -> Any:
    """For --json: of one that was asked for itself, of several the list."""
    return values[0] if len(values) == 1 else values


def _verify(options: argparse.Namespace, rest: list[str]) -> int:
    found = models.verify(options.files, options.sha256, console_progress(options))
    lines = [f"{escaped(str(one.path))}: {'; '.join(map(escaped, one.problems)) or 'whole'}" for one in found]
    value = [{**dataclasses.asdict(one), "path": str(one.path)} for one in found]
    show(options, _one_or_all(value), lines)
    bad = [one for one in found if one.problems]
    if bad:
        first = f"{escaped(str(bad[0].path))} is not whole: {escaped(bad[0].problems[0])}."
        count = f"{len(bad)} of {len(found)} are not whole; the first: " if len(found) > 1 else ""
        raise UserError(count + first, fix="download or convert it again.")
    return 0


def _table(options: argparse.Namespace, rest: list[str]) -> int:
    root = _root(options)
    _tell(options, models.lying_there(root, console_progress(options)), f"no model lies in {root}")
    return 0


def _columns(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Rows under their heads, each column as wide as its widest text."""
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]
