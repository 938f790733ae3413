"""`fastsd session export|import|publish|free-space|remove`: sessions to and from others, and off the disk."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from fastsd_lib.cli_words import console_progress, opened, show
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded

PARTS = "checkpoints, class-images, samples, logs, other"


def add_actions(action: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the five commands; `action` makes one that takes --root and --json, and SESSION unless told otherwise."""
    exporter = action("export", _export, "one archive for another person: photos, captions, recipe, model")
    exporter.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="default: SESSION-session.zip, here"
    )
    exporter.set_defaults(takes_rest=True)
    exporter.add_argument(
        "--with", dest="more", action="append", default=[], metavar="PART", help=f"also: {PARTS}"
    )
    exporter.add_argument("--no-photos", action="store_true", help="leave photos, captions and crops out")
    exporter.add_argument("--overwrite", action="store_true", help="replace the archive that is there")
    importer = action(
        "import",
        _import,
        "a new session from an archive, a folder, Google Drive or Hugging Face",
        named=False,
    )
    importer.add_argument(
        "source", metavar="SOURCE", help=".zip, .tar, folder, Google Drive link, org/name or its link"
    )
    importer.add_argument("--name", metavar="NEW", help="how the session is to be called here")
    publisher = action("publish", _publish, "the trained model, with a card, to a Hugging Face repository")
    publisher.add_argument("repository", metavar="USER/NAME")
    publisher.add_argument("--public", action="store_true", help="everybody may see it (default: only you)")
    publisher.add_argument("--with-photos", action="store_true", help="photos, captions and crops as well")
    publisher.add_argument("--dry-run", action="store_true", help="show what would go; send nothing")
    freer = action("free-space", _free_space, "sizes, and deleting what is not needed", named=False)
    freer.add_argument("name", nargs="?", metavar="SESSION", help="default: all sessions")
    freer.set_defaults(takes_rest=True)
    freer.add_argument(
        "--keep", type=int, default=1, metavar="N", help="newest checkpoints of each run to keep (default: 1)"
    )
    freer.add_argument("--dry-run", action="store_true", help="only show")
    freer.add_argument("--yes", action="store_true", help="do not ask")
    freer.add_argument(
        "--empty-trash", action="store_true", help="also delete the sessions that were removed"
    )
    remover = action("remove", _remove, "move a session to the trash beside Sessions/")
    remover.add_argument("--for-good", action="store_true", help="delete it with all its photos instead")
    remover.add_argument("--yes", action="store_true", help="do not ask")


def _root(options: argparse.Namespace) -> Path:
    from fastsd_lib.environment.hosts import default_root

    return expanded(options.root) if options.root else default_root()


def _last_word(command: str, given: object, rest: list[str]) -> str | None:
    """A word that stands after an option: argparse has settled by then that the optional one is missing."""
    if not rest:
        return None
    if given is not None or len(rest) > 1 or rest[0].startswith("-"):
        raise UserError(
            f"fastsd session {command}: unknown argument {rest[-1 if given is None else 0]!r}.",
            fix=f"python3 -m fastsd_lib session {command} --help",
        )
    return rest[0]


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import sharing

    if word := _last_word("export", options.file, rest):
        options.file = Path(word)
    more = [part.strip() for word in options.more for part in word.split(",") if part.strip()]
    made = sharing.export_session(
        opened(options),
        options.file,
        more=more,
        photos=not options.no_photos,
        overwrite=options.overwrite,
        report=console_progress(options),
    )
    left = {part: {"files": files, "bytes": size} for part, (files, size) in made.left_out.items()}
    value = {
        "path": str(made.path),
        "bytes": made.bytes,
        "files": made.files,
        "left_out": left,
        "notes": made.notes,
    }
    show(options, value, made.lines())
    return 0


def _import(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import sharing

    made = sharing.import_session(options.source, options.name, options.root, console_progress(options))
    value = {
        "name": made.session.name,
        "path": str(made.session.path),
        "files": made.files,
        "bytes": made.bytes,
        "verified": made.verified,
        "ignored": made.ignored,
        "renamed": made.renamed,
        "notes": made.notes,
    }
    show(options, value, [*made.lines(), f"It lies in {made.session.path}"])
    return 0


def _publish(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import publishing

    planned = publishing.plan(
        opened(options), options.repository, public=options.public, with_photos=options.with_photos
    )
    value = {
        "repository": planned.repository,
        "private": planned.private,
        "files": dict(planned.rows()),
        "readme": planned.texts["README.md"],
    }
    if options.dry_run:
        show(
            options, value | {"sent": False}, [*planned.lines(), "", "Nothing was sent: this was a dry run."]
        )
        return 0
    address = publishing.publish(planned, options.root)
    who = "only you can see it" if planned.private else "everybody can see it"
    show(options, value | {"sent": True, "address": address}, [f"Published {address} ({who})."])
    return 0


def _free_space(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.sessions import free_space
    from fastsd_lib.sessions import session as sessions

    options.name = _last_word("free-space", options.name, rest) or options.name
    root = _root(options)
    listed = [opened(options)] if options.name else sessions.list_sessions(root)
    found = [free_space.usage(session, options.keep) for session in listed]
    if options.name and found[0].busy and not options.dry_run:
        raise UserError(
            f"Session {options.name!r} is in use: {found[0].busy}.", fix="wait until it ends, or stop it."
        )
    imports = [] if options.name else free_space.forgotten_imports(root)
    trash_bytes = free_space.trash_bytes(root)
    total = sum(one.free_bytes for one in found) + sum(one.bytes for one in imports)
    total += trash_bytes if options.empty_trash else 0
    lines = [line for one in found for line in one.lines()]
    lines += [f"  can go: {one.path.name} ({one.kind}, {free_space.size_text(one.bytes)})" for one in imports]
    if trash_bytes:
        how = "goes too" if options.empty_trash else "empty it: --empty-trash"
        lines.append(
            f"removed sessions in {free_space.trash_dir(root)}: {free_space.size_text(trash_bytes)} ({how})"
        )
    value = {
        "sessions": [
            {
                "name": one.session.name,
                "bytes": one.bytes,
                "parts": one.parts,
                "checkpoints": one.checkpoints,
                "in_use": one.busy,
                "can_go": [
                    {"kind": part.kind, "path": str(part.path), "bytes": part.bytes}
                    for part in one.candidates
                ],
            }
            for one in found
        ],
        "trash_bytes": trash_bytes,
        "can_be_freed_bytes": total,
        "freed_bytes": 0,
    }
    if options.dry_run or not total:
        say = f"{free_space.size_text(total)} can be freed." if total else "There is nothing that could go."
        show(options, value, [*lines, say])
        return 0
    if not options.json:
        print("\n".join(lines))
    _ask(f"Delete this and free {free_space.size_text(total)}?", options)
    freed = [free_space.free(one.session, options.keep) for one in found if one.candidates]
    said = [line for one in freed for line in free_space.freed_lines(one)]
    bytes_freed = sum(one.bytes for one in freed)
    bytes_freed += free_space.clear_imports(root) if imports else 0
    bytes_freed += free_space.empty_trash(root) if options.empty_trash else 0
    said.append(f"{free_space.size_text(bytes_freed)} are free again.")
    if free_space.on_drive(root):
        said.append(free_space.DRIVE_TRASH)
    show(options, value | {"freed_bytes": bytes_freed, "notes": said}, said)
    return 0


def _remove(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.sessions import free_space

    session, root = opened(options), _root(options)
    if options.for_good and not options.yes:
        size = free_space.size_text(free_space.usage(session).bytes)
        _ask_name(f"This deletes {session.path} ({size}) with all its photos.", session.name)
    place = free_space.remove(session, root, options.for_good)
    if place is None:
        lines = [f"Deleted {session.path}."]
    else:
        lines = [
            f"Moved {session.name!r} to {place}.",
            f"Back again: python3 -m fastsd_lib session import {shlex.quote(str(place))}"
            f" --name {shlex.quote(session.name)}",
            "It takes up space there until: python3 -m fastsd_lib session free-space --empty-trash",
        ]
    lines += [free_space.DRIVE_TRASH] if place is None and free_space.on_drive(root) else []
    show(options, {"name": session.name, "moved_to": str(place) if place else None}, lines)
    return 0


def _ask(question: str, options: argparse.Namespace) -> None:
    """UserError unless the answer is yes."""
    if options.yes:
        return
    _need_terminal()
    if _answer(f"{question} [y/N] ").casefold() not in ("y", "yes"):
        raise UserError("Nothing was deleted.", fix="answer y, or add --yes.")


def _ask_name(warning: str, name: str) -> None:
    _need_terminal()
    if _answer(f"{warning}\nType its name to go on: ") != name:
        raise UserError("That is not its name; nothing was deleted.", fix=f"type {name}, or add --yes.")


def _need_terminal() -> None:
    if not sys.stdin.isatty():
        raise UserError(
            "Nothing was deleted: there is no terminal to ask on.", fix="add --yes, or --dry-run to look."
        )


def _answer(question: str) -> str:
    sys.stderr.write(question)  # stdout may be JSON for a program
    sys.stderr.flush()
    return sys.stdin.readline().strip()
