"""A1111's selectable scripts, which spread one request over several: variants of a prompt, a list of them, a plot."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from typing import Any

from fastsd_lib.webui import a1111_xyz
from fastsd_lib.webui.a1111_models import DrawingBody
from fastsd_lib.webui.a1111_spread import Spread, arguments, changed
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext

ALWAYS_ON = {"controlnet"}
#: Listed beside the others because programs look for it to learn that ControlNet is there.
LISTED_ONLY = ("controlnet", "controlnet m2m")
MOST_LINES = 200


def spread(body: DrawingBody, context: ApiContext, any_seed: bool = False) -> Spread:
    """What the script in `script_name` makes of a body; the body itself without one.

    `any_seed`: the request named no seed; the body has one already.
    """
    name = (body.script_name or "").strip().lower()
    if name in ("", "none"):
        return Spread([body])
    if name not in SCRIPTS:
        raise Refused(
            422, f"Script {body.script_name[:100]!r} not found.", f"there are: {', '.join(SCRIPTS)}."
        )
    if name == a1111_xyz.TITLE.lower():
        return a1111_xyz.plot(body, context, any_seed)
    return SPREADS[name](body)


def _prompt_matrix(body: DrawingBody) -> Spread:
    """ "a | b | c": the first part alone, and with every choice of the others."""
    at_start, own_seeds, which, delimiter = arguments(body, False, False, "positive", "comma")
    if which not in ("positive", "negative") or delimiter not in ("comma", "space"):
        raise Refused(
            422,
            f"script_args of the prompt matrix are {which!r}, {delimiter!r}.",
            'send [put at start, different seeds, "positive" or "negative", "comma" or "space"].',
        )
    field = "prompt" if which == "positive" else "negative_prompt"
    first, *others = (part.strip() for part in getattr(body, field).split("|"))
    if len(others) > 8:
        raise Refused(422, f"The {field} has {len(others)} parts to vary.", "use at most 8.")
    with_ = ", " if delimiter == "comma" else " "
    bodies = []
    for number in range(2 ** len(others)):
        chosen = [part for place, part in enumerate(others) if number >> place & 1]
        parts = [*chosen, first] if at_start else [first, *chosen]
        text = with_.join(part for part in parts if part)
        bodies.append(body.model_copy(update={field: text, "seed": body.seed + (number if own_seeds else 0)}))
    return Spread(bodies, grid_rows=2 ** ((len(others) + 1) // 2))


_LINE_FIELDS = {
    "prompt", "negative_prompt", "seed", "subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w",
    "sampler_name", "scheduler", "batch_size", "n_iter", "steps", "cfg_scale", "width", "height", "tiling",
    "restore_faces", "styles",
}  # fmt: skip


def _prompts_from_file(body: DrawingBody) -> Spread:
    """One request for each line: a prompt, or `--prompt "a cat" --steps 20`."""
    iterate, iterate_batch, place, text = arguments(body, False, False, "start", "")
    if not isinstance(text, str):
        raise Refused(422, f"script_args hold {str(text)[:50]!r} where the lines stand.", "send a text.")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= MOST_LINES:
        raise Refused(422, f"script_args hold {len(lines)} lines of prompts.", f"send 1 to {MOST_LINES}.")
    bodies: list[DrawingBody] = []
    for number, line in enumerate(lines):
        fields = _fields_of(line) if line.startswith("--") else {"prompt": line}
        if body.prompt and "prompt" in fields:
            parts = [fields["prompt"], body.prompt] if place == "end" else [body.prompt, fields["prompt"]]
            fields["prompt"] = " ".join(parts)
        if (iterate or iterate_batch) and "seed" not in fields:
            drawn = sum(one.batch_size * one.n_iter for one in bodies) if iterate else number * body.n_iter
            fields["seed"] = body.seed + drawn
        bodies.append(changed(body, fields, f"line {number + 1}"))
    return Spread(bodies)


def _fields_of(line: str) -> dict[str, Any]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise Refused(422, f"The line {line[:80]!r} cannot be read: {error}.", "close every quote.") from None
    fields: dict[str, Any] = {}
    while words:
        name = words.pop(0).removeprefix("--")
        if name not in _LINE_FIELDS:
            known = ", ".join(sorted(_LINE_FIELDS))
            raise Refused(422, f"A line may not say --{name[:50]}.", f"it may say: {known}.")
        taken = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        del words[: len(taken)]
        value = " ".join(taken)
        fields[name] = [value] if name == "styles" else value
    return fields


SPREADS: dict[str, Callable[[DrawingBody], Spread]] = {
    "prompt matrix": _prompt_matrix,
    "prompts from file or textbox": _prompts_from_file,
}
SCRIPTS = (*SPREADS, a1111_xyz.TITLE.lower())
