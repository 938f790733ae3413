"""Styles and wildcards of a request, before anything is drawn; light, so that a form or an API can ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from fastsd_lib.core.text import escaped
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.styles import Style, apply_styles, read_styles
from fastsd_lib.generation.wildcards import expand, read_wildcards

Texts = tuple[str, str, str, str]  # prompt, negative prompt, and those of the second pass


@dataclass(frozen=True)
class Prepared:
    requests: tuple[GenerationRequest, ...]  # their pictures one after another are those that were asked for
    warnings: tuple[str, ...] = ()


def prepare_prompts(
    request: GenerationRequest, folders: LibraryFolders, styles: Iterable[str] = ()
) -> Prepared:
    """Put styles in by name, then make the choices of {a|b} and __wildcard__ anew for each picture, by its seed.

    A request for pictures of different prompts becomes several, each for the pictures that follow one another with
    the same prompts; every picture keeps its seed. Variations of one seed share their prompt. What is not known
    stays as it is, with a warning. UserError for wildcards that grow without end and for files that cannot be read.
    """
    warnings: list[str] = []
    if names := list(styles):
        request, unknown = _styled(request, names, known_styles(folders))
        warnings += [f"there is no style {escaped(name)[:100]!r}; it was left out" for name in unknown]
    texts = _texts(request)
    if not any("{" in text or "__" in text for text in texts):
        return Prepared((request,), tuple(warnings))
    wildcards = known_wildcards(folders) if any("__" in text for text in texts) else {}
    each = []
    for number in range(request.count):
        seed = request.seed + number * (not request.variation_strength)
        expanded = [expand(text, seed, wildcards) for text in texts]
        each.append((tuple(text for text, _ in expanded), number))
        unknown = dict.fromkeys(name for _, missing in expanded for name in missing)
        warnings += [
            f"there is no wildcard __{escaped(name)[:100]}__; it was left as it is" for name in unknown
        ]
    runs = [(said, [number for _, number in run]) for said, run in groupby(each, key=lambda one: one[0])]
    requests = tuple(_part(request, said, numbers[0], len(numbers)) for said, numbers in runs)
    return Prepared(requests, tuple(dict.fromkeys(warnings)))


def known_styles(folders: LibraryFolders) -> dict[str, Style]:
    """Of all files of styles; the first one of a name counts."""
    found: dict[str, Style] = {}
    for path in folders.styles:
        found = read_styles(path) | found
    return found


def known_wildcards(folders: LibraryFolders) -> Mapping[str, Sequence[str]]:
    """Of all folders; the first one of a name counts. Read again only when a file has changed."""
    found: dict[str, Sequence[str]] = {}
    for folder in folders.wildcards:
        files = sorted(folder.rglob("*.txt"))
        stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
        found = {**_read_wildcards(folder, stamps), **found}
    return found


@lru_cache(maxsize=8)
def _read_wildcards(folder: Path, stamps: tuple) -> Mapping[str, Sequence[str]]:
    return read_wildcards(folder)


def _styled(
    request: GenerationRequest, names: Sequence[str], table: Mapping[str, Style]
) -> tuple[GenerationRequest, list[str]]:
    """As A1111 does: both passes get the styles, the second one where it has prompts of its own."""
    prompt, negative, unknown = apply_styles(request.prompt, request.negative_prompt, names, table)
    hires = request.hires
    if hires is not None and (hires.prompt or hires.negative_prompt):
        again, negative_again, _ = apply_styles(hires.prompt, hires.negative_prompt, names, table)
        hires = replace(
            hires,
            prompt=again if hires.prompt else "",
            negative_prompt=negative_again if hires.negative_prompt else "",
        )
    return replace(request, prompt=prompt, negative_prompt=negative, hires=hires), unknown


def _texts(request: GenerationRequest) -> Texts:
    hires = request.hires
    again = (hires.prompt, hires.negative_prompt) if hires else ("", "")
    return (request.prompt, request.negative_prompt, *again)


def _part(request: GenerationRequest, said: Texts, first: int, count: int) -> GenerationRequest:
    """The pictures `first` ... of the request, with these prompts."""
    varied = request.variation_strength > 0
    hires = request.hires
    return replace(
        request,
        prompt=said[0],
        negative_prompt=said[1],
        hires=replace(hires, prompt=said[2], negative_prompt=said[3]) if hires else None,
        seed=request.seed + (0 if varied else first),
        variation_seed=request.variation_seed + (first if varied else 0),
        count=count,
    )
