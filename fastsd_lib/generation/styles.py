"""Named pieces of prompts: the styles.csv of AUTOMATIC1111, applied to a prompt and found in one again."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path

PLACE = "{prompt}"  # where in a style the prompt goes; without it, the style is appended
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str = ""
    negative_prompt: str = ""


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a file by name; none for a file that is not there. UserError for one that is no table."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        rows = csv.DictReader(
            io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), skipinitialspace=True
        )
        styles = [
            Style(row["name"], row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
            for row in rows
            if row.get("name")
        ]
    except (csv.Error, ValueError, OSError) as error:
        raise UserError(
            f"{path} is no table of styles: {error}.",
            fix='save it as CSV (UTF-8) with the columns "name", "prompt" and "negative_prompt".',
        ) from None
    return {style.name: style for style in styles}


def write_styles(path: Path, styles: Iterable[Style]) -> None:
    """Write the table as A1111 reads it, whole or not at all."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("name", "prompt", "negative_prompt"))
    table.writerows((style.name, style.prompt, style.negative_prompt) for style in styles)
    with atomic_path(path) as scratch:
        scratch.write_text(text.getvalue(), encoding="utf-8-sig", newline="")


def apply_styles(
    prompt: str, negative_prompt: str, names: Iterable[str], table: Mapping[str, Style]
) -> tuple[str, str, list[str]]:
    """Both prompts with the named styles put in, in order; and the names that the table does not know."""
    unknown = []
    for name in names:
        if name in table:
            prompt = _merged(table[name].prompt, prompt)
            negative_prompt = _merged(table[name].negative_prompt, negative_prompt)
        elif name not in ("", "None"):
            unknown.append(name)
    return prompt, negative_prompt, unknown


def _merged(style: str, prompt: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def find_styles(prompt: str, negative_prompt: str, table: Mapping[str, Style]) -> tuple[list[str], str, str]:
    """The other way: the styles that were put into a picture's prompts, and the prompts without them.

    A style counts as found when both its halves are there; one without any text is never found.
    """
    found: list[str] = []
    left = [style for style in table.values() if style.prompt or style.negative_prompt]
    while True:
        for style in left:
            one = _without(style.prompt, prompt)
            other = _without(style.negative_prompt, negative_prompt)
            if one is not None and other is not None:
                break
        else:
            return found[::-1], prompt, negative_prompt
        prompt, negative_prompt = one, other
        found.append(style.name)
        left.remove(style)


def _without(style: str, prompt: str) -> str | None:
    """The prompt before the style was put in; None when it is not in."""
    if not style:
        return prompt
    spaced = re.sub(r"\s{2,}", " ", style.strip())
    prompt = prompt.strip()
    if PLACE in spaced:
        before, _, after = spaced.partition(PLACE)
        if (
            len(prompt) < len(before) + len(after)
            or not prompt.startswith(before)
            or not prompt.endswith(after)
        ):
            return None
        return prompt[len(before) : len(prompt) - len(after)]
    if not prompt.endswith(spaced):
        return None
    return prompt[: len(prompt) - len(spaced)].removesuffix(", ")
