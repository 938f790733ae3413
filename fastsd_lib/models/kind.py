"""What a model file can be, and how the rules that tell it look at its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.core.tensor_file import Tensor

Tensors = Mapping[str, Tensor]

KIND_WORDS = {
    "checkpoint": "a whole model",
    "unet": "a U-Net alone",
    "transformer": "a transformer alone",
    "vae": "a VAE",
    "text-encoder": "a text encoder alone",
    "image-encoder": "an image encoder alone",
    "lora": "a LoRA",
    "control-lora": "a Control-LoRA",
    "controlnet": "a ControlNet",
    "t2i-adapter": "a T2I-Adapter",
    "ip-adapter": "an IP-Adapter",
    "redux": "a Flux Redux image adapter",
    "motion-module": "a motion module",
    "embedding": "a textual-inversion embedding",
    "upscaler": "an upscaler",
}
# Width of the text that the U-Net's cross-attention reads -> base model.
BASE_BY_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 1280: "sdxl_refiner", 2048: "sdxl"}
# Input channels of the U-Net -> what it is for. 4 are the latents; the rest is what else it is shown.
USES = {4: "text to image", 9: "inpainting", 8: "instruct-pix2pix", 5: "depth to image", 7: "upscaling"}
#: The variants of SD 3: their transformers differ, and what is made for one is not for the others.
_SD3_BUILDS = ("3 medium", "3.5 medium", "3.5 large")
#: Marks of a model that is not whole, but brings some of what it needs.
VAE_INSIDE, TEXT_INSIDE = "VAE inside", "text encoders inside"
#: Latents of a VAE -> what draws in them. Their VAEs differ in numbers alone.
_LATENTS = {"4": ("sd1", "sd2", "sdxl"), "16": ("sd3", "flux")}


@dataclass(frozen=True)
class Kind:
    """What a file is. An empty text: it cannot be told from names and shapes."""

    kind: str  # one of KIND_WORDS
    family: str = ""  # one of FAMILY_NAMES: the base model that it is or needs
    variant: str = ""  # "inpainting", "dev", "3.5 large", "LoHa", "union" ...
    naming: str = ""  # whose names: "kohya", "peft", "diffusers", "original"
    ema: bool = False  # averaged weights stand beside the others
    whole: bool = False  # can be drawn with as it is: nothing has to be taken from another file
    marks: tuple[
        str, ...
    ] = ()  # "v_pred", "ztsnr", "edm", "scaled fp8", VAE_INSIDE: what some tensors stand for

    @property
    def words(self) -> str:
        """ "a LoRA", "a ControlNet", "a whole model"."""
        return KIND_WORDS[self.kind]

    @property
    def fits(self) -> tuple[str, ...]:
        """The families that it is or can be used with; () when its tensors do not say, or any will do."""
        if self.kind == "vae" and not self.family:
            return _LATENTS.get(self.variant.partition(" ")[0], ())
        return (self.family,) if self.family else ()

    @property
    def needs(self) -> str:
        """What must come from elsewhere before it can draw, in words; "" when nothing has to."""
        if self.whole or self.kind == "upscaler":
            return ""
        families = " or ".join(FAMILY_NAMES[one] for one in self.fits)
        if self.kind in ("unet", "transformer", "checkpoint"):
            encoders = "text encoder" if self.family in ("sd1", "sd2", "sdxl_refiner") else "text encoders"
            missing = [] if TEXT_INSIDE in self.marks else [f"the {encoders}"]
            missing += [] if VAE_INSIDE in self.marks else ["the VAE"]
            return f"{' and '.join(missing)} of {families or 'its base model'}" if missing else ""
        if not families:
            return "a base model, which its tensors do not name"
        return f"{families} as the base model"


def sd3_build(family: str, variant: str) -> str:
    """Which of SD 3's transformers it is or needs; "" for other families, and where that is not known."""
    build = variant.removesuffix(" turbo")
    return build if family == "sd3" and build in _SD3_BUILDS else ""


def base_name(family: str, variant: str = "") -> str:
    """ "SDXL", "Flux"; "SD 3.5 large" where it is known which SD 3."""
    build = sd3_build(family, variant)
    return f"SD {build}" if build else FAMILY_NAMES.get(family, family)


class Seen:
    """The tensors of one file, asked the questions that rules have."""

    def __init__(self, tensors: Tensors, metadata: Mapping[str, str]) -> None:
        self.tensors, self.metadata = tensors, metadata

    @cached_property
    def _text(self) -> str:
        return "\n" + "\n".join(self.tensors) + "\n"  # one search instead of thousands

    def some(self, *marks: str) -> bool:
        """Whether some tensor's name holds one of `marks`."""
        return any(mark in self._text for mark in marks)

    def starts(self, *starts: str) -> bool:
        """Whether some tensor's name starts with one of `starts`."""
        return any(f"\n{start}" in self._text for start in starts)

    def ends(self, *ends: str) -> bool:
        """Whether some tensor's name ends with one of `ends`."""
        return any(f"{end}\n" in self._text for end in ends)

    def shape(self, *names: str) -> tuple[int, ...]:
        """The shape of the first of `names` that is there; () when none is."""
        return next((self.tensors[name].shape for name in names if name in self.tensors), ())

    def shape_at(self, end: str) -> tuple[int, ...]:
        """The shape of the first tensor whose name ends so; () when none does."""
        if not self.ends(end):
            return ()
        return next(one.shape for name, one in self.tensors.items() if name.endswith(end))

    def without(self, *starts: str) -> Seen:
        """The same tensors, the first of `starts` that each name has taken away."""
        bare = {
            next((name[len(start) :] for start in starts if name.startswith(start)), name): one
            for name, one in self.tensors.items()
        }
        return Seen(bare, self.metadata)

    def base_by_attention(self) -> str:
        """The family by what cross-attention reads: the keys' matrix is (width of the U-Net, width of the text)."""
        shape = self.shape_at("attn2.to_k.weight")
        return BASE_BY_TEXT_WIDTH.get(shape[1], "") if len(shape) > 1 else ""


def channels(shape: tuple[int, ...]) -> int:
    """Input channels of a convolution or a linear layer with weights of this shape; 0 when it is neither."""
    return shape[1] if len(shape) in (2, 4) else 0
