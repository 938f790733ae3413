"""A model opened to be looked into: gradients and attention weights of every layer, for one picture at a time."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.images.load import PhotoLimits, read_photo
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.outputs import tokens_before_patches
from fastsd_lib.vit.transform import Transform

Target = str | int | None  # a class by name or number; None = the model's own first answer
_BLOCKS = ("layers", "layer", "stages", "blocks")  # what transformers calls them
_ANY_PHOTO = PhotoLimits(min_side_px=1, max_aspect=1e9)


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
        geometry = self.transform.geometry
        if geometry.resize == geometry.size and not geometry.pad:
            picture = image.convert("RGB")  # squashed as a whole: shown in its own proportions
        else:
            scale = np.reshape(geometry.std, (3, 1, 1)), np.reshape(geometry.mean, (3, 1, 1))
            levels = np.round((self.transform(image) * scale[0] + scale[1]) / geometry.rescale)
            picture = Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        factor = side_px / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        return picture.resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS)


def as_picture(image: Image.Image | Path | str | bytes | np.ndarray) -> Image.Image:
    """One RGB picture, upright, of whatever a user has at hand. UserError says why it is none."""
    if isinstance(image, (str, Path)):
        return read_photo(Path(image), limits=_ANY_PHOTO, max_side_px=2048).image
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return Image.fromarray(image).convert("RGB")
    raise UserError(
        f"A {type(image).__name__} is not one picture.",
        fix="give a file, a PIL picture or an array (H, W, 3) of uint8.",
    )
