"""`python3 -m fastsd_lib demo`: the main job for real, by executing notebooks/dreambooth.ipynb on sample photos."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ConsoleProgress, ProgressEvent, duration
from fastsd_lib.environment.bootstrap import REPOSITORY
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.models import registry
from fastsd_lib.sessions.session import Session, sessions_dir
from fastsd_lib.workflows import dreambooth, notebook, outcome
from fastsd_lib.workflows.samples import SUBJECTS, sample_subject

NOTEBOOK = REPOSITORY / "notebooks" / "dreambooth.ipynb"
WATCH_S = 1.0


def run(argv: list[str]) -> int:
    """Both sample subjects by default; prints where everything lies and how to open it in the web UI."""
    parser = argparse.ArgumentParser(prog="fastsd demo", description=__doc__)
    parser.add_argument(
        "subjects", nargs="*", metavar="|".join(SUBJECTS), help="which sample subjects (default: both)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=None,
        metavar="DIR",
        help="where the sessions go (default: Drive on Colab, ~/fastsd elsewhere)",
    )
    options = parser.parse_args(argv)
    subjects = options.subjects or list(SUBJECTS)
    for subject in subjects:
        sample_subject(subject)  # a typo is said before anything runs
    root = (options.root or default_root()).absolute()
    started = time.monotonic()
    for subject in subjects:
        _run_subject(subject, root)
    print(f"\nDemo done in {duration(time.monotonic() - started)}.", flush=True)
    return 0


def _run_subject(subject: str, root: Path) -> None:
    about = sample_subject(subject)
    session = Session(sessions_dir(root) / f"demo-{subject}")
    print(f"\n== {subject}: {NOTEBOOK.name}, cell by cell", flush=True)
    values = {
        "session_name": session.name,
        "storage_folder": str(root),
        "demo_subject": subject,
        "instance_prompt": about.instance_prompt,
        "class_prompt": about.class_prompt,
    }
    with _watching(session):
        executed = notebook.execute(NOTEBOOK, values, session.logs / NOTEBOOK.name, on_cell=_say_cell)
    trained = ModelFiles("sd1", "single_file", session.model_file)
    for line in outcome.measure(subject, dreambooth.base_model(registry.EMBEDDED), trained):
        print(line)
    print(f"model             {session.model_file}")
    print(f"before and after  {session.samples / 'before_after.png'}")
    print(f"notebook, as run  {executed}")
    print(
        f"open it           {shlex.join(['python3', '-m', 'fastsd_lib', 'webui', '--model', str(session.model_file)])}",
        flush=True,
    )


def _say_cell(done: notebook.CellDone) -> None:
    print(f"  {done.title:<28} {duration(done.seconds):>12}", flush=True)


@contextmanager
def _watching(session: Session) -> Iterator[None]:
    """Show training's progress while the notebook's kernel trains: its metrics are read from the session."""
    over = threading.Event()
    show = ConsoleProgress(sys.stdout)
    metrics = session.logs / "metrics.jsonl"
    seen = metrics.stat().st_size if metrics.is_file() else 0

    def watch() -> None:
        position, shown = seen, None
        while not over.wait(WATCH_S):
            size = metrics.stat().st_size if metrics.is_file() else 0
            if size < position:  # the log was begun anew
                position = 0
            if size <= position:
                continue
            with metrics.open("rb") as handle:
                handle.seek(position)
                fresh = handle.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.splitlines()[-1:]:
                event = _event_of(json.loads(line))
                if shown and shown.task != event.task:  # the last line of a stage may fall between two looks
                    show(ProgressEvent(shown.task, shown.total, shown.total, shown.facts))
                show(event)
                shown = event

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _event_of(line: dict) -> ProgressEvent:
    facts = {
        name: line[name] for name in ("loss_average", "images_per_s", "memory_mib", "eta_s") if name in line
    }
    return ProgressEvent(f"    {line['stage']}", line["stage_step"], line["stage_steps"], facts)
