"""ControlNets and T2I adapters that have a name: which there are for a base model, and the one for a purpose."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.models.kind import base_name, sd3_build
from fastsd_lib.models.known_models import read_bundled, source_problems

BUNDLED = Path(__file__).with_name("known_controls.yaml")
Layer = Literal["controlnet", "control-lora", "t2i-adapter"]


@dataclass(frozen=True)
class KnownControl:
    """One network that steers a drawing by a picture; the field names are the words of the YAML file."""

    name: str  # and of its file here: <name>.safetensors
    purpose: str  # "canny", "depth" ...: what somebody asks for
    family: str  # the base models that it fits
    mirrors: tuple[str, ...]  # in order, as in known_models.yaml
    variant: str = ""  # the one of that family that it fits, as `identify` calls it: "3.5 large"; "" = all
    kind: Layer = "controlnet"
    preprocessor: str = "none"  # A1111's name of what makes its control picture
    purposes: tuple[str, ...] = ()  # all that it can do, where that is more than one thing
    sha256: str = ""  # as its publisher gives it
    size_bytes: int = 0  # 0 = not known
    licence: str = ""
    gated: bool = False
    about: str = ""

    CHOICES: ClassVar = {"kind": ("controlnet", "control-lora", "t2i-adapter")}

    @property
    def file_name(self) -> str:
        return f"{self.name}.safetensors"

    def conflicts(self) -> list[str]:
        """What only a closer look can tell."""
        return source_problems(self.mirrors)


@functools.lru_cache(maxsize=1)
def known_controls() -> tuple[KnownControl, ...]:
    """All of them, the usual choice for each purpose first."""
    return read_bundled(KnownControl, BUNDLED)


def controls_for(
    family: str, kind: Layer | None = "controlnet", variant: str = ""
) -> tuple[KnownControl, ...]:
    """Those that fit base models of this family and, where it is known, variant; `kind` None = of every build."""
    found = (one for one in known_controls() if one.family == family and kind in (None, one.kind))
    return tuple(one for one in found if _fits_variant(one, variant))


def _fits_variant(control: KnownControl, variant: str) -> bool:
    """Whether it fits a base model of this variant; yes where the variant of either is not known."""
    return not control.variant or sd3_build(control.family, variant) in ("", control.variant)


def usual_controls(family: str, variant: str = "") -> tuple[KnownControl, ...]:
    """One for each purpose: what "all" means. Those that can do several things repeat the others and are left out."""
    single = [
        one
        for one in controls_for(family, None, variant)
        if one.kind != "t2i-adapter" and len(one.purposes) < 2
    ]
    return tuple({one.purpose: one for one in reversed(single)}.values())[::-1]


def adapters_for(family: str) -> tuple[KnownControl, ...]:
    """The T2I adapters. UserError when there are none for this family."""
    found = controls_for(family, "t2i-adapter")
    if not found:
        raise _none_for("t2i", family)
    return found


def purposes_of(family: str, variant: str = "") -> tuple[str, ...]:
    """What base models of this family can be steered by, in the file's order."""
    return tuple(dict.fromkeys(one.purpose for one in controls_for(family, None, variant)))


def pick_control(kind: str, family: str, variant: str = "") -> KnownControl:
    """The control for a purpose ("canny") that fits base models of this family; a known name is taken as it is.

    `variant`: of the base model, as `identify` calls it; "" = not known, and the first of its family is taken.

    The first of the file: a ControlNet where there is one, else an adapter of another build, else one that can do
    several things. UserError names what there is for the family, or which families the purpose is there for.
    """
    wanted = kind.strip().lower()
    for one in known_controls():
        if wanted == one.name.lower() or wanted == one.file_name.lower():
            if one.family != family or not _fits_variant(one, variant):
                raise _for_another(one, family, variant)
            return one
    fitting = controls_for(family, None, variant)
    exact = [one for one in fitting if one.purpose == wanted]
    able = [one for one in fitting if wanted in one.purposes]
    if exact or able:
        return (exact or able)[0]
    raise _none_for(wanted, family, variant)


def check_purpose(word: str) -> None:
    """UserError for what is no purpose or name for any family, before a base model is fetched to look at."""
    wanted = word.strip().lower()
    for one in known_controls():
        if wanted in (one.name.lower(), one.file_name.lower(), one.purpose, *one.purposes):
            return
    raise _none_for(wanted, "sd1")


def total_size(controls: Iterable[KnownControl]) -> str:
    """What a download of these takes, as it is said before it: "14 files, 10.1 GB", with those of unknown size."""
    controls = tuple(controls)
    unknown = sum(one.size_bytes == 0 for one in controls)
    size = f"{sum(one.size_bytes for one in controls) / 1e9:.1f} GB"
    count = f"{len(controls)} file{'' if len(controls) == 1 else 's'}"
    if unknown == len(controls):
        return f"{count} of unknown size"
    return f"{count}, {size}" + (f" and {unknown} of unknown size" if unknown else "")


def shown_size(size_bytes: int) -> str:
    """ "723 MB", "2.5 GB", "size unknown"."""
    if not size_bytes:
        return "size unknown"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def _for_another(control: KnownControl, family: str, variant: str) -> UserError:
    fitting = controls_for(family, None, variant)
    instead = next((one.name for one in fitting if one.purpose == control.purpose), "")
    return UserError(
        f"{control.name} is for {base_name(control.family, control.variant)}, "
        f"and the model is {base_name(family, variant)}.",
        fix=f"take {instead}." if instead else _what_there_is(family, variant),
    )


def _none_for(wanted: str, family: str, variant: str = "") -> UserError:
    others = dict.fromkeys(
        base_name(one.family, one.variant)
        for one in known_controls()
        if wanted in (one.purpose, *one.purposes)
    )
    if others:
        message = (
            f"There is no ControlNet {wanted} for {base_name(family, variant)}, only for {', '.join(others)}."
        )
        return UserError(message, fix=_what_there_is(family, variant))
    near = difflib.get_close_matches(wanted, [one.purpose for one in known_controls()], 1)
    return UserError(
        f"There is no ControlNet '{escaped(wanted)[:60]}'"
        + (f" (did you mean {near[0]}?)." if near else "."),
        fix=_what_there_is(family, variant),
    )


def _what_there_is(family: str, variant: str = "") -> str:
    words = ", ".join(purposes_of(family, variant))
    return (
        f"take none, all, or some of {words}; other files go into models/ControlNet."
        if words
        else "draw without one: none is known for this family."
    )
