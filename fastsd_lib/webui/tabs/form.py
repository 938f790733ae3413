"""The fields of one drawing tab: read as the body of an A1111 request, filled from the text of a picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from pydantic import ValidationError

from fastsd_lib.generation.styles import Style
from fastsd_lib.webui.a1111_models import DrawingBody, Img2ImgBody, Txt2ImgBody
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.tabs.pasting import Pasted, pasted_values

if TYPE_CHECKING:
    from PIL.Image import Image

Values = dict[str, Any]
Reader = Callable[
    [Values, Values], None
]  # (values of the extras by name, the body): puts fields into the body
#: Components beside the fields that take part in a paste, and what they become.
Paster = tuple[list[gr.components.Component], Callable[[Pasted], list[Any]]]
BODIES: dict[str, type[DrawingBody]] = {"txt2img": Txt2ImgBody, "img2img": Img2ImgBody}


@dataclass
class Form:
    """`fields`: a name of the body -> its component. `extras`: further inputs, which `readers` make fields of."""

    kind: str  # "txt2img", "img2img"
    styles: Callable[[], Mapping[str, Style]] = dict  # those there are now
    fields: dict[str, gr.components.Component] = field(default_factory=dict)
    extras: dict[str, gr.components.Component] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    pasters: list[Paster] = field(default_factory=list)
    wirings: list[Callable[[], None]] = field(default_factory=list)  # called when all inputs are there

    def inputs(self) -> list[gr.components.Component]:
        return [*self.fields.values(), *self.extras.values()]

    def body(self, values: Sequence[Any]) -> DrawingBody:
        """The body for the values of `inputs()`. UserError that names the field and the value."""
        given = dict(zip(self.fields, values, strict=False))
        beside = dict(zip(self.extras, values[len(self.fields) :], strict=True))
        body: Values = {name: value for name, value in given.items() if value is not None}
        for read in self.readers:
            read(beside, body)
        try:
            return BODIES[self.kind].model_validate(body)
        except ValidationError as error:
            raise self._refused(error) from None

    def pasteable(self) -> list[gr.components.Component]:
        beside = [component for components, _ in self.pasters for component in components]
        return [*self.fields.values(), *beside]

    def paste(self, infotext: str) -> list[Any]:
        """What `pasteable()` become by the text of a picture, whichever program wrote it.

        What the text says nothing of stays as it is.
        """
        found = pasted_values(infotext, self.fields, self.styles())
        for trouble in found.warnings:
            gr.Warning(html.escape(trouble, quote=False))
        updates = [found.values.get(name, gr.skip()) for name in self.fields]
        for _, paste in self.pasters:
            updates += paste(found)
        return updates

    def wire(self) -> None:
        """Wire what hangs on all fields; called once, when the page is laid out."""
        for one in self.wirings:
            one()
        self._keep()

    def _keep(self) -> None:
        """What the fields say stays in the browser: page/frame.js."""
        kept = [one for one in self.pasteable() if getattr(one, "visible", True) != "hidden"]
        names = [str(one.elem_id or number) for number, one in enumerate(kept)]
        gr.on(
            [one.change for one in kept], None, kept, None,
            js=f"(...values) => {{ fastsd.keep('{self.kind}', {names}, values) }}",
        )  # fmt: skip
        gr.context.Context.root_block.load(None, None, kept, js=f"() => fastsd.kept('{self.kind}', {names})")

    def _refused(self, error: ValidationError) -> Refused:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "The form"
        label = getattr(self.fields.get(name), "label", None) or name
        said = first["msg"][:1].lower() + first["msg"][1:]
        return Refused(422, f"{label} is {str(first.get('input'))[:80]!r}: {said}.", "change it.")


def as_base64(image: Image | str | Path) -> str:
    """A picture as the API's bodies carry it; a file goes as it is, with its text."""
    if isinstance(image, str | Path):
        return base64.b64encode(Path(image).read_bytes()).decode("ascii")
    held = io.BytesIO()
    image.save(held, "PNG", compress_level=1)
    return base64.b64encode(held.getvalue()).decode("ascii")
