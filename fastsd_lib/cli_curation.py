"""`fastsd session curate|judge|set-aside|bring-back`: which photos teach the subject, and is it in what was trained."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fastsd_lib.cli_words import console_progress, opened, show


def add_actions(action: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the four commands; `action` makes one that takes SESSION, --root and --json."""
    curator = action("curate", _curate, "advice for each photo: keep, look at it, or drop; nothing is moved")
    judge = action("judge", _judge, "how much of the subject is in pictures of the trained model")
    for parser in (curator, judge):
        parser.add_argument(
            "--class-images",
            type=Path,
            metavar="DIR",
            help="others of the class (default: the session's own)",
        )
        parser.add_argument("--model", metavar="M", help="a ViT to compare by, besides colours and edges")
    judge.add_argument(
        "--pictures", type=Path, metavar="DIR", help="default: what training drew into samples/"
    )
    judge.add_argument(
        "--draw", type=int, default=0, metavar="N", help="also N pictures each before and after"
    )
    judge.add_argument("--sheet", type=Path, metavar="FILE", help="write the pictures with their scores here")
    aside = action("set-aside", _set_aside, "move photos out of training, into set_aside/ of the session")
    aside.add_argument("photos", nargs="+", metavar="PHOTO", help="names as `session curate` shows them")
    back = action("bring-back", _bring_back, "move photos from set_aside/ back into training")
    back.add_argument("photos", nargs="*", metavar="PHOTO", help="default: all")


def _curate(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import curation

    session = opened(options)
    found = curation.curate(session, options.class_images, options.model, console_progress(options))
    sheet, table = curation.save(found)
    lines = [*found.lines(), f"Pictures: {sheet}", f"Table: {table}"]
    if found.advised:
        names = shlex.join([session.name, *found.advised])
        lines.append(f"To leave these out: python3 -m fastsd_lib session set-aside {names}")
    value = {
        "photos": [asdict(row) for row in found.rows],
        "separation": found.separation,
        "way": found.way,
        "advised": list(found.advised),
        "sheet": str(sheet),
    }
    show(options, value, lines)
    return 0


def _judge(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.core.errors import UserError
    from fastsd_lib.core.files import atomic_path, plain_disk_errors
    from fastsd_lib.workflows import judging

    if not 0 <= options.draw <= 256:
        raise UserError(f"--draw {options.draw} is not possible.", fix="choose 0 to 256.")
    judged = judging.judge_samples(
        opened(options), options.pictures, draw=options.draw, class_images=options.class_images,
        model=options.model, report=console_progress(options),
    )  # fmt: skip
    lines = judged.lines()
    if options.sheet:
        with plain_disk_errors("write the sheet"), atomic_path(options.sheet.with_suffix(".png")) as scratch:
            judging.judged_sheet(judged).save(scratch)
        lines.append(f"Pictures: {options.sheet.with_suffix('.png')}")
    series = {
        one.name: {"scores": list(one.scores), "mean": one.mean, "share": one.share} for one in judged.series
    }
    value = {"series": series, "separation": judged.separation, "way": judged.way, "gained": judged.gained}
    show(options, value, lines)
    return 0


def _set_aside(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import setting_aside

    session = opened(options)
    moved = setting_aside.set_aside(session, options.photos)
    lines = [
        f"{len(moved)} photos lie in {session.path / setting_aside.FOLDER} now; training does not see them.",
        f"Back: python3 -m fastsd_lib session bring-back {shlex.quote(session.name)}",
    ]
    show(options, {"moved": moved}, lines)
    return 0


def _bring_back(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import setting_aside

    moved = setting_aside.bring_back(opened(options), options.photos or None)
    show(options, {"moved": moved}, [f"{len(moved)} photos are back: {', '.join(moved) or 'none was away'}"])
    return 0
