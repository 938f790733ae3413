"""A1111's X/Y/Z plot: one request drawn with all combinations of the values of up to three axes."""

from __future__ import annotations

import difflib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.prompt_tags import split_tags
from fastsd_lib.generation.request import MAX_SEED, GenerationRequest
from fastsd_lib.webui.a1111_models import DrawingBody, Img2ImgBody
from fastsd_lib.webui.a1111_spread import Plot, Spread, arguments, changed
from fastsd_lib.webui.a1111_xyz_axes import Axis, axes_of
from fastsd_lib.webui.a1111_xyz_values import BadValue, Value, joined_list, split_list, values_of
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.grids import MOST_PIXELS, Album, Sheet, grid_shape

TITLE = "X/Y/Z plot"
#: The script's arguments as the page shows them: label, and what they are when they are not sent.
ARGUMENTS: tuple[tuple[str, Any], ...] = (
    ("X type", 0), ("X values", ""), ("X values", []),
    ("Y type", 0), ("Y values", ""), ("Y values", []),
    ("Z type", 0), ("Z values", ""), ("Z values", []),
    ("Draw legend", True), ("Include Sub Images", False), ("Include Sub Grids", False),
    ("Keep -1 for seeds", False), ("Vary seeds for X", False), ("Vary seeds for Y", False),
    ("Vary seeds for Z", False), ("Grid margins (px)", 0), ("Use text inputs instead of dropdowns", False),
)  # fmt: skip
_SEEDS = ("Seed", "Var. seed")
_LONGEST_SIDE = {"jpg": 65_535, "jpeg": 65_535, "webp": 16_383, "avif": 65_535, "png": 1 << 30}


@dataclass(frozen=True)
class _Chosen:
    """One axis with its values."""

    letter: str  # X, Y, Z
    axis: Axis
    values: tuple[Value, ...]
    text: str  # as the user wrote them

    @property
    def nothing(self) -> bool:
        return self.axis.label == "Nothing"

    @property
    def labels(self) -> tuple[str, ...]:
        return ("",) if self.nothing else tuple(self.axis.named(value) for value in self.values)

    def facts(self, fixed: bool) -> dict[str, str]:
        """What the grid's infotext says of it."""
        if self.nothing:
            return {}
        facts = {f"{self.letter} Type": self.axis.label, f"{self.letter} Values": self.text}
        if self.axis.label in _SEEDS and fixed:
            facts[f"Fixed {self.letter} Values"] = ", ".join(map(str, self.values))
        return facts


def plot(body: DrawingBody, context: ApiContext, any_seed: bool = False) -> Spread:
    """The body once for each combination of values, in the order in which they are best drawn.

    `any_seed`: the request named no seed, so that "Keep -1 for seeds" draws every cell with another one.
    Refused: axes and values that cannot be, by name.
    """
    args = _args(body)
    legend, pictures, sheets, keep_random, *vary = (bool(one) for one in args[9:16])
    chosen = [
        _chosen(body, context, letter, args[at : at + 3], as_text=bool(args[17]), keep_random=keep_random)
        for letter, at in (("X", 0), ("Y", 3), ("Z", 6))
    ]
    _check_pairs(chosen)
    xs, ys, zs = (len(one.values) for one in chosen)
    each = body.batch_size * body.n_iter
    if xs * ys * zs * each > (most := context.limits.pictures):
        raise _refused(
            f"{xs} x {ys} x {zs} cells of {each} are {xs * ys * zs * each} pictures; the most is {most}",
            "write fewer values.",
        )
    if keep_random and any_seed:
        body = body.model_copy(update={"seed": -1, "subseed": -1})
    cells = [
        _cell(body, chosen, places, _own_seed(places, (xs, ys), vary))
        for places in ((x, y, z) for z, y, x in itertools.product(range(zs), range(ys), range(xs)))
    ]
    order = _best_order([cell for cell, _ in cells])
    x, y, z = chosen
    return Spread(
        bodies=[cells[at][0] for at in order],
        plot=Plot(
            x.labels,
            y.labels,
            z.labels,
            legend=legend,
            margin_px=_margin(args[16]),
            sends_pictures=pictures,
            sends_sheets=sheets and zs > 1,
            facts={"Script": TITLE, **x.facts(not keep_random), **y.facts(not keep_random)},
            more_facts=z.facts(not keep_random),
        ),
        cells=tuple(order),
        names=tuple(cells[at][1] for at in order),
    )


def check_size(
    plot: Plot, requests: Sequence[GenerationRequest], cells: Sequence[int], formats: Sequence[str]
) -> None:
    """Refused: a grid too large to be made, or to be written in these formats, before anything is drawn.

    `cells`: of which cell each request is.
    """
    counts = Counter[int]()
    for cell, request in zip(cells, requests, strict=True):
        counts[cell] += request.count
    columns, rows = grid_shape(max(counts.values()))
    across, down = zip(*(_size(request) for request in requests), strict=True)
    cell_size = columns * max(across), rows * max(down)
    sheet = Sheet(cell_size, plot.columns, plot.rows, plot.legend, plot.margin_px)
    album = Album(sheet.size, plot.sheets, sheet.letters_px, plot.legend, plot.margin_px)
    width, height = album.size
    if width * height > MOST_PIXELS:
        found = f"the grid would be {width} x {height} px, {width * height / 1e6:.0f} million pixels"
        raise _refused(
            f"{found}; the most is {MOST_PIXELS / 1e6:.0f} million",
            "write fewer values, or draw smaller pictures.",
        )
    for format_ in formats:
        if max(width, height) > _LONGEST_SIDE.get(format_, 1 << 30):
            raise _refused(
                f"the grid would be {width} x {height} px, which {format_} cannot store",
                "set samples_format and grid_format to png, or write fewer values.",
            )


def _size(request: GenerationRequest) -> tuple[int, int]:
    width, height = request.width_px or 512, request.height_px or 512
    if (hires := request.hires) is None:
        return width, height
    if hires.width_px and hires.height_px:
        return hires.width_px, hires.height_px
    scale = (
        hires.width_px / width
        if hires.width_px
        else hires.height_px / height
        if hires.height_px
        else hires.scale
    )
    return round(width * scale), round(height * scale)


# ------------------------------------------------------------------ arguments


def _args(body: DrawingBody) -> list[Any]:
    """All arguments by place. A1111 before 1.7 had no seeds that vary: there the margin stands in their place."""
    given = list(body.script_args)
    if 13 < len(given) <= 15 and not isinstance(given[13], bool):
        given[13:13] = [False] * 3
    return arguments(body.model_copy(update={"script_args": given}), *(usual for _, usual in ARGUMENTS))


def _margin(given: Any) -> int:
    try:
        margin = int(given)
    except (TypeError, ValueError, OverflowError):
        margin = -1
    if not 0 <= margin <= 500:
        raise _refused(f"the margin is {str(given)[:50]!r}", "take 0 to 500 pixels.")
    return margin


def _chosen(
    body: DrawingBody, context: ApiContext, letter: str, args: list[Any], as_text: bool, keep_random: bool
) -> _Chosen:
    axis = _axis(args[0], letter, "img2img" if isinstance(body, Img2ImgBody) else "txt2img")
    if axis.label == "Nothing":
        return _Chosen(letter, axis, ("",), "")
    if axis.missing:
        raise _refused(
            f"the {letter} axis is {axis.label!r}, which cannot be varied here: {axis.missing}", ""
        )
    if axis.second_pass and not getattr(body, "enable_hr", isinstance(body, Img2ImgBody)):
        raise _refused(
            f"the {letter} axis is {axis.label!r}, but there is no second pass",
            "switch hires fix on (enable_hr).",
        )
    try:
        parts = _parts(args[1], args[2], dropdown=bool(axis.choices) and not as_text)
        values = values_of(parts, axis.kind)
        if not any(value != "" for value in values):
            raise _refused(
                f"the {letter} axis is {axis.label!r}, but it has no values", "write some, or take Nothing."
            )
        if axis.strict:
            _check_names(values, axis.choices(context))
        if axis.label in _SEEDS and not keep_random:
            values = [random.randint(0, MAX_SEED - 1000) if value == -1 else value for value in values]
        for value in values:
            _fields(body, axis, value, values, f"{TITLE}, {letter} axis")
    except BadValue as error:
        value, fix = error.args
        raise _refused(f"the {letter} axis {axis.label!r} has the value {value[:100]!r}", f"{fix}.") from None
    return _Chosen(letter, axis, tuple(values), joined_list(parts))


def _axis(given: Any, letter: str, kind: str) -> Axis:
    """By its number in A1111's menu, or by its label."""
    axes = axes_of(kind)
    if given in (None, "", False):
        return axes[0]
    if isinstance(given, int) and 0 <= given < len(axes):
        return axes[given]
    by_name = {axis.label.lower(): axis for axis in axes}
    found = by_name.get(str(given).strip().lower())
    if found is None:
        near = difflib.get_close_matches(str(given).lower(), list(by_name), n=3, cutoff=0.4)
        known = [by_name[one] for one in near] or [axis for axis in axes if not axis.missing]
        raise _refused(
            f"there is no axis {str(given)[:50]!r} in {kind} ({letter} type)",
            f"take one of: {', '.join(axis.label for axis in known)}.",
        )
    return found


def _parts(text: Any, listed: Any, dropdown: bool) -> list[str]:
    """The values one by one: from the list where the axis has one and it holds something, else from the text."""
    given = listed if dropdown and listed not in (None, "", []) else text
    if isinstance(given, list):
        return [str(one).strip() for one in given]
    return split_list("" if given is None else str(given))


def _check_names(values: Sequence[Value], known: Sequence[str]) -> None:
    for value in values:
        for name in filter(None, (part.strip() for part in str(value).split(","))):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)[:5]
                raise BadValue(name, f"take one of: {', '.join(near)}" if near else "there are none here")


def _check_pairs(chosen: Sequence[_Chosen]) -> None:
    """Two axes of one field: the second one would be drawn everywhere."""
    for one, other in itertools.combinations(chosen, 2):
        if one.axis is other.axis and not one.nothing and one.axis.label not in ("Prompt S/R", "Styles"):
            raise _refused(
                f"the {one.letter} and the {other.letter} axis are both {one.axis.label!r}", "change one."
            )


# ------------------------------------------------------------------ cells


def _cell(
    body: DrawingBody, chosen: Sequence[_Chosen], places: Sequence[int], further: int
) -> tuple[DrawingBody, str]:
    said = []
    for one, place in zip(chosen, places, strict=True):
        if one.nothing:
            continue
        value = one.values[place]
        fields = one.axis.apply(body, value, one.values)
        body = body.model_copy(update=fields)
        said.append(f"{one.letter} {one.axis.label} {str(value)[:80]!r}")
    if further and body.seed != -1:
        body = body.model_copy(update={"seed": body.seed + further})
    return body, f"{TITLE}, {', '.join(said)}"


def _own_seed(places: Sequence[int], lengths: Sequence[int], vary: Sequence[bool]) -> int:
    """How far the seed counts up in this cell: as many as there are cells along the axes that vary it."""
    further, stride = 0, 1
    for place, length, varies in zip(places, (*lengths, 0), vary, strict=True):
        if varies:
            further += place * stride
            stride *= length
    return further


def _fields(body: DrawingBody, axis: Axis, value: Value, values: Sequence[Value], where: str) -> None:
    """Refused or BadValue for a value that the field cannot have."""
    try:
        changed(body, axis.apply(body, value, values), where)
    except Refused as error:
        shown = axis.named(value) if not axis.bare else f"{axis.label}: {value}"
        raise Refused(error.status, f"{where}, {shown[:100]}: {error.message}", error.fix) from None


def _best_order(cells: Sequence[DrawingBody]) -> list[int]:
    """Cells of one model, VAE, size and LoRA set follow each other: models load seldom, and the rest is drawn together."""
    first: dict[Any, int] = {}

    def rank(key: Any) -> int:
        return first.setdefault(key, len(first))

    keys = []
    for number, cell in enumerate(cells):
        settings = cell.override_settings
        tags = tuple(sorted(tag.text for tag in split_tags(cell.prompt)[1]))
        model, vae = str(settings.get("sd_model_checkpoint")), str(settings.get("sd_vae"))
        sizes = (model, vae, cell.width, cell.height)
        keys.append((rank((model,)), rank((model, vae)), rank(sizes), rank((*sizes, tags)), number))
    return [key[-1] for key in sorted(keys)]


def _refused(what: str, fix: str) -> UserError:
    return Refused(422, f"{TITLE}: {what}.", fix)
