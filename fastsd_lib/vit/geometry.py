"""preprocessor_config.json as plain numbers: what a checkpoint's processor does to a picture, without transformers.

The defaults are those of transformers' processor classes (tests compare them); a checkpoint's file names one of them
and overrides what differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.text import escaped
from fastsd_lib.vit.config import PROCESSOR, Fit

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BILINEAR, BICUBIC = 2, 3  # numbers of PIL.Image.Resampling

#: Processor class -> what it does where the file says nothing.
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": BILINEAR, "image_mean": _HALF, "image_std": _HALF},
    "DeiT": {"size": {"height": 256, "width": 256}, "resample": BICUBIC, "image_mean": _HALF, "image_std": _HALF,
             "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
    "Bit": {"size": {"shortest_edge": 224}, "resample": BICUBIC, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD,
            "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "default_to_square": False},
    "ConvNext": {"size": {"shortest_edge": 384}, "resample": BICUBIC, "image_mean": _HALF, "image_std": _HALF,
                 "crop_pct": 224 / 256, "default_to_square": False},
}  # fmt: skip
#: model_type -> processor class, where the file names none.
BY_KIND = {
    "vit": "ViT", "vit_msn": "ViT", "swin": "ViT", "swinv2": "ViT", "deit": "DeiT", "dinov2": "Bit",
    "dinov2_with_registers": "Bit", "convnext": "ConvNext", "convnextv2": "ConvNext",
}  # fmt: skip
_STEPS = ("preprocess", "_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize")
_SETTINGS = ("size", "resample", "image_mean", "image_std", "do_center_crop", "crop_size", "default_to_square",
             "do_resize", "do_rescale", "do_normalize", "rescale_factor")  # fmt: skip
_FOR_SEGMENTS_TOO = {"Beit", "MobileNetV2"}  # their own steps are about maps of segments, not about pictures
MAX_SIDE_PX = 4096
_SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
_IMAGENET = 8 / 7  # 256 for 224: what is resized before a crop


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes `size` pixels, and how their values are scaled."""

    size: tuple[int, int]  # (height, width) that the model gets
    resize: tuple[int, int] | int | None  # (height, width) without regard to proportions; or the short side
    resample: int  # PIL.Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    pad: bool = False  # fit into `size` and fill the rest

    @classmethod
    def read(cls, folder: Path, kind: str) -> Geometry:
        """What the checkpoint's own processor does. UserError where that is not written or not understood."""
        path = folder / PROCESSOR
        if not path.is_file():
            raise UserError(
                f"{folder} does not say how its pictures are prepared: it has no {PROCESSOR}.",
                fix=f"copy {PROCESSOR} from where the model comes from, or from the model that it was trained from.",
            )
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise _bad(path, "holds no settings by name")
        name = _processor_name(raw, kind)
        defaults = PROCESSORS.get(name) or _defaults_in_transformers(name)
        if defaults is None:
            raise _bad(path, f"names the processor {escaped(name)[:60]}, which fastsd does not know")
        try:
            return _checked(_geometry(name, {**defaults, **raw}))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise _bad(path, f"has settings that do not fit together ({escaped(str(error))[:80]})") from None

    def fitted(self, fit: Fit) -> Geometry:
        """The same pixels and scale, but by another way of fitting the picture in."""
        if fit == "model":
            return self
        if fit == "squash":
            return replace(self, resize=self.size, pad=False)
        if fit == "crop":
            return replace(self, resize=_crop_edge(self), pad=False)
        if fit == "pad":
            return replace(self, resize=None, pad=True)
        raise UserError(f"There is no fit {fit!r}.", fix="take one of: model, squash, crop, pad.")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture of this size is resized to, before it is cropped or padded."""
        if self.pad:
            scale = min(self.size[1] / width, self.size[0] / height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        if isinstance(self.resize, int):
            short, long = min(width, height), max(width, height)
            other = int(self.resize * long / short)
            return (self.resize, other) if width <= height else (other, self.resize)
        assert self.resize is not None
        return self.resize[1], self.resize[0]

    def larger(self) -> Geometry:
        """Resized to an eighth more than the crop, so that corners differ from the centre."""
        if isinstance(self.resize, int):
            least = round(max(self.size) * _IMAGENET)
            return replace(self, resize=max(self.resize, least))
        height, width = (round(side * _IMAGENET) for side in self.size)
        if self.resize is not None:
            height, width = max(height, self.resize[0]), max(width, self.resize[1])
        return replace(self, resize=(height, width), pad=False)


def _geometry(name: str, raw: Mapping[str, Any]) -> Geometry:
    for setting in ("do_resize", "do_rescale", "do_normalize"):
        if raw.get(setting, True) is not True:
            raise ValueError(f"{setting} is off")
    square = raw.get("default_to_square", True)
    edges = _edges(raw["size"], square)
    size: tuple[int, int]
    if name == "ConvNext":
        edge = edges if isinstance(edges, int) else edges[0]
        size = (edge, edge)
        resize: Any = int(edge / float(raw["crop_pct"])) if edge < 384 else size  # its own rule
    elif raw.get("do_center_crop"):
        crop = _edges(raw["crop_size"], True)
        assert not isinstance(crop, int)
        size, resize = crop, edges
    else:
        if isinstance(edges, int):
            raise ValueError("pictures of any shape, without a crop")
        size = resize = edges
    mean, std = (_three(raw[key]) for key in ("image_mean", "image_std"))
    return Geometry(size, resize, int(raw["resample"]), mean, std, float(raw.get("rescale_factor", 1 / 255)))


def _checked(geometry: Geometry) -> Geometry:
    """A file from elsewhere may ask for a picture that fills the memory, or for a division by zero."""
    sides = [*geometry.size, *(geometry.resize if isinstance(geometry.resize, tuple) else [geometry.resize])]
    if not all(isinstance(side, int) and 1 <= side <= MAX_SIDE_PX for side in sides):
        raise ValueError(f"a side of {min(sides)} to {max(sides)} pixels")
    if geometry.resample not in range(6):
        raise ValueError(f"resample {geometry.resample}")
    numbers = (*geometry.mean, *geometry.std, geometry.rescale)
    if not all(math.isfinite(number) for number in numbers) or not all(geometry.std) or not geometry.rescale:
        raise ValueError("mean, std or scale would divide by zero")
    return geometry


def _defaults_in_transformers(name: str) -> dict[str, Any] | None:
    """Of a processor of transformers that does nothing but resize, crop and scale; None for any other."""
    if not name.isidentifier():
        return None
    import transformers
    from transformers.image_processing_backends import PilBackend

    found = getattr(transformers, f"{name}ImageProcessorPil", None)
    if not isinstance(found, type) or not issubclass(found, PilBackend):
        return None
    own_steps = any(getattr(found, step) is not getattr(PilBackend, step) for step in _STEPS)
    if own_steps and name not in _FOR_SEGMENTS_TOO:
        return None
    known = {key: getattr(found, key, None) for key in _SETTINGS}
    return {key: value for key, value in known.items() if value is not None}


def _edges(size: Any, square: bool) -> tuple[int, int] | int:
    """(height, width), or the short side alone."""
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    if size.get("shortest_edge") and not size.get("longest_edge"):
        return int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])


def _crop_edge(geometry: Geometry) -> int:
    """The short side before a crop: the checkpoint's own where it crops, else an eighth more than what is kept."""
    if isinstance(geometry.resize, int):
        return geometry.resize
    return round(max(geometry.size) * _IMAGENET)


def _three(values: Any) -> tuple[float, ...]:
    found = tuple(float(one) for one in values)
    if len(found) != 3:
        raise ValueError(f"{len(found)} channels")
    return found


def _processor_name(raw: Mapping[str, Any], kind: str) -> str:
    named = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    if not named:
        return BY_KIND.get(kind, kind)
    named = str(named)
    return next((named.removesuffix(end) for end in _SUFFIXES if named.endswith(end)), named)


def _bad(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} {what}.", fix="take a model that is prepared as ViT, DeiT, DINOv2, Swin or ConvNeXt."
    )
