"""What stands in a prompt and is no word of it: <lora:name:0.8>, and # comments."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped

LORA_KINDS = ("lora", "lyco")
HEAVIEST = 100.0  # of a network's weight; far beyond all that draws a picture


@dataclass(frozen=True)
class Tag:
    """One <kind:name:...>: its arguments as they were written, in order and by name."""

    kind: str
    name: str
    positional: tuple[str, ...] = ()  # after the name
    named: Mapping[str, str] = field(default_factory=dict)
    text: str = ""  # the tag as it stood in the prompt


@dataclass(frozen=True)
class NetworkWeights:
    """How strongly a network changes each half of the model."""

    text_encoder: float
    unet: float
    rank: int | None = None  # "dyn": use this many of the network's dimensions; None = all


_TAG = re.compile(r"<(\w+):([^>]+)>")
_WHOLE_LINE = re.compile(r"(^|\n)#[^\n]*(?:\n|$)")
_REST_OF_LINE = re.compile(r"#[^\n]*(?:\n|$)")


def without_comments(prompt: str) -> str:
    """Lines that begin with # are left out, and what follows a # in a line."""
    return _REST_OF_LINE.sub("\n", _WHOLE_LINE.sub("\n", prompt)) if "#" in prompt else prompt


def split_tags(prompt: str) -> tuple[str, list[Tag]]:
    """The prompt without its tags, and the tags in their order. Any <word:...> is a tag, known or not."""
    end = prompt.rfind(">") + 1  # beyond it there is none; the search would be long
    tags = [_tag(match) for match in _TAG.finditer(prompt, 0, end)]
    return _TAG.sub("", prompt[:end]) + prompt[end:], tags


def _tag(match: re.Match[str]) -> Tag:
    name, *rest = match[2].split(":")
    named = dict(item.split("=", 1) for item in rest if "=" in item)
    positional = tuple(item for item in rest if "=" not in item)
    return Tag(match[1], name, positional, named, match[0])


def network_weights(tag: Tag) -> NetworkWeights:
    """<lora:name:te:unet:dyn>, or by name: te=, unet=, dyn=. One number is for both halves; none is 1.

    UserError for what is no number.
    """
    given = dict(zip(("te", "unet", "dyn"), tag.positional, strict=False)) | dict(tag.named)
    text_encoder = _number(tag, given.get("te", "1"))
    unet = _number(tag, given["unet"]) if "unet" in given else text_encoder
    rank = int(_number(tag, given["dyn"], most=100_000)) if "dyn" in given else None
    return NetworkWeights(text_encoder, unet, rank)


def _number(tag: Tag, text: str, most: float = HEAVIEST) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= most:
        raise UserError(
            f"{escaped(tag.text)[:100]}: {escaped(text)[:40]!r} is no weight.",
            fix=f"write a number, for example <{tag.kind}:{escaped(tag.name)[:40]}:0.8>.",
        )
    return number
