"""Read every photo beside its caption, mend one or all of them, and see the prompt that training will use."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import image_tag

UNSAVED = "● "


class CaptionEditor(style.Shown):
    """Captions of a session. Edits are drafts, marked ●, until they are saved; photos stay as they are."""

    def __init__(self, session: Any, instance_prompt: str) -> None:
        import ipywidgets

        from fastsd_lib.images.captions import read_caption
        from fastsd_lib.sessions.photos import photos

        self.session = session
        self.instance_prompt = instance_prompt
        self._photos: dict[str, Path] = {photo.name: photo for photo in photos(session)}
        self._saved = {name: read_caption(session.captions, photo) for name, photo in self._photos.items()}
        self.texts = dict(self._saved)  # as they stand on the screen
        self._undo: dict[str, str] | None = None
        self._typing_in = ""  # the caption whose first keystroke is already remembered for undo
        self._quiet = False  # true while code, not the user, changes the inputs

        wide = ipywidgets.Layout(width="100%")
        self.list = ipywidgets.Select(rows=14, layout=ipywidgets.Layout(width="100%", height="320px"))
        self.preview = style.html()
        self.text = ipywidgets.Textarea(
            placeholder="what else is in this photo: 'smiling, on a beach'",
            continuous_update=True,
            layout=ipywidgets.Layout(width="100%", height="104px"),
        )
        self.prompt = style.html()
        self.status = style.html()
        self.previous_button = style.button("‹ Previous", lambda: self._step(-1))
        self.next_button = style.button("Next ›", lambda: self._step(1))
        self.save_button = style.button("Save", self.save, kind="primary")
        self.save_all_button = style.button("Save all", self.save_all)
        self.undo_button = style.button("Undo", self.undo, disabled=True)

        self.find = ipywidgets.Text(placeholder="find", layout=wide)
        self.replace = ipywidgets.Text(placeholder="replace with", layout=wide)
        self.prefix = ipywidgets.Text(placeholder="put before", layout=wide)
        self.suffix = ipywidgets.Text(placeholder="put after", layout=wide)
        self.replace_button = style.button("Replace in all", self._replace_in_all)
        self.add_button = style.button("Add to all", self._add_to_all)
        self.box = self._layout()
        self._list_again()
        self._show(self.chosen)
        self._say(self._left_over())
        self.list.observe(self._picked, names="value")
        self.text.observe(self._typed, names="value")

    @property
    def chosen(self) -> str:
        """File name of the photo on the screen; "" = the session has no photos."""
        return self.list.value or ""

    @property
    def unsaved(self) -> list[str]:
        """File names whose caption differs from the one on disk."""
        return [name for name, text in self.texts.items() if text != self._saved[name]]

    def save(self) -> None:
        """Write the caption on the screen."""
        self._write([self.chosen] if self.chosen in self.unsaved else [])

    def save_all(self) -> None:
        self._write(self.unsaved)

    def undo(self) -> None:
        """Bring back all captions as they were before the last change; once more brings the change back."""
        if self._undo is not None:
            self.texts, self._undo = self._undo, self.texts
            self._typing_in = ""
            self._refresh("Undone.")

    def change_all(self, change: Callable[[str], str]) -> int:
        """Pass every caption through `change` as drafts; how many became different."""
        new = {name: change(text) for name, text in self.texts.items()}
        count = sum(new[name] != self.texts[name] for name in new)
        if count:
            self._undo, self.texts, self._typing_in = self.texts, new, ""
        return count

    def _layout(self) -> Any:
        import ipywidgets

        buttons = style.row(self.save_button, self.save_all_button, self.undo_button)
        steps = style.row(self.previous_button, self.next_button, justify_content="center")
        writing = style.column(
            style.html('<span class="fsd-label">Caption</span>'),
            self.text,
            self.prompt,
            buttons,
            self.status,
            flex="1 1 330px",
        )
        middle = style.row(
            style.column(self.list, flex="1 1 190px"),
            style.column(self.preview, steps, flex="1 1 260px"),
            writing,
            align_items="flex-start",
            grid_gap="16px",
        )
        bulk = ipywidgets.GridBox(
            [self.find, self.replace, self.replace_button, self.prefix, self.suffix, self.add_button],
            layout=ipywidgets.Layout(
                grid_template_columns="minmax(120px, 1fr) minmax(120px, 1fr) max-content",
                grid_gap="8px",
                max_width="620px",
            ),
        )
        heading = style.html('<span class="fsd-label">All captions at once</span>')
        note = "Say what varies: pose, place, light. The subject itself is in the instance prompt already."
        return style.card("Captions", middle, heading, bulk, note=note)

    def _replace_in_all(self) -> None:
        find, replace = self.find.value, self.replace.value
        if not find:
            self._say("Type what to find first.")
            return
        count = self.change_all(lambda text: text.replace(find, replace))
        self._refresh(
            f"Changed in {count} of {len(self.texts)}; not saved yet."
            if count
            else f"No caption has {find!r}."
        )

    def _add_to_all(self) -> None:
        prefix, suffix = self.prefix.value, self.suffix.value
        if not prefix and not suffix:
            self._say("Type what to put before or after first.")
            return
        count = self.change_all(lambda text: f"{prefix}{text}{suffix}")
        self._refresh(f"Changed in {count} of {len(self.texts)}; not saved yet.")

    def _write(self, names: list[str]) -> None:
        from fastsd_lib.images.captions import write_caption

        for name in names:
            write_caption(self.session.captions, self._photos[name], self.texts[name])
            self._saved[name] = self.texts[name]
        self._typing_in = ""
        self._refresh(f"Saved {len(names)}." if names else "Nothing to save.")

    def _step(self, by: int) -> None:
        names = list(self._photos)
        if names:
            self.list.value = names[(names.index(self.chosen) + by) % len(names)]

    def _picked(self, change: dict[str, Any]) -> None:
        if not self._quiet and change["new"]:
            self._typing_in = ""
            self._show(change["new"])
            self._say("")

    def _typed(self, change: dict[str, Any]) -> None:
        if self._quiet or not self.chosen:
            return
        if self._typing_in != self.chosen:
            self._typing_in, self._undo = self.chosen, dict(self.texts)
        was_unsaved = self.chosen in self.unsaved
        self.texts[self.chosen] = change["new"]
        self._tell_prompt()
        self.undo_button.disabled = False
        if (self.chosen in self.unsaved) != was_unsaved:
            self._list_again()

    def _refresh(self, message: str) -> None:
        self._list_again()
        self._show(self.chosen)
        self._say(message)

    def _list_again(self) -> None:
        chosen, unsaved = self.chosen or next(iter(self._photos), ""), set(self.unsaved)
        self._quiet = True
        self.list.options = [((UNSAVED if name in unsaved else "") + name, name) for name in self._photos]
        if chosen:
            self.list.value = chosen
        self._quiet = False
        self.save_button.disabled = self.chosen not in unsaved
        self.save_all_button.disabled = not unsaved
        self.save_all_button.description = f"Save all ({len(unsaved)})" if unsaved else "Save all"
        self.undo_button.disabled = self._undo is None

    def _show(self, name: str) -> None:
        if not name:
            self.preview.value = '<div class="fsd-help">No photos yet: add some in the Photos step.</div>'
            return
        self._quiet = True
        self.text.value = self.texts[name]
        self._quiet = False
        self.preview.value = image_tag(
            self._photos[name],
            480,
            alt=name,
            style="display:block;margin:auto;max-width:100%;max-height:320px;border-radius:8px",
        )
        self.save_button.disabled = name not in self.unsaved
        self._tell_prompt()

    def _tell_prompt(self) -> None:
        from fastsd_lib.images.captions import READ_TOKENS, least_tokens, training_prompt

        prompt = training_prompt(self.instance_prompt, self.texts[self.chosen])
        tokens = least_tokens(prompt)
        warning = f"At least {tokens} tokens; a model reads {READ_TOKENS}, so the end of it is not seen."
        self.prompt.value = (
            '<div class="fsd-box"><span class="fsd-help">Training prompt</span>'
            f'<div class="fsd-code">{escape(prompt)}</div>'
            + (f'<div class="fsd-error">{warning}</div>' if tokens > READ_TOKENS else "")
            + "</div>"
        )
        self.save_button.disabled = self.chosen not in self.unsaved

    def _left_over(self) -> str:
        """Captions that no photo will ever use, and photos that two captions claim."""
        from fastsd_lib.images.captions import check_captions

        found = check_captions(self.session.captions, self._photos.values())
        said = [f"Without a photo: {', '.join(found.without_photo)}."] if found.without_photo else []
        said += [f"With several captions: {', '.join(found.several)}."] if found.several else []
        return " ".join(said)

    def _say(self, message: str) -> None:
        self.status.value = f'<span class="fsd-help">{escape(message)}</span>'
