"""The command line: the same workflows as the notebooks, another face.

Exit status 0 on success, 2 with one or two lines on stderr for anything a user can cause.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsd_lib.cli_draw import add_generate
from fastsd_lib.cli_models import add_convert, add_identify, add_models
from fastsd_lib.cli_session import add_session
from fastsd_lib.cli_vit import add_vit
from fastsd_lib.cli_webui import add_webui
from fastsd_lib.cli_words import Parser, add_root, command, console_progress, opened, show
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.environment import commands as environment_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; UserError is for the caller (`python3 -m fastsd_lib`) to print."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="fastsd",
        description="From five photos to a personal Stable Diffusion model.",
        allow_abbrev=False,
    )
    known = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    environment_commands.add_commands(known)
    for add in (
        add_session,
        _add_train,
        add_generate,
        add_identify,
        add_convert,
        add_models,
        add_webui,
        add_vit,
        _add_benchmark,
    ):
        add(known)
    if not arguments:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "takes_rest", False):
        raise UserError(
            f"fastsd {arguments[0]}: unknown argument {rest[0]!r}.",
            fix=f"python3 -m fastsd_lib {arguments[0]} --help",
        )
    with plain_disk_errors(
        f"finish {arguments[0]}"
    ):  # a disk that fills up, or a Drive that goes, at any point
        return options.run(options, rest)


# ------------------------------------------------------------------ train


def _add_train(known: Any) -> None:
    parser = command(known, "train", _train, "DreamBooth on a session's photos, exported as one file")
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument(
        "choices", nargs="*", metavar="key=value", help="any line of recipe.yaml, such as unet_steps=800"
    )
    parser.set_defaults(takes_rest=True)  # argparse gives up on key=value words that follow an option
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="settings to start from")
    parser.add_argument(
        "--model",
        default=None,
        metavar="M",
        help="base model: embedded, 1.5, a folder, a file, a Hugging Face id or a link",
    )
    parser.add_argument(
        "--resume", action="store_true", help="repeat the session's last recipe, from where it stopped"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="start over although an unfinished run of these settings is there",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="work in this folder and carry checkpoints to the session (default for sessions on Drive)",
    )
    add_root(parser)


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    session = opened(options)
    strange = next((word for word in rest if word.startswith("-") or "=" not in word), None)
    if strange is not None:
        raise UserError(
            f"fastsd train: unknown argument {strange!r}.", fix="python3 -m fastsd_lib train --help"
        )
    choices = [*options.choices, *rest]
    base_name, config = dreambooth.planned(session, options.recipe, options.resume, options.model, choices)
    base = dreambooth.base_model(base_name, options.root)
    progress = console_progress(options)
    checkpoint = dreambooth.train(
        session, base, config, report=progress, resume=not options.restart, local_folder=options.work
    )
    if not checkpoint.finished:
        stopped = (
            f"Stopped after step {checkpoint.step} of {checkpoint.total_steps}; saved in {checkpoint.path}."
        )
        again = shlex.join(
            [
                "python3",
                "-m",
                "fastsd_lib",
                "train",
                session.name,
                "--resume",
                *(["--root", str(options.root)] if options.root else []),
                *(["--work", str(options.work)] if options.work else []),
            ]
        )
        show(
            options,
            {"finished": False, "step": checkpoint.step, "checkpoint": str(checkpoint.path)},
            [stopped, f"Continue: {again}"],
        )
        return 130
    made = dreambooth.export(session, base, checkpoint, report=progress, local_folder=options.work)
    grid = dreambooth.compare(session, base, made, config, report=progress)
    lines = [
        f"Model: {made.path}",
        *([f"LoRA: {session.lora_file}"] if config.method == "lora" else []),
        f"Before and after: {grid}",
        f'Try it: python3 -m fastsd_lib generate "{config.instance_prompt}" --model "{made.path}"',
    ]
    show(
        options,
        {"finished": True, "model": str(made.path), "grid": str(grid), "checkpoint": str(checkpoint.path)},
        lines,
    )
    return 0


# ------------------------------------------------------------------ benchmarks


def _add_benchmark(known: Any) -> None:
    text = "the project's own figures beside its peers'"
    # --help is the benchmark's own: each has options of its kind
    parser = known.add_parser("benchmark", help=text, description=text, allow_abbrev=False, add_help=False)
    parser.set_defaults(run=_benchmark)
    parser.add_argument("benchmark", nargs="?", default="", metavar="NAME")
    parser.set_defaults(takes_rest=True)


def _benchmark(options: argparse.Namespace, rest: list[str]) -> int:
    import importlib

    from fastsd_lib.environment.bootstrap import REPOSITORY

    folder = REPOSITORY / "benchmarks"
    if not folder.is_dir():
        raise UserError(
            "The benchmarks are not part of an installed package.",
            fix="run this in a checkout of the repository.",
        )
    modules = [*folder.glob("[a-z]*.py"), *(path.parent for path in folder.glob("*/__init__.py"))]
    known = sorted(path.stem.replace("_", "-") for path in modules)
    if not options.benchmark:
        print("\n".join(known))
        return 0
    if options.benchmark not in known:
        near = difflib.get_close_matches(options.benchmark, known, 1)
        raise UserError(
            f"There is no benchmark {options.benchmark!r}.",
            fix=f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}",
        )
    sys.path.insert(0, str(REPOSITORY))
    return importlib.import_module(f"benchmarks.{options.benchmark.replace('-', '_')}").main(rest)
