"""What happens when parts of a picture are hidden: a map of its own, and a judge of every other map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.inside import Inside, Target
from fastsd_lib.vit.model import VitModel

_BATCH = 32
_MOST_CELLS = 32 * 32  # a picture for each: more would take minutes
_CONTROLS = 8  # random maps that a real one is compared with


def occlusion(
    model: VitModel | Inside, image: Image.Image, target: Target = None, *, cell_px: int | None = None
) -> np.ndarray:
    """(h, w): how far the logit of the class falls when the cell there is hidden by the picture's mean colour.

    Cells are patches unless `cell_px` (in pixels of what the model sees) says otherwise. Zeiler and Fergus 2014.
    """
    inside = Inside.of(model)
    pixels = inside.pixels(image)
    height, width = pixels.shape[-2:]
    down, across = (cell_px, cell_px) if cell_px else inside.patch_px
    if not 1 <= down <= height or not 1 <= across <= width:
        raise UserError(f"A cell of {down} pixels does not fit.", fix=f"take 1 to {min(height, width)}.")
    rows, columns = -(-height // down), -(-width // across)
    if rows * columns > _MOST_CELLS:
        raise UserError(
            f"{rows * columns} cells would take as many passes.",
            fix=f"take cells of {2 * down} pixels or more.",
        )
    hidden_by = pixels.mean(dim=(2, 3), keepdim=True)[0]
    places = [(row * down, column * across) for row in range(rows) for column in range(columns)]
    with torch.no_grad():
        whole = inside.logits(pixels)
        index = inside.class_index(target, whole)
        left = []
        for start in range(0, len(places), _BATCH):
            batch = pixels.repeat(len(places[start : start + _BATCH]), 1, 1, 1)
            for at, (y, x) in enumerate(places[start : start + _BATCH]):
                batch[at, :, y : y + down, x : x + across] = hidden_by
            left.append(inside.logits(batch)[:, index])
    return (whole[0, index] - torch.cat(left)).double().numpy().reshape(rows, columns)


@dataclass(frozen=True)
class Faithfulness:
    """Does a map mean something? Mean probability of the class while cells vanish, or appear, best first.

    Deletion and insertion of Petsiuk et al. 2018 (RISE); `random_*` are the same for random maps: a map that means
    something deletes below its control and inserts above it.
    """

    deletion: float  # low is good
    insertion: float  # high is good
    random_deletion: float
    random_insertion: float
    deletion_curve: tuple[float, ...]  # probability after 0 ... all cells are gone
    insertion_curve: tuple[float, ...]  # after 0 ... all cells are there

    @property
    def better_than_random(self) -> bool:
        return self.deletion < self.random_deletion and self.insertion > self.random_insertion


def faithfulness(
    model: VitModel | Inside,
    image: Image.Image,
    heat: np.ndarray,
    target: Target = None,
    *,
    steps: int = 16,
    seed: int = 0,
    controls: int = _CONTROLS,
) -> Faithfulness:
    """Delete and insert the cells of `heat` (h, w), the hottest first, in `steps` steps.

    The same for `controls` random maps: 2 (steps + 1) (1 + controls) pictures are computed.
    """
    inside = Inside.of(model)
    pixels = inside.pixels(image)
    with torch.no_grad():
        index = inside.class_index(target, inside.logits(pixels))
        delete, insert = _curves(inside, pixels, np.asarray(heat, float), index, steps)
        random = np.random.default_rng(seed)
        ruled = [_curves(inside, pixels, random.random(heat.shape), index, steps) for _ in range(controls)]
    return Faithfulness(
        _area(delete),
        _area(insert),
        float(np.mean([_area(one) for one, _ in ruled])),
        float(np.mean([_area(two) for _, two in ruled])),
        tuple(float(one) for one in delete),
        tuple(float(one) for one in insert),
    )


def _curves(
    inside: Inside, pixels: torch.Tensor, heat: np.ndarray, index: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the class, (steps + 1) each, while the hottest cells go, and while they come."""
    nothing = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    rank = np.empty(heat.size, int)
    rank[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size)
    ranks = torch.from_numpy(rank.reshape(heat.shape)).float()[None, None]
    ranks = torch.nn.functional.interpolate(ranks, size=pixels.shape[-2:], mode="nearest")
    cuts = np.linspace(0, heat.size, steps + 1).round()
    gone = torch.cat([(ranks < cut).float() for cut in cuts])
    deleted = pixels * (1 - gone) + nothing * gone
    inserted = pixels * gone + nothing * (1 - gone)
    both = torch.cat([deleted, inserted])
    logits = torch.cat([inside.logits(both[at : at + _BATCH]) for at in range(0, len(both), _BATCH)])
    chances = (
        logits[:, index].sigmoid() if inside.vit.multi_label else logits.softmax(dim=1)[:, index]
    ).numpy()
    return chances[: steps + 1], chances[steps + 1 :]


def _area(curve: np.ndarray) -> float:
    """Of the curve over [0, 1], by trapezoids."""
    return float((curve[:-1] + curve[1:]).mean() / 2)
