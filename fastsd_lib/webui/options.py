"""The settings object of A1111's API: its names and defaults, kept in a file. Foreign names end at this border."""

from __future__ import annotations

import difflib
import json
import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, read_json
from fastsd_lib.webui.api_errors import Refused

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Option:
    """One setting: its default, what it may be, and whether it may be changed over HTTP."""

    default: Any
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Any, ...] = ()
    why_fixed: str = ""  # only the default is possible here, and why

    def read(self, name: str, value: Any) -> Any:
        """The value in the option's own type; Refused when it cannot be."""
        if value is None:
            return self.default
        kind = type(self.default)
        try:
            found = _as(kind, value)
        except (TypeError, ValueError, OverflowError):
            raise Refused(422, f"{name} is {_short(value)}.", f"send {_WORDS[kind]}.") from None
        if kind is str and self.choices:
            found = next((one for one in self.choices if one.lower() == found.lower()), found)
        if self.why_fixed and found != self.default:
            raise Refused(422, f"{name} is {_short(value)}: {self.why_fixed}.", f"send {self.default!r}.")
        if self.choices and found not in self.choices:
            raise Refused(422, f"{name} is {_short(value)}.", f"take one of: {_listed(self.choices)}.")
        if kind in (int, float) and not self.low <= found <= self.high:  # NaN is between nothing
            raise Refused(422, f"{name} is {_short(value)}.", f"take {self.low:g} to {self.high:g}.")
        return found


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
}
_NOT_HERE = "this server cannot do that"
_FORMATS = ("png", "jpg", "jpeg", "webp", "avif")

OPTIONS: dict[str, Option] = {
    # the model
    "sd_model_checkpoint": Option(""),
    "sd_vae": Option("Automatic"),
    "CLIP_stop_at_last_layers": Option(1, 1, 12),
    "sd_unet": Option("Automatic", choices=("Automatic", "None")),
    # sampling
    "eta_ddim": Option(0.0, 0, 2),
    "eta_ancestral": Option(1.0, 0, 2),
    "eta_noise_seed_delta": Option(0, why_fixed=_NOT_HERE),
    "s_churn": Option(0.0, 0, 1000),
    "s_tmin": Option(0.0, 0, 1000),
    "s_tmax": Option(0.0, 0),
    "s_noise": Option(1.0, 0, 2),
    "s_min_uncond": Option(0.0, why_fixed=_NOT_HERE),
    "randn_source": Option(
        "CPU", choices=("CPU", "GPU", "NV"), why_fixed="noise is drawn on the CPU, for every device"
    ),
    "token_merging_ratio": Option(0.0, why_fixed=_NOT_HERE),
    "token_merging_ratio_img2img": Option(0.0, why_fixed=_NOT_HERE),
    "token_merging_ratio_hr": Option(0.0, why_fixed=_NOT_HERE),
    "initial_noise_multiplier": Option(1.0, why_fixed=_NOT_HERE),
    "sd_hypernetwork": Option("None", why_fixed="hypernetworks are not read here"),
    "emphasis": Option("Original", why_fixed="prompts are weighted by this rule here"),
    "tiling": Option(False),
    "face_restoration": Option(False, why_fixed=_NOT_HERE),
    "face_restoration_model": Option("CodeFormer"),
    # pictures
    "samples_save": Option(True),
    "samples_format": Option("png", choices=_FORMATS),
    "grid_save": Option(True),
    "grid_format": Option("png", choices=_FORMATS),
    "grid_only_if_multiple": Option(True),
    "return_grid": Option(True),
    "n_rows": Option(-1, -1, 1000),
    "enable_pnginfo": Option(True),
    "save_txt": Option(False, why_fixed=_NOT_HERE),
    "jpeg_quality": Option(80, 1, 100),
    "webp_lossless": Option(False),
    "return_mask": Option(False, why_fixed=_NOT_HERE),
    "return_mask_composite": Option(False, why_fixed=_NOT_HERE),
    # progress
    "live_previews_enable": Option(True),
    "show_progress_every_n_steps": Option(10, -1, 1000),
    "live_previews_image_format": Option("png", choices=("png", "jpeg", "webp")),
    "live_preview_refresh_period": Option(1000.0, 0),
    # other
    "control_net_unit_count": Option(3, 1, 10),
    "quicksettings_list": Option(["sd_model_checkpoint"]),
    "sd_checkpoint_hash": Option(""),
}
READ_ONLY = {"sd_checkpoint_hash", "quicksettings_list"}
#: Of the places that a checkpoint's name is kept in, only the service's own counts.
_OF_SERVICE = {"sd_model_checkpoint", "sd_checkpoint_hash"}


class Options:
    """The settings of one server; every change is checked, then saved whole or not at all."""

    def __init__(self, path: Path | None = None) -> None:
        """Read `path`; what is missing there has its default. UserError when it is no settings file."""
        self._path, self._lock = path, threading.Lock()
        self._kept: dict[str, Any] = {}
        if path is not None and path.is_file():
            found = read_json(path)
            if not isinstance(found, dict):
                raise UserError(f"{path} holds no settings.", fix="restore it, or delete it.")
            self._kept = _still_possible(found, path)

    def values(self) -> dict[str, Any]:
        with self._lock:
            return {name: option.default for name, option in OPTIONS.items()} | self._kept

    def __getitem__(self, name: str) -> Any:
        with self._lock:
            return self._kept.get(name, OPTIONS[name].default)

    def change(self, given: Mapping[str, Any]) -> None:
        """Take the checked values over and save them."""
        new = checked(given)
        with self._lock:
            kept = self._kept | new
            if self._path is not None:
                with atomic_path(self._path) as scratch:
                    scratch.write_text(json.dumps(kept, indent=2, ensure_ascii=False), encoding="utf-8")
            self._kept = kept

    def with_overrides(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The values for one request, and the names in `given` that no option has."""
        known = checked({name: value for name, value in given.items() if name in OPTIONS})
        return self.values() | known, [name for name in given if name not in OPTIONS]


def _still_possible(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What can be set today; of the rest the log says that its default holds. The file stays until a change."""
    kept: dict[str, Any] = {}
    for name in (name for name in found if name in OPTIONS):
        try:
            kept |= checked({name: found[name]})
        except Refused as error:
            LOG.warning("%s: %s Its default is used: %r", path, error.message, OPTIONS[name].default)
    return kept


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Each value in its option's type. Refused: a name that no option has, a value that it cannot have."""
    for name in given:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "GET /sdapi/v1/options lists them."
            raise Refused(422, f"There is no option {name[:100]!r}.", hint)
    return {name: OPTIONS[name].read(name, value) for name, value in given.items()}


def _as(kind: type, value: Any) -> Any:
    if kind is bool:
        if value in (0, 1, "true", "false", "True", "False"):
            return value in (True, 1, "true", "True")
        raise ValueError
    if isinstance(value, bool | dict) and kind is not list:
        raise TypeError
    if kind is int:
        if int(value) != float(value):
            raise ValueError
        return int(value)
    if kind is str and (not isinstance(value, str | int | float) or len(str(value)) > 1000):
        raise TypeError
    if kind is list and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise TypeError
    return kind(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _listed(choices: tuple[Any, ...]) -> str:
    return ", ".join(str(choice) for choice in choices)
