"""Which model to take: one that has a name, with what is known of it before it is fetched; or a path, link or Hub id."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded, is_there
from fastsd_lib.models.known_models import hub_source, shown_source
from fastsd_lib.widgets import style
from fastsd_lib.widgets.model_results import facts_of_row, facts_table
from fastsd_lib.workflows import models
from fastsd_lib.workflows.file_links import is_link
from fastsd_lib.workflows.model_rows import base_words, row_of, size_words

ANY = ""
USES = (("draw or train", ANY), ("train", "train"), ("draw", "generate"))
OWN = "path, link or org/name"


class ModelPicker(style.Shown):
    """The known models by family and use; `model` is the chosen name, or what was typed below the list."""

    def __init__(
        self, model: str = "embedded", family: str = ANY, use: str = ANY, root: Path | None = None
    ) -> None:
        """`model` that has no known name goes into the field for paths and links. UserError for an unknown family."""
        import ipywidgets

        self._root, self._models = root, {one.name: one for one in models.known(root=root)}
        wide = ipywidgets.Layout(flex="1 1 200px", width="auto")
        families = dict.fromkeys(one.family for one in self._models.values())
        options = [("every family", ANY), *((base_words(one), one) for one in families)]
        models.check_choice("family", family, [ANY, *families])
        models.check_choice("use", use, [value for _, value in USES])
        self.family = ipywidgets.Dropdown(options=options, value=family, layout=wide)
        self.use = ipywidgets.Dropdown(options=USES, value=use, layout=wide)
        self.list = ipywidgets.Select(rows=8, layout=ipywidgets.Layout(width="100%"))
        self.other = ipywidgets.Text(placeholder=OWN, layout=ipywidgets.Layout(width="100%"))
        self._facts = style.html()
        choosing = style.column(style.row(self.family, self.use), self.list, self.other, flex="1 1 400px")
        sides = style.row(choosing, style.column(self._facts, flex="1 1 330px"), align_items="flex-start")
        self.box = style.card(
            "Model",
            sides,
            note="One of the list, or your own: the field below it counts where it is filled in.",
        )
        known = next((one.name for one in self._models.values() if model.strip() in one.names), "")
        self.other.value = "" if known else model.strip()
        self._list_again(known)
        for field, react in ((self.family, self._filtered), (self.use, self._filtered), (self.list, self._tell),
                             (self.other, self._tell)):  # fmt: skip
            field.observe(react, names="value")

    @property
    def model(self) -> str:
        """A known name, a path, a link or a Hub id. UserError when nothing is chosen."""
        chosen = self.other.value.strip() or self.list.value
        if not chosen:
            raise UserError(
                "No model is chosen.", fix="pick one of the list, or name a path or link below it."
            )
        return chosen

    @property
    def known(self) -> Any:
        """The KnownModel that is chosen; None for what the user named."""
        return None if self.other.value.strip() else self._models.get(self.list.value or "")

    def _filtered(self, change: dict[str, Any]) -> None:
        self._list_again(self.list.value or "")

    def _list_again(self, chosen: str) -> None:
        shown = [
            one
            for one in self._models.values()
            if self.family.value in (ANY, one.family)
            and (self.use.value == ANY or self.use.value in one.uses)
        ]
        self.list.options = [(_line(one), one.name) for one in shown]
        names = [one.name for one in shown]
        self.list.value = chosen if chosen in names else next(iter(names), None)
        self._tell()

    def _tell(self, change: dict[str, Any] | None = None) -> None:
        own = self.other.value.strip()
        title, facts, notes = _of_known(self.known) if self.known else _of_own(own) if own else ("", {}, [])
        body = facts_table(facts) + "".join(f'<div class="fsd-help">{escape(line)}</div>' for line in notes)
        self._facts.value = (
            f'<div class="fsd-box"><div class="fsd-label">{escape(title)}</div>{body}</div>' if title else ""
        )


def _line(model: Any) -> str:
    size = size_words(model.size_bytes) if model.size_bytes else ""
    words = [model.name, base_words(model.family), size, "gated" if model.gated else ""]
    return "  ·  ".join(filter(None, words))


def _of_known(model: Any) -> tuple[str, dict[str, str], list[str]]:
    hub_ids = [source.hub_id for source in map(hub_source, model.mirrors) if source]
    page = f"https://huggingface.co/{hub_ids[0]}" if hub_ids else ""
    facts = {
        "Family": base_words(model.family, model.variant),
        "Resolution": f"{model.resolution_px} px" if model.resolution_px else "",
        "Prediction": model.prediction,
        "For": " and ".join({"train": "training", "generate": "drawing"}[use] for use in model.uses)
        or "other programs",
        "Licence": model.licence,
        "Download": size_words(model.size_bytes)
        if model.size_bytes
        else ""
        if model.mirrors
        else "none: comes with fastsd",
        "From": page or ", ".join(map(shown_source, model.mirrors[:1])),
    }
    gated = (
        f"Gated: accept the licence at {page} first, and keep a token of that account as the secret HF_TOKEN."
        if model.gated
        else ""
    )
    return model.name, facts, [line for line in (model.about, gated) if line]


def _of_own(text: str) -> tuple[str, dict[str, str], list[str]]:
    try:
        place = expanded(text)
    except UserError as error:
        return text, {}, [error.message, error.fix]
    if not is_link(text) and is_there(place):
        row = row_of(place)
        return place.name, facts_of_row(row), [line for line in (row.problem, row.fix) if line]
    what = "A link" if is_link(text) else "A Hugging Face id, or a name of your own"
    return text, {}, [f"{what}: what it is will be told once it is here."]
