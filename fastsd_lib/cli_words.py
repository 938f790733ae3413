"""What every command of the command line shares: how it is parsed, how it prints, where sessions lie."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ConsoleProgress


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line with the way out, like every other error here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{self.prog}: {message}.",
            fix=f"{self.prog.replace('fastsd', 'python3 -m fastsd_lib', 1)} --help",
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
            raise UserError(f"{self.prog}: there is no {value!r} here.", fix=hint)


def command(
    known: Any,
    name: str,
    run: Callable[[argparse.Namespace, list[str]], int],
    text: str,
    as_json: bool = True,
) -> argparse.ArgumentParser:
    parser = known.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    if as_json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def show(options: argparse.Namespace, value: Any, lines: Sequence[str]) -> None:
    if options.json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        print("\n".join(lines))


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where sessions live (default: Drive on Colab, ~/fastsd elsewhere)",
    )


def opened(options: argparse.Namespace) -> Any:
    from fastsd_lib.workflows import dreambooth

    return dreambooth.open_session(options.name, root=options.root, create_if_missing=False)


def console_progress(options: argparse.Namespace) -> ConsoleProgress:
    return ConsoleProgress(sys.stderr)
