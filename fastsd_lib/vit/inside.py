"""A model opened to be looked into: gradients and attention weights of every layer, for one picture at a time."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.fetching import fetch
from fastsd_lib.core.text import escaped
from fastsd_lib.images.decode import decode, rgb
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.outputs import tokens_before_patches
from fastsd_lib.vit.reading import REDIRECTS, picture_of
from fastsd_lib.vit.sources import MAX_FILE_BYTES, items_of
from fastsd_lib.vit.transform import Transform

Target = str | int | None  # a class by name or number; None = the model's own first answer
_BLOCKS = ("layers", "layer", "stages", "blocks")  # what transformers calls them
_LONGEST_PX = 1024  # of a picture that is shown


@dataclass(frozen=True)
class Inside:
    """Loaded once, asked often. Attention is eager: the faster kinds never hold the weights that we want to see."""

    vit: VitModel
    torch_model: nn.Module
    transform: Transform

    @classmethod
    def of(cls, model: VitModel | Inside, fit: str = "model") -> Inside:
        """`model` itself where it is open already. UserError where the model has no classes or cannot be loaded."""
        if isinstance(model, Inside):
            return model
        if not model.labels:
            raise UserError(
                f"{model.name} has no classes to explain.",
                fix="take a model with a classifier, or train one on it.",
            )
        loaded = load_torch(model, attention="eager").requires_grad_(False)
        return cls(model, loaded, Transform.of(model, fit))

    @property
    def base(self) -> nn.Module:
        return self.torch_model.base_model

    @property
    def hierarchical(self) -> bool:
        """Swin, ConvNeXt: stages that grow coarser, and no attention from every patch to every other."""
        return hasattr(self.torch_model.config, "depths")

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return 0 if self.hierarchical else tokens_before_patches(self.torch_model.config)

    @property
    def patch_px(self) -> tuple[int, int]:
        """(height, width) of what the first layer takes as one."""
        side = self.torch_model.config.patch_size
        return (side[0], side[1]) if isinstance(side, (list, tuple)) else (side, side)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        (height, width), (down, across) = self.transform.size, self.patch_px
        return height // down, width // across

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The layers of a ViT, the stages of a hierarchical model, first to last."""
        for owner in (self.base, getattr(self.base, "encoder", None)):
            for name in _BLOCKS:
                if isinstance(found := getattr(owner, name, None), nn.ModuleList):
                    return found
        raise UserError(
            f"{self.vit.name} is a {self.torch_model.config.model_type}: its layers are not where fastsd looks.",
            fix="take a ViT, DeiT, DINOv2, Swin or ConvNeXt.",
        )

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, H, W) float32, as the model wants it."""
        return torch.from_numpy(np.ascontiguousarray(self.transform(image)))[None]

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C) float32; gradients flow where `pixels` or a hook asks for them."""
        return self._run(pixels).logits.float()

    def with_attention(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits (B, C) and, for each layer, attention (B, heads, tokens, tokens): row = who looks, column = at whom."""
        self.need_attention()
        found = self._run(pixels, output_attentions=True)
        return found.logits.float(), list(found.attentions)

    def need_attention(self) -> None:
        """UserError for models without attention from every patch to every other."""
        if self.hierarchical:
            kind = self.torch_model.config.model_type
            why = "looks through small windows" if "swin" in kind else "is a convolutional network"
            raise UserError(
                f"{self.vit.name} has no attention maps to show: a {kind} {why}.",
                fix="ask for gradcam or occlusion, which work with every model.",
            )

    def _run(self, pixels: torch.Tensor, **more: bool):
        config = self.torch_model.config
        trained = getattr(config, "image_size", None)
        trained = (trained, trained) if isinstance(trained, int) else tuple(trained or ())
        if config.model_type in ("vit", "deit") and trained and trained != tuple(pixels.shape[-2:]):
            more["interpolate_pos_encoding"] = True
        return self.torch_model(pixel_values=pixels, return_dict=True, **more)

    def class_index(self, target: Target, logits: torch.Tensor) -> int:
        """The class to explain; UserError with the nearest names for one that the model does not know."""
        labels = self.vit.labels
        if target is None or target == "":
            return int(logits[0].argmax())
        if isinstance(target, str):
            names = [label.casefold() for label in labels]
            if target.strip().casefold() in names:
                return names.index(target.strip().casefold())
            if not target.strip().isdigit():
                near = difflib.get_close_matches(target, labels, 3, cutoff=0.4)
                hint = (
                    f"did you mean {' or '.join(escaped(one) for one in near)}?"
                    if near
                    else "type one of its classes."
                )
                raise UserError(f"{self.vit.name} does not know the class {escaped(target)!r}.", fix=hint)
            target = int(target)
        if not 0 <= target < logits.shape[-1]:
            raise UserError(
                f"{self.vit.name} has no class number {target}.",
                fix=f"take a number from 0 to {logits.shape[-1] - 1}.",
            )
        return int(target)

    def seen(self, image: Image.Image, side_px: int = 448) -> Image.Image:
        """What the model sees of `image`, its long side `side_px`: maps lie on this picture from edge to edge."""
        geometry, picture = self.transform.geometry, rgb(image)
        height, width = geometry.size
        if geometry.pad:
            finer = replace(geometry, size=_times(geometry.size, side_px / max(geometry.size)))
            return replace(self.transform, geometry=finer).seen(picture)
        if geometry.resize == geometry.size:  # squashed as a whole: shown in its own proportions
            return picture.resize(_times(picture.size, side_px / max(picture.size)), Image.Resampling.LANCZOS)
        wide, high = geometry.resized(*picture.size)
        across, down = (
            picture.width / wide,
            picture.height / high,
        )  # of the picture's pixels in one of the model's
        left, top = (wide - width) // 2, (high - height) // 2
        box = (max(0, left * across), max(0, top * down), (left + width) * across, (top + height) * down)
        return picture.resize(
            _times((width, height), side_px / max(width, height)),
            Image.Resampling.LANCZOS,
            (*box[:2], min(box[2], picture.width), min(box[3], picture.height)),
        )


def as_picture(what: Any) -> Image.Image:
    """One RGB picture, upright, of whatever a user has at hand (see `sources.items_of`). UserError says why it is none."""
    found = list(itertools.islice(items_of(what), 2))
    if len(found) != 1:
        raise UserError(
            f"There is {'more than one picture' if found else 'no picture'} in that.",
            fix="name one picture to look at.",
        )
    source = found[0].source
    if isinstance(source, str):
        source = fetch(source, MAX_FILE_BYTES, redirects=REDIRECTS)
    if isinstance(source, (Path, bytes)):
        return decode(source, found[0].key, lambda width, height: (_LONGEST_PX, _LONGEST_PX))
    return rgb(source if isinstance(source, Image.Image) else picture_of(source))


def _times(sides: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor))
