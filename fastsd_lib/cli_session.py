"""`fastsd session ...`: what is done with a subject's folder."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsd_lib import cli_curation, cli_sharing
from fastsd_lib.cli_words import Parser, add_root, command, console_progress, opened, show
from fastsd_lib.core.errors import UserError


def add_session(known: Any) -> None:
    parser = known.add_parser("session", help="sessions on Drive or any folder", allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=Parser, required=True)

    def action(
        name: str, run: Callable[[argparse.Namespace, list[str]], int], text: str, named: bool = True
    ) -> argparse.ArgumentParser:
        made = command(actions, name, run, text)
        if named:
            made.add_argument("name", metavar="SESSION")
        add_root(made)
        return made

    action("list", _session_list, "the sessions there are", named=False)
    action("create", _session_create, "a new, empty session")
    action("show", _session_show, "what a session holds")
    adder = action("add-images", _session_add, "copy photos (files, folders, zips) into a session")
    adder.add_argument("sources", nargs="+", type=Path, metavar="PHOTOS")
    adder.add_argument("--strict", action="store_true", help="exit 2 if any file could not be used")
    captioner = action(
        "caption", _session_caption, "captions from file names; shows each photo's training prompt"
    )
    captioner.add_argument(
        "--instance-prompt", required=True, metavar="TEXT", help='such as "photo of sks cat"'
    )
    captioner.add_argument("--overwrite", action="store_true", help="replace captions that are there")
    action("verify", _session_verify, "check every file that the session relies on")
    cli_curation.add_actions(action)
    cli_sharing.add_actions(action)


def _session_list(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.environment.hosts import default_root
    from fastsd_lib.sessions import session as sessions

    root = options.root or default_root()
    rows = [sessions.summary(one) for one in sessions.list_sessions(root)]
    lines = [
        f"{row['name']}: {row['photos']} photos, {len(row['checkpoints'])} checkpoints, "
        f"model {', '.join(row['models']) or 'none yet'}"
        for row in rows
    ]
    show(
        options,
        rows,
        lines
        or [
            f"No sessions in {sessions.sessions_dir(root)} yet. Make one: python3 -m fastsd_lib session create NAME"
        ],
    )
    return 0


def _session_create(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.environment.hosts import default_root
    from fastsd_lib.sessions import session as sessions

    made = sessions.create_session(options.root or default_root(), options.name)
    show(
        options,
        {"name": made.name, "path": str(made.path)},
        [
            f"Made {made.path}",
            f"Next: python3 -m fastsd_lib session add-images {shlex.quote(made.name)} FOLDER",
        ],
    )
    return 0


def _session_show(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.sessions import session as sessions

    summary = sessions.summary(opened(options))
    show(options, summary, [f"{key}: {value}" for key, value in summary.items() if key != "history"])
    return 0


def _session_add(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    outcome = dreambooth.add_photos(opened(options), options.sources, console_progress(options))
    rejected = [{"name": one.name, "code": one.code, "reason": one.reason} for one in outcome.rejected]
    value = {
        "accepted": [path.name for path in outcome.accepted],
        "already_here": len(outcome.already_here),
        "rejected": rejected,
    }
    show(options, value, outcome.lines())
    if rejected and not (outcome.accepted or outcome.already_here or outcome.captions):
        what = (
            "This cannot be used"
            if len(rejected) == 1
            else f"None of the {len(rejected)} can be used; the first"
        )
        raise UserError(
            f"{what}: {rejected[0]['reason']}",
            fix="add photos as JPEG, PNG, WebP, HEIC or a zip of them.",
        )
    return 2 if options.strict and rejected else 0


def _session_caption(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    prompts = dreambooth.caption_photos(opened(options), options.instance_prompt, overwrite=options.overwrite)
    show(
        options,
        prompts,
        [f"{name}: {prompt}" for name, prompt in prompts.items()] or ["The session has no photos yet."],
    )
    return 0


def _session_verify(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    problems = dreambooth.verify(opened(options))
    show(options, {"problems": problems}, problems or ["Everything is as it was written."])
    return 2 if problems else 0
