"""What a config's fields are called on a form, and the help that stands behind them in their source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing

UNITS = {"px": "px", "s": "seconds", "mib": "MiB"}
NAMES = {"unet": "U-Net", "snr": "SNR", "vae": "VAE", "url": "URL", "lora": "LoRA", "ema": "EMA"}


def field_comments(config_type: type) -> dict[str, str]:
    """The `# comment` that stands behind each field in the source of the dataclass and its bases."""
    found: dict[str, str] = {}
    for kind in reversed(config_type.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(kind))
        except (OSError, TypeError):  # made at run time: a form without help is still a form
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {one.start[0]: one.string for one in tokens if one.type == tokenize.COMMENT}
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                said = [comments[line].lstrip("#").strip() for line in lines if line in comments]
                found[node.target.id] = " ".join(said)
    return found


def label_of(name: str) -> str:
    """`unet_steps` -> "U-Net steps"; a unit at the end goes into brackets: "Resolution (px)"."""
    words = name.split("_")
    unit = UNITS.get(words[-1]) if len(words) > 1 else None
    words = [NAMES.get(word, word) for word in (words[:-1] if unit else words)]
    text = " ".join(words)
    text = text[:1].upper() + text[1:]
    return f"{text} ({unit})" if unit else text
