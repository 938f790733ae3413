"""`fastsd vit VERB`: ViT experiments from the command line.

The verbs' options are made of the config dataclasses, which costs some milliseconds: so they are built only when the
command is `vit`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

from fastsd_lib import cli_vit_compress, cli_vit_look, cli_vit_search, cli_vit_train
from fastsd_lib.cli_words import Parser
from fastsd_lib.core.errors import UserError

TEXT = "ViT experiments: classify, train, look inside, compress, search, serve"
NOTE = "fastsd vit VERB --help tells more. The usual --model is `embedded`, a tiny one that needs no network."


def add_vit(known: Any) -> None:
    # --help is that of the verbs, which are made later
    parser = known.add_parser("vit", help=TEXT, description=TEXT, allow_abbrev=False, add_help=False)
    parser.add_argument("verb", nargs="?", default="")
    parser.set_defaults(run=_vit, takes_rest=True)


def _vit(options: argparse.Namespace, rest: list[str]) -> int:
    return run([*filter(None, [options.verb]), *rest])


def run(words: Sequence[str]) -> int:
    """One command line after `fastsd vit`. UserError for a mistake in it, and for all that goes wrong."""
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(words)
    if not hasattr(options, "run"):
        raise UserError(f"fastsd vit: there is no {rest[0]!r} here.", fix="python3 -m fastsd_lib vit --help")
    if rest and not (getattr(options, "takes_rest", False) and all(map(_is_setting, rest))):
        strange = next(
            word for word in rest if not (getattr(options, "takes_rest", False) and _is_setting(word))
        )
        raise UserError(
            f"fastsd vit {words[0]}: unknown argument {strange!r}.", fix=_nearest(strange, options, words[0])
        )
    return options.run(options, rest)


def verbs() -> list[str]:
    """What can stand after `fastsd vit`."""
    return list(_parser()._subparsers._group_actions[0].choices)


def _parser() -> Parser:
    parser = Parser(
        prog="fastsd vit", description=TEXT, epilog=NOTE, allow_abbrev=False, formatter_class=_Compact
    )
    verbs = parser.add_subparsers(metavar="VERB", parser_class=Parser)
    for room in (cli_vit_look, cli_vit_train, cli_vit_compress, cli_vit_search):
        room.add_verbs(verbs)
    for name, verb in verbs.choices.items():
        verb.set_defaults(
            known_options=[one for action in verb._actions for one in action.option_strings], verb=name
        )
    return parser


class _Compact(argparse.HelpFormatter):
    """Each verb on a line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 16  # argparse forgets how far it indents verbs, and would break the longest


def _is_setting(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _nearest(word: str, options: argparse.Namespace, verb: str) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], options.known_options, 1)
    return f"did you mean {near[0]}?" if near else f"python3 -m fastsd_lib vit {verb} --help"
