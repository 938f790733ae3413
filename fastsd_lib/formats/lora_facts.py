"""What a LoRA file says of itself: rank, alpha, base model, the words that it was taught by. Headers only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.lora_layers import Layer
from fastsd_lib.formats.lora_reading import read_layers

MOST_TAGS = 12
# Which side of which tensor is the rank, for each kind of network.
_RANKS = (("down", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0))


@dataclass(frozen=True)
class LoraFacts:
    """`rank` and `alpha` are those of most layers; 0 where a kind of network has none."""

    family: str  # sd (1.x and 2.x), sdxl, sd3, flux
    naming: str  # kohya, peft
    layers: int
    rank: int
    alpha: float
    base: str  # the base model, as the metadata names it
    trigger: str  # modelspec's own phrase
    tags: tuple[tuple[str, int], ...]  # of the captions, the most frequent first

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0


def lora_facts(path: Path) -> LoraFacts:
    """UserError for what is no LoRA, or half of one."""
    lora = read_layers(open_weights(path), path)
    ranks = [rank for layer in lora.layers.values() if (rank := _rank(layer))]
    rank = Counter(ranks).most_common(1)[0][0] if ranks else 0
    alphas = Counter(float(_rank(one)) if one.alpha is None else one.alpha for one in lora.layers.values())
    said = lora.file.metadata
    base = (
        said.get("ss_sd_model_name")
        or said.get("ss_base_model_version")
        or said.get("modelspec.architecture", "")
    )
    return LoraFacts(
        lora.family,
        lora.naming,
        len(lora.layers),
        rank,
        alphas.most_common(1)[0][0],
        base,
        said.get("modelspec.trigger_phrase", ""),
        top_tags(said),
    )


def _rank(layer: Layer) -> int:
    for role, side in _RANKS:
        tensor = layer.tensors.get(role)
        if tensor is not None and tensor.shape:
            return tensor.shape[side]
    return 0


def top_tags(metadata: Mapping[str, Any], most: int = MOST_TAGS) -> tuple[tuple[str, int], ...]:
    """The words of the captions with their counts over all folders (`ss_tag_frequency`, JSON or parsed).

    What is no such table counts as none.
    """
    folders = metadata.get("ss_tag_frequency")
    if isinstance(folders, str):
        try:
            folders = json.loads(folders)
        except (ValueError, RecursionError):
            folders = None
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and str(tag).strip():
                counts[str(tag).strip()] += count
    return tuple(counts.most_common(most))
