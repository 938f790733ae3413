"""Which session to work in: pick one that exists, or create one."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style


class SessionPicker(style.Shown):
    """The sessions below `root` with what each holds; `session` is the chosen one."""

    def __init__(self, root: Path, name: str = "") -> None:
        """`name` is opened, or created when it is new; empty chooses the newest session, if any."""
        import ipywidgets

        from fastsd_lib.sessions.session import list_sessions, sessions_dir

        self.root = root
        self._session: Any = None
        self.list = ipywidgets.Select(rows=6, layout=ipywidgets.Layout(width="100%"))
        self.name = ipywidgets.Text(
            placeholder="name of a new session", layout=ipywidgets.Layout(width="260px")
        )
        self.create_button = style.button("Create", self._create, kind="primary")
        self._facts = style.html()
        self._message = style.html()
        sides = style.row(
            style.column(self.list, style.row(self.name, self.create_button), flex="1 1 340px"),
            style.column(self._facts, flex="1 1 300px"),
            align_items="flex-start",
        )
        self.box = style.card(
            "Session", sides, self._message, note=f"Everything of a subject, in {sessions_dir(root)}"
        )
        if name:
            self._open_or_create(name)
        else:
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
        from fastsd_lib.sessions.session import open_session

        if change["new"]:
            self._session = open_session(self.root, change["new"])
            self._tell()

    def _list_again(self) -> None:
        from fastsd_lib.sessions.session import list_sessions

        sessions = list_sessions(self.root)
        chosen = self._session
        self.list.options = [(_line(session), session.name) for session in sessions]
        self._session = chosen  # setting the options has chosen the first of them
        if chosen:
            self.list.value = chosen.name
        self._tell()

    def _tell(self) -> None:
        self._message.value = ""
        if self._session is None:
            self._facts.value = '<div class="fsd-help">None yet: type a name and press Create.</div>'
            return
        rows = "".join(
            f'<tr><td class="fsd-help">{label}</td><td>{value}</td></tr>'
            for label, value in _counts(self._session)
        )
        self._facts.value = (
            f'<div class="fsd-box"><div class="fsd-label">{escape(self._session.name)}</div>'
            f'<table class="fsd-table">{rows}</table></div>'
        )


def _counts(session: Any) -> list[tuple[str, str]]:
    """By looking into a few folders only: `summary` adds up every file, which takes long on Drive."""
    from fastsd_lib.sessions.photos import photos

    models = [session.model_file, *session.path.glob("*.ckpt")]
    return [
        ("Photos", str(len(photos(session)))),
        ("Captions", str(len(list(session.captions.glob("*.txt"))))),
        ("Checkpoints", str(len(list(session.checkpoints.glob("step_*"))))),
        ("Trained model", "ready" if any(model.is_file() for model in models) else "not yet"),
    ]


def _line(session: Any) -> str:
    counts = dict(_counts(session))
    photos = counts["Photos"]
    text = f"{session.name}  ·  {photos} photo{'' if photos == '1' else 's'}"
    return text + ("  ·  trained" if counts["Trained model"] == "ready" else "")
