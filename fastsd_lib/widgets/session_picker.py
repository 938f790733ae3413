"""Which session to work in: pick one that exists, create one, or import one."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style

SOURCES = "zip, folder, Drive link or org/name"


class SessionPicker(style.Shown):
    """The sessions below `root` with what each holds; `session` is the chosen one."""

    def __init__(self, root: Path, name: str = "", import_from: str = "") -> None:
        """`name` is opened, or created when it is new; empty chooses the newest session, if any.

        With `import_from` the session of that source is chosen instead, imported when the widget is shown.
        """
        import ipywidgets

        from fastsd_lib.sessions.session import list_sessions, sessions_dir

        self.root = root
        self._session: Any = None
        self._to_import = import_from.strip()
        self._quiet = False  # true while code, not the user, changes the list
        wide = ipywidgets.Layout(flex="1 1 200px", width="auto")
        self.list = ipywidgets.Select(rows=6, layout=ipywidgets.Layout(width="100%"))
        self.name = ipywidgets.Text(placeholder="name of a new session", layout=wide)
        self.create_button = style.button("Create", self._create, kind="primary")
        self.source = ipywidgets.Text(placeholder=SOURCES, layout=wide)
        self.import_button = style.button("Import", self._import)
        self._facts = style.html()
        self._message = style.html()
        choosing = style.column(
            self.list,
            style.row(self.name, self.create_button),
            style.row(self.source, self.import_button),
            flex="1 1 400px",
        )
        sides = style.row(choosing, style.column(self._facts, flex="1 1 330px"), align_items="flex-start")
        self.box = style.card(
            "Session", sides, self._message, note=f"Everything of a subject, in {sessions_dir(root)}"
        )
        if name and not self._to_import:
            self._open_or_create(name)
        elif not name:
            known = list_sessions(root)
            self._session = max(known, key=lambda s: s.path.stat().st_mtime, default=None)
        self._list_again()
        self.list.observe(self._picked, names="value")

    @property
    def session(self) -> Any:
        """The chosen Session. Raises UserError when none is chosen yet."""
        if self._session is None:
            raise UserError(
                "No session is chosen.", fix="pick one in the list, or type a name and press Create."
            )
        return self._session

    def show(self) -> None:
        """Show the sessions; what the cell asked to import is fetched below the list, where progress is seen."""
        super().show()
        source, self._to_import = self._to_import, ""
        self.import_from(source)

    def import_from(self, source: str | Path, name: str = "") -> None:
        """Import a session that somebody shared and choose it; an empty source imports nothing.

        One that was imported from this source before is chosen as it stands on disk. UserError with the reason
        for what cannot be imported; no session that is there is ever overwritten.
        """
        from fastsd_lib.core.files import fingerprint
        from fastsd_lib.core.progress import ProgressEvent
        from fastsd_lib.sessions.session import list_sessions, read_manifest, set_facts
        from fastsd_lib.workflows.sharing import import_session

        source = str(source).strip()
        if not source:
            return
        mark = fingerprint(source)  # not the link itself: whoever gets this session next need not have it
        known = [one for one in list_sessions(self.root) if read_manifest(one).get("imported_from") == mark]
        if known:
            self._session, lines = known[0], ["It was imported before, and is opened as it stands."]
        else:

            def report(event: ProgressEvent) -> None:
                self._say([f"{event.task}: {event.done} of {event.total}"])

            self._say(["Importing ..."])
            outcome = import_session(source, name.strip() or None, self.root, report)
            set_facts(outcome.session, imported_from=mark)
            self._session, lines = outcome.session, outcome.lines()
        self._list_again()
        self._say(lines)

    def _import(self) -> None:
        """What the button does: the name beside Create is the new session's, when one is typed there."""
        self.import_button.disabled = True
        try:
            self.import_from(self.source.value, self.name.value)
            self.source.value = self.name.value = ""
        except UserError as error:
            self._message.value = style.failure(UserError(error.message, _for_a_page(error.fix)))
        finally:
            self.import_button.disabled = False

    def _create(self) -> None:
        try:
            self._open_or_create(self.name.value.strip())
        except UserError as error:
            self._message.value = style.failure(error)
            return
        self.name.value = ""
        self._list_again()

    def _open_or_create(self, name: str) -> None:
        from fastsd_lib.workflows import dreambooth

        self._session = dreambooth.open_session(name, self.root, create_if_missing=True)

    def _picked(self, change: dict[str, Any]) -> None:
        if change["new"] and not self._quiet:
            try:
                self._open_or_create(change["new"])  # one of the older notebooks is completed so
            except UserError as error:
                self._list_again()  # back to the one that is open
                self._message.value = style.failure(error)
                return
            self._tell()

    def _list_again(self) -> None:
        from fastsd_lib.sessions.session import list_sessions

        sessions = list_sessions(self.root)
        chosen = self._session
        self._quiet = True  # setting the options chooses the first of them, which nobody asked for
        self.list.options = [(_line(session), session.name) for session in sessions]
        self.list.value = chosen.name if chosen else None
        self._quiet = False
        self._tell()

    def _say(self, lines: list[str]) -> None:
        rows = "".join(f"<div>{escape(line.strip())}</div>" for line in lines)
        self._message.value = f'<div class="fsd-box fsd-help">{rows}</div>'

    def _tell(self) -> None:
        self._message.value = ""
        if self._session is None:
            self._facts.value = '<div class="fsd-help">None yet: type a name and press Create.</div>'
            return
        rows = "".join(
            f'<tr><td class="fsd-help">{label}</td><td>{escape(value)}</td></tr>'
            for label, value in facts_of(self._session).items()
        )
        self._facts.value = (
            f'<div class="fsd-box"><div class="fsd-label">{escape(self._session.name)}</div>'
            f'<table class="fsd-table">{rows}</table></div>'
        )


def facts_of(session: Any) -> dict[str, str]:
    """By looking into a few folders only: `summary` adds up every file, which takes long on Drive."""
    from fastsd_lib.sessions import legacy
    from fastsd_lib.sessions.photos import photos

    found = photos(session)
    older = legacy.trained_models(session.path)
    facts = {
        "Photos": str(len(found)),
        "Captions": str(len(list(session.captions.glob("*.txt")))),
        "Subject": ", ".join(f"{word} ({count})" for word, count in legacy.identifiers(found).items()),
        "Suggested prompt": legacy.instance_prompt_for(found),
        "Training": state_of_training(session),
        "Trained model": session.model_file.name if session.model_file.is_file() else "",
        "Older model": str(older[-1]) if older else "",
    }
    always = ("Photos", "Captions", "Training")
    return {label: value for label, value in facts.items() if value or label in always}


def state_of_training(session: Any) -> str:
    """ "stopped at step 120 of 500: run step 8 to go on", by the newest checkpoint and the session's lock."""
    from fastsd_lib.sessions.checkpoints import list_checkpoints
    from fastsd_lib.sessions.lock import who_works_on

    try:
        busy = who_works_on(session.path)
        newest = max(
            list_checkpoints(session.checkpoints), key=lambda one: (one.saved_at, one.step), default=None
        )
    except OSError as error:
        return f"not known: {error.strerror}"
    if busy:
        return f"in use: {busy}"
    if newest is None:
        return "not yet"
    if newest.finished:
        return f"finished at step {newest.step}"
    return f"stopped at step {newest.step} of {newest.total_steps}: run step 8 to go on"


def _line(session: Any) -> str:
    """One listing per session: opening each of its photos would take a minute on Drive."""
    from fastsd_lib.core.file_kinds import is_junk

    try:
        count = sum(not is_junk(one.name) for one in session.instance_images.iterdir())
    except OSError:
        count = 0
    state = state_of_training(session)
    text = f"{session.name}  ·  {count} photo{'' if count == 1 else 's'}"
    if session.model_file.is_file():
        text += "  ·  trained"
    if state.startswith(("stopped", "in use")):
        text += f"  ·  {state.partition(':')[0]}"
    return text


def _for_a_page(fix: str) -> str:
    """The way out without the words of the command line: a name is typed into the field above."""
    return fix.replace("--name ", "type it as the name of the new session: ")
