"""What goes with what: parts with base models, base models with what is done with them, sizes with families.

The one place that knows. Each check answers with a Fit: a refusal, a warning or nothing, and what to take instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.models.kind import base_name, sd3_build
from fastsd_lib.models.pieces import HasFamily, Piece, piece_of

if TYPE_CHECKING:
    from fastsd_lib.models.identify import Description

#: Latent channels of a family's VAE.
LATENT_CHANNELS = {"sd1": 4, "sd2": 4, "sdxl": 4, "sdxl_refiner": 4, "sd3": 16, "flux": 16}
#: The side in pixels of the pictures that a family learned from; SD 2.x with v-prediction: 768.
NATIVE_PX = {"sd1": 512, "sd2": 512, "sdxl": 1024, "sdxl_refiner": 1024, "sd3": 1024, "flux": 1024}
TRAINED_FAMILIES = ("sd1",)
#: A size is unusual when the side of a square of its area is more, or less, than so many native sides.
LARGE, SMALL, HOPELESS = 1.4, 0.7, 0.3
_BASES = {"checkpoint": "a whole model", "unet": "a U-Net", "transformer": "a transformer"}
_PARTS = {
    "lora": "LoRA", "control-lora": "control-LoRA", "controlnet": "ControlNet", "t2i-adapter": "T2I adapter",
    "ip-adapter": "IP-Adapter", "embedding": "embedding", "motion-module": "motion module", "redux": "Redux adapter",
}  # fmt: skip
_CONTROLS = ("controlnet", "control-lora", "t2i-adapter")
#: Variants of base models that take more than text, or draw otherwise -> what for, in words.
_ODD = {
    "inpainting": "inpainting", "instruct-pix2pix": "instruct-pix2pix", "depth to image": "depth to image",
    "upscaling": "upscaling", "unCLIP": "variations of a picture (unCLIP)", "fill": "filling a masked place (Fill)",
    "depth or canny": "drawing along depth or edges (Depth, Canny)",
}  # fmt: skip
#: Of these, what is drawn with here.
_DRAWN_VARIANTS = ("", "inpainting")


@dataclass(frozen=True)
class Fit:
    """Whether something goes with something; texts of one sentence."""

    refusal: str = ""
    warning: str = ""
    instead: str = ""  # what to take in place of it

    @property
    def ok(self) -> bool:
        return not self.refusal

    def enforced(self, prefix: str = "") -> str:
        """The warning, "" when there is none. UserError for a refusal, which follows `prefix`."""
        if self.refusal:
            message = prefix + self.refusal if prefix else self.refusal[0].upper() + self.refusal[1:]
            raise UserError(message, fix=self.instead)
        return self.warning

    @property
    def advice(self) -> str:
        """What speaks against it, and what to take instead, as one warning; "" when nothing does."""
        told = self.refusal.rstrip(".") or self.warning
        return f"{told}; {self.instead}" if told and self.instead else told


FITS = Fit()


# ------------------------------------------------------------------ a part and a base model


def check_fit(base: Piece | Description | HasFamily | str, part: Piece | Description | HasFamily) -> Fit:
    """Whether a LoRA, ControlNet, adapter, embedding or VAE goes with a base model, or with one of its family."""
    base, part = piece_of(base), piece_of(part)
    if base.kind not in _BASES:
        what = _PARTS.get(base.kind, base.kind)
        return Fit(
            f"{base.shown or 'It'} is no base model: it is of the kind {what}.",
            instead="name the checkpoint that it goes with.",
        )
    if part.kind == "vae":
        return _check_vae(base, part)
    if part.kind in _BASES:
        return Fit(
            f"{part.shown or 'It'} is {_BASES[part.kind]}, not something that is added to one.",
            instead="take it as the model itself, or merge the two.",
        )
    if part.kind not in _PARTS:
        return FITS  # upscalers and what else stands by itself
    return _check_family(base, part)


def _check_family(base: Piece, part: Piece) -> Fit:
    what = f"the {_PARTS[part.kind]} {part.shown}".rstrip()
    model = f"the model {base.shown}".rstrip()
    same = {part.family, base.family}
    if not part.family:
        return Fit(
            warning=f"it cannot be told which base model {what} is made for; if it does nothing, or gives noise, "
            f"it is not for {base.family_name or 'this one'}"
        )
    if not base.family:
        return Fit(warning=f"{what} is made for {part.family_name}, and it cannot be told what {model} is")
    builds = {sd3_build(one.family, one.variant) for one in (base, part)}
    if len(builds) > 1 and "" not in builds:
        return Fit(
            f"{what} is made for {_made_for(part)}, and {model} is {_made_for(base)}.",
            instead=_instead_of(base, part),
        )
    if len(same) > 1 and not (part.kind == "embedding" and same == {"sdxl", "sdxl_refiner"}):
        return Fit(
            f"{what} is made for {part.family_name}, and {model} is {base.family_name}.",
            instead=_instead_of(base, part),
        )
    if part.kind == "lora" and part.prediction and base.prediction and part.prediction != base.prediction:
        return Fit(
            warning=f"{what} was trained on a model that predicts {part.prediction}, and this one predicts "
            f"{base.prediction}: expect weak or strange effects"
        )
    return FITS


def _check_vae(base: Piece, vae: Piece) -> Fit:
    wanted, channels = LATENT_CHANNELS.get(base.family), vae.variant.partition(" ")[0]
    named = f"the VAE {vae.shown}".rstrip()
    if wanted is None:
        return Fit(warning=f"it cannot be told whether {named} goes with this model")
    if channels.isdigit() and int(channels) != wanted:
        return Fit(
            f"{named} has {channels} latent channels, and {base.family_name} draws in {wanted}.",
            instead=_vae_for(base.family),
        )
    if not channels.isdigit() and not vae.family:
        return Fit(warning=f"it cannot be told whether {named} goes with {base.family_name}")
    alike = {"sd2": "sd1", "sdxl_refiner": "sdxl"}  # the same VAE, or one trained on from it
    if vae.family and alike.get(vae.family, vae.family) != alike.get(base.family, base.family):
        return Fit(
            f"{named} is made for {vae.family_name}, and the model is {base.family_name}.",
            instead=_vae_for(base.family),
        )
    return FITS


def _instead_of(base: Piece, part: Piece) -> str:
    what = _PARTS[part.kind]
    if part.kind in _CONTROLS:
        from fastsd_lib.models.controls import controls_for

        there = [one.name for one in controls_for(base.family, None, base.variant)]
        known = (
            f"take {there[0]} or another of `fastsd models list --controls --family {base.family}`"
            if there
            else ""
        )
        return (
            f"{known}, or a model of {_made_for(part)}." if known else f"take a model of {_made_for(part)}."
        )
    return f"take a model of {_made_for(part)}, or {_article(what)} for {_made_for(base)}."


def _made_for(piece: Piece) -> str:
    return base_name(piece.family, piece.variant)


def _article(what: str) -> str:
    return f"{'an' if what[0] in 'aeiouAEIOU' else 'a'} {what}"


def _vae_for(family: str) -> str:
    from fastsd_lib.models.known_models import bundled_models

    alike = {"sd2": "sd1", "sdxl_refiner": "sdxl"}.get(family, family)
    known = next((one.name for one in bundled_models() if one.kind == "vae" and one.family == alike), "")
    return f"take {known}, or the model's own." if known else "take the model's own."


# ------------------------------------------------------------------ a base model and what is done with it


def check_base(
    base: Piece | Description | HasFamily | str, use: Literal["train", "draw"], name: str = ""
) -> Fit:
    """Whether a model can be trained, or drawn with, here: its family, and what its U-Net is shown."""
    base = piece_of(base, name)
    variant = "" if base.variant in ("text to image", "base") else base.variant
    odd = variant if variant in _ODD else ""
    if base.kind not in _BASES:
        return check_fit(base, base)
    if use == "train":
        if base.family not in TRAINED_FAMILIES:
            return Fit(
                f"{base.shown} is a {base.family} model; only SD 1.x models are trained here.",
                instead="take an SD 1.x model, for example the embedded one; this one can be drawn with.",
            )
        if odd:
            return Fit(
                f"{base.shown} is a model for {_ODD[odd]}; only text-to-image models are trained here.",
                instead="train the text-to-image model that it was made from, such as 1.5.",
            )
        return FITS
    if odd not in _DRAWN_VARIANTS:
        return Fit(
            f"{base.shown} is a model for {_ODD[odd]}, which is not drawn with here.",
            instead="take Flux.1 dev or schnell."
            if base.family == "flux"
            else "take a text-to-image or inpainting model, such as 1.5.",
        )
    if base.family == "sdxl_refiner":
        return Fit(
            warning=f"{base.shown} is SDXL's refiner, made for the last steps of a picture that SDXL began",
            instead="draw with SDXL, and give its picture to the refiner with a low strength.",
        )
    if "v_pred" in base.marks and "ztsnr" not in base.marks:
        return Fit(
            warning=f"{base.shown} predicts v and is not marked for zero terminal SNR: no picture gets very dark or light"
        )
    return FITS


# ------------------------------------------------------------------ sizes


def native_px(family: str, prediction: str = "") -> int:
    """The side of the pictures that models of a family learned from; 0 when the family is not known."""
    return 768 if family == "sd2" and prediction == "v_prediction" else NATIVE_PX.get(family, 0)


def check_size(family: str, width_px: int, height_px: int, native: int = 0, prediction: str = "") -> Fit:
    """Whether a model draws, or learns from, pictures of this size.

    `native`: the side of the pictures that this very model learned from; 0 = that of its family. Judged by area, so
    that 512 x 768 passes for SD 1.5. SDXL, SD 3 and Flux give noise far below their size and are refused there; all else
    is a warning.
    """
    native = native or native_px(family, prediction)
    if not native or not width_px or not height_px:
        return FITS
    side = (width_px * height_px) ** 0.5
    name, size = FAMILY_NAMES.get(family, family), f"{width_px} x {height_px}"
    if side < HOPELESS * native and family in ("sdxl", "sdxl_refiner", "sd3", "flux"):
        return Fit(
            f"{name} cannot do {size} px: it learned from pictures of {native} px.",
            instead=f"take {native} px{_other_model(side, native)}.",
        )
    if side > LARGE * native:
        return Fit(
            warning=f"{size} px is much for {name}, and this model learned from {native} px: things may appear twice",
            instead=f"take {native} px and enlarge it (hires){_other_model(side, native)}.",
        )
    if side < SMALL * native:
        return Fit(
            warning=f"{size} px is little for {name}, and this model learned from {native} px: pictures get coarse and cut",
            instead=f"take {native} px{_other_model(side, native)}.",
        )
    return FITS


def _other_model(side: float, native: int) -> str:
    """ ", or a model for 768 px such as SD 2.x (2.1)": the known one nearest to a size; "" where that is no better."""
    from fastsd_lib.models.known_models import bundled_models

    plain = [one for one in bundled_models() if one.variant in ("base", "768") and "generate" in one.uses]
    best = min(plain, key=lambda one: abs(one.resolution_px - side))
    if abs(best.resolution_px - side) >= abs(native - side):
        return ""
    return f", or a model for {best.resolution_px} px such as {FAMILY_NAMES[best.family]} ({best.aliases[0]})"


def check_training(
    base: Piece | Description | HasFamily | str, resolution_px: int, native: int = 0, name: str = ""
) -> Fit:
    """All that speaks against training this base model at this size, in one Fit."""
    base = piece_of(base, name)
    return together(
        [
            check_base(base, "train"),
            check_size(base.family, resolution_px, resolution_px, native, base.prediction),
        ]
    )


def together(fits: Iterable[Fit]) -> Fit:
    """Several findings as one: every refusal and warning, and the first way out."""
    fits = list(fits)
    refusals = [one.refusal for one in fits if one.refusal]
    told = [one for one in fits if (one.refusal if refusals else one.warning)]
    return Fit(
        " ".join(refusals),
        "; ".join(one.warning for one in fits if one.warning),
        next((one.instead for one in told if one.instead), ""),
    )
