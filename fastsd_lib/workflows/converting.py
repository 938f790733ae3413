"""`convert`: any model file or folder in another layout, number format or naming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.text import escaped

if TYPE_CHECKING:
    from fastsd_lib.formats.conversion import ConversionChoices
    from fastsd_lib.models.identify import Description

WHOLE = ("checkpoint", "transformer")  # of SD3 and Flux the transformer alone goes round as a model
SINGLE = (".safetensors", ".ckpt")
# Endings of model files that are not written here: a folder of such a name would mislead.
FOREIGN = (
    ".bin",
    ".pth",
    ".pt",
    ".zip",
    ".tar",
    ".gz",
    ".7z",
    ".gguf",
    ".onnx",
    ".h5",
    ".msgpack",
    ".yaml",
    ".json",
)


@dataclass(frozen=True)
class Converted:
    """What was written. `notes`: what is to be known of it, a line each."""

    path: Path
    kind: str  # "checkpoint", "lora", "controlnet", "vae"
    family: str
    layout: str  # "single_file" or "diffusers"
    notes: tuple[str, ...] = ()


def convert(
    source: Path, target: Path, choices: ConversionChoices | None = None, report: Report = silent
) -> Converted:
    """Write `source` as `target`, by what `source` is and how `target` is named.

    A name with .safetensors or .ckpt is a single file, any other a folder. UserError for what does not fit, saying
    what to type instead; nothing is left under the name of `target` then.
    """
    from fastsd_lib.formats.conversion import ConversionChoices
    from fastsd_lib.models.identify import describe

    choices = choices or ConversionChoices()
    _check_places(source, target)
    described = describe(source)
    kind = described.kind.kind
    convert_one = KINDS.get(kind)
    if convert_one is None:
        raise UserError(
            f"{source} is {described.kind.words}, for which there is no other form here.",
            fix="convert whole models, LoRA, ControlNet, T2I-Adapter, VAE and embeddings.",
        )
    if kind not in WHOLE:
        _refuse_whole_model_choices(described, choices)
    return convert_one(described, target, choices, report)


# ------------------------------------------------------------------ each kind


def _whole(found: Description, target: Path, choices: ConversionChoices, report: Report) -> Converted:
    from fastsd_lib.formats.conversion import convert_model

    single = target.suffix in SINGLE
    if choices.naming not in ("auto", "original" if single else "diffusers"):
        raise UserError(
            f"A model {'in one file' if single else 'as a folder'} has no {choices.naming} names.",
            fix=f"leave --naming out, or name a {'folder' if single else '.safetensors file'} as the target.",
        )
    if not single and found.layout == "diffusers" and not (choices.dtype or choices.vae):
        raise UserError(
            f"{found.path} is a Diffusers folder already, and nothing in it is to change.",
            fix=f"write to {target.name}.safetensors, or choose --dtype or --vae.",
        )
    bare = not single and found.layout == "single_file" and found.kind.family == "sd1"
    if bare and choices.config_from is None:
        choices = replace(choices, config_from=_embedded_configs(found.path))
    made = convert_model(found.path, target, choices, report)
    return Converted(made.path, found.kind.kind, found.kind.family or made.family, made.layout, made.notes)


def _embedded_configs(file: Path) -> Path | None:
    """The embedded model's folder for a bare file of its shape, which is of no published family."""
    from fastsd_lib.models.identify import unet_width
    from fastsd_lib.models.registry import EMBEDDED_FOLDER

    there = (EMBEDDED_FOLDER / "unet").is_dir()
    return EMBEDDED_FOLDER if there and unet_width(file) == unet_width(EMBEDDED_FOLDER) else None


def _lora(found: Description, target: Path, choices: ConversionChoices, report: Report) -> Converted:
    from fastsd_lib.formats.lora_convert import conversion_note, convert_lora

    _want_safetensors(found, target)
    naming = choices.naming
    blocks = ""
    if naming == "auto" and choices.dtype:  # nothing is said of names
        naming, blocks = ("kohya", "keep") if found.kind.naming == "kohya" else ("peft", "")
    elif naming == "auto":  # the other one
        naming = "peft" if found.kind.naming == "kohya" else "kohya"
    if naming == "original":
        raise UserError(
            "A LoRA has no original names.", fix="take kohya (web UIs, ComfyUI) or peft (diffusers)."
        )
    made = convert_lora(found.path, target, naming, choices.dtype, choices.metadata, report, blocks)
    return _converted(found, made, (conversion_note(made),))


def _control(found: Description, target: Path, choices: ConversionChoices, report: Report) -> Converted:
    from fastsd_lib.formats.control_convert import convert_control

    naming = _naming_by_target(found, target, choices)
    return _converted(found, convert_control(found.path, target, naming, choices.dtype, report))


def _vae(found: Description, target: Path, choices: ConversionChoices, report: Report) -> Converted:
    from fastsd_lib.formats.vae_convert import convert_vae

    naming = _naming_by_target(found, target, choices)
    return _converted(found, convert_vae(found.path, target, naming, choices.dtype, report))


def _embedding(found: Description, target: Path, choices: ConversionChoices, report: Report) -> Converted:
    from fastsd_lib.formats.embedding_convert import convert_embedding

    _want_safetensors(found, target)
    if choices.dtype:
        raise UserError("A learned word keeps its numbers as they are.", fix="leave --dtype out.")
    naming = _naming_by_target(found, target, choices)
    return _converted(found, convert_embedding(found.path, target, naming, choices.metadata, report))


KINDS: dict[str, Callable[[Description, Path, ConversionChoices, Report], Converted]] = {
    **dict.fromkeys(WHOLE, _whole),
    "lora": _lora,
    "controlnet": _control,
    "t2i-adapter": _control,
    "embedding": _embedding,
    "vae": _vae,
}


def _converted(found: Description, made: Path, notes: tuple[str, ...] = ()) -> Converted:
    layout = "diffusers" if made.is_dir() else "single_file"
    return Converted(made, found.kind.kind, found.kind.family, layout, notes)


def _naming_by_target(found: Description, target: Path, choices: ConversionChoices) -> str:
    """Folders have diffusers' names; a file has the original ones, unless the other is asked for."""
    if choices.naming in ("original", "diffusers"):
        return choices.naming
    if choices.naming != "auto":
        raise UserError(
            f"{found.path.name} is {found.kind.words}, which has no {choices.naming} names.",
            fix="take original or diffusers.",
        )
    return "original" if target.suffix in SINGLE else "diffusers"


# ------------------------------------------------------------------ what cannot be meant


def _check_places(source: Path, target: Path) -> None:
    """UserError for a target that would overwrite something, or that no program would look for."""
    here, there = source.absolute().resolve(), target.absolute().resolve()
    shown = escaped(str(target))
    if here == there:
        raise UserError(f"{shown} is the source itself.", fix="name another file or folder to write to.")
    if here in there.parents and here.is_dir():
        raise UserError(
            f"{shown} lies inside the folder that is converted.", fix="write beside it, not into it."
        )
    suffix = target.suffix.lower()
    if suffix in FOREIGN or (suffix in SINGLE and target.suffix not in SINGLE):
        raise UserError(
            f"Models are not written as {target.suffix} files.",
            fix=f"name {target.stem}.safetensors, {target.stem}.ckpt, or a folder ({target.stem}).",
        )
    if target.is_dir() and suffix not in SINGLE and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise UserError(f"{shown} is there already.", fix="name another, or move the old one away first.")
    blocked = next((place for place in there.parents if place.exists()), None)
    if blocked is not None and not blocked.is_dir():
        raise UserError(f"{escaped(str(blocked))} is a file, not a folder.", fix="write to another folder.")


def _want_safetensors(found: Description, target: Path) -> None:
    if target.suffix != ".safetensors":
        raise UserError(
            f"{found.path.name} is {found.kind.words}: it becomes a .safetensors file, not {escaped(target.name)}.",
            fix=f"name {target.with_suffix('.safetensors').name}.",
        )


def _refuse_whole_model_choices(found: Description, choices: ConversionChoices) -> None:
    given = {"--vae": choices.vae, "--ema": choices.ema != "drop", "--config-from": choices.config_from}
    for name, value in given.items():
        if value:
            raise UserError(
                f"{name} is for whole models; {found.path} is {found.kind.words}.", fix=f"leave {name} out."
            )
