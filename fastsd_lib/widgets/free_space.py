"""What a session takes, what of it can go, and the going: shown first, asked once, never a session in use."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style


class FreeSpace(style.Shown):
    """Sizes of the sessions below `root`; buttons that free what is not needed, or take a session away."""

    def __init__(self, root: Path, name: str = "") -> None:
        """`name` is the session that is shown first; another one can be chosen in the list."""
        import ipywidgets

        from fastsd_lib.sessions.session import list_sessions

        self.root = root
        names = [session.name for session in list_sessions(root)]
        self.choice = ipywidgets.Dropdown(
            options=names, value=name if name in names else None, layout=ipywidgets.Layout(width="260px")
        )
        self.measure_button = style.button("Measure all", self.measure_all)
        self.free_button = style.button("Free", lambda: self._ask("free"))
        self.remove_button = style.button("Remove session", lambda: self._ask("remove"))
        self.trash_button = style.button("Empty trash", lambda: self._ask("trash"))
        self.keep_button = style.button("Keep", self.keep)
        self._asked = ""  # the deletion whose button waits for its second press
        self._sizes = style.html()
        self._usage = style.html()
        self._message = style.html()
        self.box = style.card(
            "Free space",
            style.row(self.choice, self.measure_button),
            self._sizes,
            self._usage,
            style.row(self.free_button, self.remove_button, self.trash_button, self.keep_button),
            self._message,
            note="Only what fastsd made can go: never photos, captions or finished models.",
        )
        self.choice.observe(lambda _: self._chosen(), names="value")
        self._chosen()

    @property
    def session(self) -> Any:
        """The session in the list, as it is on disk now; None when there is none."""
        from fastsd_lib.sessions.session import Session, sessions_dir

        session = Session(sessions_dir(self.root) / self.choice.value) if self.choice.value else None
        return session if session and session.path.is_dir() else None

    def measure_all(self) -> None:
        """One line per session, the largest first."""
        from fastsd_lib.sessions.archive import size_text
        from fastsd_lib.sessions.free_space import usage
        from fastsd_lib.sessions.session import list_sessions

        found = sorted((usage(one) for one in list_sessions(self.root)), key=lambda one: -one.bytes)
        rows = "".join(
            f"<tr><td>{escape(one.session.name)}</td><td>{size_text(one.bytes)}</td>"
            f'<td class="fsd-help">{size_text(one.free_bytes)} can go</td></tr>'
            for one in found
        )
        self._sizes.value = f'<div class="fsd-box"><table class="fsd-table">{rows}</table></div>'

    def keep(self) -> None:
        """Take back the question whether to delete."""
        self._asked = ""
        self._draw()

    def _chosen(self) -> None:
        self._message.value, self._asked = "", ""
        self._draw()

    def _ask(self, what: str) -> None:
        """The first press only asks; the second one does it."""
        if self._asked != what:
            self._asked = what
            self._draw()
            return
        self._asked = ""
        try:
            lines = {"free": self._free, "remove": self._remove, "trash": self._empty_trash}[what]()
        except UserError as error:
            self._message.value = style.failure(error)
        else:
            rows = "".join(f"<div>{escape(line.strip())}</div>" for line in lines)
            self._message.value = f'<div class="fsd-box fsd-good">{rows}</div>'
            self._sizes.value = ""
        self._draw()

    def _free(self) -> list[str]:
        from fastsd_lib.sessions.archive import size_text
        from fastsd_lib.sessions.free_space import free

        freed = free(self.session)
        return [f"Freed {size_text(freed.bytes)}.", *freed.kept, *self._about_drive()]

    def _remove(self) -> list[str]:
        from fastsd_lib.sessions.free_space import remove
        from fastsd_lib.sessions.session import list_sessions

        session = self.session
        place = remove(session, self.root)
        self.choice.options = [one.name for one in list_sessions(self.root)]
        return [
            f"Session {session.name} lies in the trash now: {place}",
            "Empty the trash to free its space.",
        ]

    def _empty_trash(self) -> list[str]:
        from fastsd_lib.sessions.archive import size_text
        from fastsd_lib.sessions.free_space import clear_imports, empty_trash

        freed_bytes = empty_trash(self.root) + clear_imports(self.root)
        return [f"Freed {size_text(freed_bytes)}.", *self._about_drive()]

    def _about_drive(self) -> list[str]:
        from fastsd_lib.sessions.free_space import DRIVE_TRASH, on_drive

        return [DRIVE_TRASH] if on_drive(self.root) else []

    def _draw(self) -> None:
        import shutil

        from fastsd_lib.sessions.archive import size_text
        from fastsd_lib.sessions.free_space import forgotten_imports, trash_bytes, usage

        session = self.session
        found = usage(session) if session else None
        waste = trash_bytes(self.root) + sum(one.bytes for one in forgotten_imports(self.root))
        on_disk = shutil.disk_usage(next(one for one in (self.root, *self.root.parents) if one.exists()))
        self._usage.value = (_usage_table(found) if found else "No session yet.") + (
            f'<div class="fsd-help">On this disk {size_text(on_disk.free)} of {size_text(on_disk.total)} are free.</div>'
        )
        can_free = bool(found and found.candidates)
        for button, what, label, possible in (
            (
                self.free_button,
                "free",
                f"Free {size_text(found.free_bytes)}" if can_free else "Nothing to free",
                can_free,
            ),
            (self.remove_button, "remove", "Remove session", bool(found and not found.busy)),
            (
                self.trash_button,
                "trash",
                f"Empty trash ({size_text(waste)})" if waste else "Trash is empty",
                bool(waste),
            ),
        ):
            asked = self._asked == what
            button.description = f"Really {label[0].lower()}{label[1:]}" if asked else label
            button.disabled = not possible
            (button.add_class if asked else button.remove_class)("fsd-danger")
        self.keep_button.layout.display = "" if self._asked else "none"


def _usage_table(found: Any) -> str:
    from fastsd_lib.sessions.archive import size_text

    rows = [("everything", found.bytes, ""), *((part, size, "") for part, size in found.parts.items())]
    going = {one.path.name: one for one in found.candidates}
    rows += [
        (f"checkpoint {name}", size, "can go: an older one" if name in going else "stays")
        for name, size in found.checkpoints.items()
    ]
    rows += [
        (one.path.name, one.bytes, f"can go: {one.kind}")
        for name, one in going.items()
        if name not in found.checkpoints
    ]
    cells = "".join(
        f'<tr><td>{escape(label)}</td><td class="fsd-number">{size_text(size)}</td>'
        f'<td class="fsd-help">{escape(note)}</td></tr>'
        for label, size, note in rows
    )
    busy = (
        f'<div class="fsd-error">In use, so nothing of it can go: {escape(found.busy)}</div>'
        if found.busy
        else ""
    )
    return f'<div class="fsd-box"><table class="fsd-table">{cells}</table>{busy}</div>'
