"""Looks into a model as pictures: for the notebook, the web page and the command line alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped, one_line
from fastsd_lib.vit import cards, model_config
from fastsd_lib.vit.attention import Fusion, attention_maps, class_token_maps, relevance_map, rollout
from fastsd_lib.vit.gradcam import gradcam
from fastsd_lib.vit.inside import Inside, Target, as_picture
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.occlusion import faithfulness, occlusion
from fastsd_lib.vit.patches import position_similarity
from fastsd_lib.vit.predictions import probabilities

DEFAULT_WAYS = ("patches", "attention", "rollout", "gradcam")  # a pass or two each; the others take longer
_CONTROLS = 3  # random maps beside each real one: each is 34 passes
_NEEDS_ATTENTION = {"positions", "attention", "heads", "rollout", "relevance"}


def explain(
    model: VitModel | Inside,
    image: Any,
    ways: Sequence[str] | None = None,
    target: Target = None,
    *,
    layer: int = -1,
    fusion: Fusion = "mean",
    discard: float = 0.0,
    on_progress: Report = silent,
) -> dict[str, Image.Image]:
    """Pictures by way, in the order of `ways` (names of `WAYS`; None = the quick ones that fit the model).

    `image` is one picture as `sources.items_of` takes it: a file, bytes, PIL image, array, https address.
    `target`: the class to explain, by name or number; None = the model's first answer. `layer`: whose heads "heads"
    shows (0 = first, -1 = last). `fusion` and `discard` are rollout's. UserError for an unknown way or class, and for
    attention asked of a model without it.
    """
    ways = tuple(ways) if ways is not None else tuple(way for way in DEFAULT_WAYS if way in ways_for(model))
    if unknown := [way for way in ways if way not in WAYS]:
        raise UserError(
            f"There is no way {escaped(unknown[0])!r} to look inside.", fix=f"take of: {', '.join(WAYS)}."
        )
    inside = Inside.of(model)
    look = _Look.at(inside, as_picture(image), target, layer, fusion, discard)
    drawn = {}
    for done, way in enumerate(ways):
        on_progress(ProgressEvent("look inside", done, len(ways), {"": way}))
        drawn[way] = WAYS[way](look)
    on_progress(ProgressEvent("look inside", len(ways), len(ways)))
    return drawn


def ways_for(model: VitModel | Inside) -> tuple[str, ...]:
    """The ways that this model can be looked into, without loading its weights."""
    staged = (
        model.hierarchical if isinstance(model, Inside) else "depths" in model_config.read_raw(model.path)
    )
    return tuple(way for way in WAYS if not (staged and way in _NEEDS_ATTENTION))


@dataclass
class _Look:
    """One picture before one model, and what several ways need of it."""

    inside: Inside
    image: Image.Image
    seen: Image.Image
    target: int
    name: str  # of the class explained
    chance: float
    layer: int
    fusion: Fusion
    discard: float
    _maps: np.ndarray | None = None

    @classmethod
    def at(
        cls, inside: Inside, image: Image.Image, target: Target, layer: int, fusion: Fusion, discard: float
    ) -> _Look:
        with torch.no_grad():
            logits = inside.logits(inside.pixels(image))
        index = inside.class_index(target, logits)
        vit = inside.vit
        name = one_line(vit.labels[index])[:80] if index < len(vit.labels) else str(index)
        chances = probabilities(logits[0].numpy(), multi_label=vit.multi_label, temperature=vit.temperature)
        return cls(
            inside, image, inside.seen(image), index, name, float(chances[index]), layer, fusion, discard
        )

    @property
    def maps(self) -> np.ndarray:
        """Attention (layers, heads, tokens, tokens), computed once."""
        if self._maps is None:
            self._maps = attention_maps(self.inside, self.image)
        return self._maps

    @property
    def who(self) -> str:
        return "the class token" if self.inside.prefix else "all patches"

    @property
    def asked(self) -> str:
        return f"{self.name}, {self.chance:.0%} sure"

    def rollout(self) -> np.ndarray:
        flow = rollout(self.maps, fusion=self.fusion, discard=self.discard)
        return class_token_maps(flow[None, None], self.inside)[0, 0]


def _patches(look: _Look) -> Image.Image:
    inside, (down, across) = look.inside, look.inside.grid
    height, width = inside.patch_px
    tokens = f"{down * across} patches of {width}x{height} pixels"
    others = {0: "", 1: " and a class token"}.get(inside.prefix, f" and {inside.prefix} other tokens")
    size = f"the model sees {inside.transform.size[1]}x{inside.transform.size[0]} pixels"
    return cards.card(cards.with_grid(look.seen, (down, across)), "Patches", f"{size}: {tokens}{others}")


def _positions(look: _Look) -> Image.Image:
    note = "each tile: one patch's place, and how alike the model holds the other places to be"
    return cards.tiles_of_tiles(
        position_similarity(look.inside), "Position embeddings", note, ("-1", "1"), (-1.0, 1.0)
    )


def _attention(look: _Look) -> Image.Image:
    shown = class_token_maps(look.maps, look.inside)
    note = f"what {look.who} looks at: a row for each layer, a column for each head, each with its own scale"
    return cards.grid_of_maps(shown, "Attention", note)


def _heads(look: _Look) -> Image.Image:
    layers = len(look.maps)
    if not -layers <= look.layer < layers:
        raise UserError(
            f"The model has {layers} layers: there is no layer {look.layer}.", fix=f"take 0 to {layers - 1}."
        )
    layer = look.layer % layers
    shown = class_token_maps(look.maps[layer : layer + 1], look.inside)[0]
    pictures = [cards.overlay(look.seen, one) for one in shown]
    labels = [f"head {number}: up to {one.max():.0%}" for number, one in enumerate(shown, 1)]
    return cards.sheet(
        pictures, labels, f"Heads of layer {layer + 1} of {layers}", f"what {look.who} looks at"
    )


def _rollout(look: _Look) -> Image.Image:
    heat = look.rollout()
    note = f"heads joined by {look.fusion}" + (
        f", the weakest {look.discard:.0%} dropped" if look.discard else ""
    )
    ends = (f"{heat.min():.1%}", f"{heat.max():.1%} of {look.who}")
    return cards.heat_card(look.seen, heat, "Attention rollout", note, ends)


def _relevance(look: _Look) -> Image.Image:
    heat = relevance_map(look.inside, look.image, look.target)
    return cards.heat_card(
        look.seen, heat, f"Relevance for {look.asked}", "attention times its slope", ("none", "most")
    )


def _gradcam(look: _Look) -> Image.Image:
    heat = gradcam(look.inside, look.image, look.target)
    note = "what speaks for it" if heat.max() > 0 else "nothing in the picture speaks for it"
    return cards.heat_card(look.seen, heat, f"Grad-CAM for {look.asked}", note, ("none", "most"), (0.0, None))


def _occlusion(look: _Look) -> Image.Image:
    heat = occlusion(look.inside, look.image, look.target, cell_px=_cell_px(look.inside))
    ends = ("0", f"logit falls by {max(heat.max(), 0):.2f}")
    note = "how far the answer falls when this place is hidden"
    return cards.heat_card(look.seen, heat, f"Occlusion for {look.asked}", note, ends, (0.0, None))


def _faithfulness(look: _Look) -> Image.Image:
    maps = {"Grad-CAM": gradcam(look.inside, look.image, look.target)}
    if not look.inside.hierarchical:
        maps["rollout"] = look.rollout()
        maps["relevance"] = relevance_map(look.inside, look.image, look.target)
    scores = {
        name: faithfulness(look.inside, look.image, heat, look.target, controls=_CONTROLS)
        for name, heat in maps.items()
    }
    return cards.curves_card(scores, f"Do the maps mean something? {look.asked}")


def _cell_px(inside: Inside) -> int:
    """Patches, or so much larger that 256 passes do."""
    height, width = inside.transform.size
    side = max(inside.patch_px)
    while (height // side) * (width // side) > 256:
        side *= 2
    return side


#: Way -> what draws it, in the order in which to show them.
WAYS: dict[str, Callable[[_Look], Image.Image]] = {
    "patches": _patches,
    "positions": _positions,
    "attention": _attention,
    "heads": _heads,
    "rollout": _rollout,
    "relevance": _relevance,
    "gradcam": _gradcam,
    "occlusion": _occlusion,
    "faithfulness": _faithfulness,
}
