"""The preprocessors of control pictures by name, with what they can be asked; light, so that a form needs no numpy."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from fastsd_lib.core.errors import UserError


@dataclass(frozen=True)
class Slider:
    """One number of a preprocessor, as A1111's extension shows it."""

    name: str
    value: float
    low: float
    high: float
    step: float | None = None

    @property
    def detail(self) -> dict[str, float | str]:
        """As `/controlnet/module_list` says it."""
        step = {} if self.step is None else {"step": self.step}
        return {"name": self.name, "value": self.value, "min": self.low, "max": self.high, **step}


RESOLUTION = Slider("Preprocessor Resolution", 512, 64, 2048)


@dataclass(frozen=True)
class Module:
    """A preprocessor: its choices, and whether it works without a ControlNet."""

    name: str
    about: str
    resolution: bool = True  # whether it works at a size of its own
    a: Slider | None = None
    b: Slider | None = None
    model_free: bool = False  # it steers through the U-Net itself
    control_types: tuple[str, ...] = ()  # A1111's groups
    aliases: tuple[str, ...] = ()  # what users of A1111 type and its API sends
    needs: str = ""  # the folder in models/ControlNet/annotators that it reads

    @property
    def sliders(self) -> list[dict[str, float | str] | None]:
        """A1111's list: resolution, then the two thresholds; None keeps a place."""
        found = [RESOLUTION if self.resolution else None, self.a, self.b]
        while found and found[-1] is None:
            found.pop()
        return [slider and slider.detail for slider in found]

    @property
    def detail(self) -> dict[str, object]:
        return {"model_free": self.model_free, "sliders": self.sliders}


FIDELITY = Slider('Style Fidelity (only for "Balanced" mode)', 0.5, 0, 1, 0.01)
GAMMA = Slider("Gamma Correction", 1, 0.1, 2, 0.001)
LINES = ("Canny", "Lineart", "SoftEdge", "Scribble", "MLSD")

MODULES = {
    module.name: module
    for module in (
        Module("none", "the picture as it is", False, aliases=("", "None")),
        Module(
            "canny", "edges (Canny 1986)", True,
            Slider("Low Threshold", 100, 1, 255), Slider("High Threshold", 200, 1, 255),
            control_types=("Canny",), aliases=("canny_edge",),
        ),
        Module(
            "invert", "light for dark: for drawings in black on white", False,
            control_types=LINES, aliases=("invert (from white bg & black line)",),
        ),
        Module(
            "lineart_standard", "lines darker than their surroundings", True,
            control_types=("Lineart",),
            aliases=("lineart_standard (from white bg & black line)", "lineart standard"),
        ),
        Module(
            "scribble_xdog", "thick strokes by a difference of two blurs", True,
            Slider("XDoG Threshold", 32, 1, 64), control_types=("Scribble",), aliases=("xdog",),
        ),
        Module(
            "threshold", "white where the darkest channel is above a level", True,
            Slider("Binarization Threshold", 127, 0, 255), aliases=("binary",),
        ),
        Module(
            "blur_gaussian", "blurred", True,
            Slider("Sigma", 9, 0.01, 64), control_types=("Tile",), aliases=("tile_gaussian",),
        ),
        Module(
            "tile_resample", "made smaller, for details to be drawn anew", False,
            Slider("Down Sampling Rate", 1, 1, 8, 0.01), control_types=("Tile",), aliases=("tile",),
        ),
        Module("recolor_luminance", "gray by lightness", False, GAMMA, control_types=("Recolor",)),
        Module("recolor_intensity", "gray by the strongest channel", False, GAMMA, control_types=("Recolor",)),
        Module(
            "inpaint_only", "what is masked is drawn anew, all else stays", False,
            control_types=("Inpaint",), aliases=("inpaint only",),
        ),
        Module(
            "inpaint_global_harmonious", "what is masked is drawn anew, and the rest may change to suit it", False,
            control_types=("Inpaint",), aliases=("inpaint", "inpaint_harmonious"),
        ),
        Module(
            "reference_only", "the U-Net looks at the picture while it draws", False, FIDELITY,
            model_free=True, control_types=("Reference",), aliases=("reference", "reference only"),
        ),
        Module(
            "depth", "distance, near is light", True,
            control_types=("Depth",),
            aliases=("depth_midas", "depth_anything", "depth_anything_v2", "depth_zoe", "depth_hand_refiner"),
            needs="depth",
        ),
    )
}  # fmt: skip

# Preprocessors of A1111's extension that are networks of their own -> what can be done without them.
UNKNOWN_NETWORKS = {
    "openpose": "draw the pose with another program, give the picture with its skeletons and take none",
    "mlsd": "take canny",
    "hed": "take scribble_xdog",
    "softedge": "take scribble_xdog",
    "pidi": "take scribble_xdog",
    "teed": "take scribble_xdog",
    "lineart_": "take lineart_standard",
    "normal": "give a normal map and take none",
    "seg": "give a map of segments and take none",
    "densepose": "give the finished map and take none",
    "mediapipe": "give the finished map and take none",
    "animal": "give the finished map and take none",
    "ip-adapter": "take reference_only",
    "clip": "take reference_only",
    "shuffle": "give a picture that is shuffled already and take none",
    "reference_adain": "take reference_only",
    "tile_colorfix": "take tile_resample",
    "t2ia": "take a ControlNet of the same kind",
}


def find_module(name: str) -> Module:
    """By its name or an alias, in any case. UserError with what can be taken instead."""
    wanted = name.strip().lower()
    for module in MODULES.values():
        if wanted == module.name or wanted in (alias.lower() for alias in module.aliases):
            return module
    for start, way in UNKNOWN_NETWORKS.items():
        if start in wanted:
            raise UserError(f"The preprocessor {name!r} is not among those here.", fix=f"{way}.")
    near = difflib.get_close_matches(wanted, MODULES, n=3, cutoff=0.5)
    fix = f"nearest: {', '.join(near)}." if near else f"there are: {', '.join(MODULES)}."
    raise UserError(f"There is no preprocessor {name!r}.", fix=fix)
