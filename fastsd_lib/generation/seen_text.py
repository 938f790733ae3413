"""What the U-Net sees of the prompts: one text per row, joined into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class SeenText:
    """One prompt as one U-Net sees it at one step."""

    hidden: torch.Tensor  # (tokens, width)
    pooled: torch.Tensor | None = None  # SDXL: (width,), the text as a whole
    time_ids: torch.Tensor | None = None  # SDXL: (6,), or (5,) of its refiner: the picture's size in pixels


def join(texts: Sequence[tuple[SeenText, int]]) -> dict[str, Any]:
    """(text, for how many rows) -> the U-Net's arguments for all rows, in their order.

    The empty chunks that a longer neighbour would need as filling would change a picture: they are not looked at.
    """
    hidden = [text.hidden.expand(rows, *text.hidden.shape) for text, rows in texts]
    longest = max(one.shape[1] for one in hidden)
    if all(one.shape[1] == longest for one in hidden):
        return {"encoder_hidden_states": torch.cat(hidden), **_besides(texts)}
    filled = [F.pad(one, (0, 0, 0, longest - one.shape[1])) for one in hidden]
    own = [torch.arange(longest, device=one.device).lt(one.shape[1]).expand(len(one), -1) for one in hidden]
    seen = {"encoder_hidden_states": torch.cat(filled), "encoder_attention_mask": torch.cat(own)}
    return seen | _besides(texts)


def _besides(texts: Sequence[tuple[SeenText, int]]) -> dict[str, Any]:
    """What SDXL's U-Net gets besides the words."""
    if texts[0][0].pooled is None:
        return {}
    pooled = torch.cat([text.pooled.expand(rows, -1) for text, rows in texts])
    ids = torch.cat([text.time_ids.expand(rows, -1) for text, rows in texts])
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
