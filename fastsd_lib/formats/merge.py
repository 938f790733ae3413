"""Models merged into one, as A1111's Checkpoint Merger does it: a block of one tensor at a time, computed in float32."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, plain_disk_errors
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tensor_file import NewTensor
from fastsd_lib.formats.casting import FLOATS, from_float32, target_dtype
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.merge_sources import (
    UNET,
    VAE,
    Model,
    Source,
    check_readable,
    missing_from,
    open_model,
    open_vae,
)
from fastsd_lib.formats.modelspec import HASHES
from fastsd_lib.formats.writing import write_and_verify

Method = Literal["weighted_sum", "add_difference", "none"]
#: What A1111 calls them, in its recipes too.
METHOD_LABELS: dict[str, str] = {
    "weighted_sum": "Weighted sum",
    "add_difference": "Add difference",
    "none": "No interpolation",
}
_NEEDED = {"none": "a", "weighted_sum": "ab", "add_difference": "abc"}
_ROOM_BYTES = 64 << 20  # beside the file itself
_OWN_KEYS = ("sd_merge_recipe", "sd_merge_models", *HASHES, "modelspec.date", METADATA_KEY)


class Stopped(UserError):
    """Somebody asked to stop; nothing was written."""


@dataclass(frozen=True)
class MergeConfig:
    """What becomes of which models."""

    a: ModelFiles  # its layout, its configs, and what only it has are the result's
    out: Path  # a .safetensors file that is not there yet
    b: ModelFiles | None = None
    c: ModelFiles | None = None
    method: Method = "weighted_sum"  # A*(1-M) + B*M; or A + (B-C)*M; or A as it is
    multiplier: float = 0.3
    dtype: str | None = "fp16"  # fp16, bf16, fp32; None = as A has it
    vae: Path | None = None  # takes the place of A's
    discard: str = ""  # a regular expression: tensors whose names hold it are left out
    config_from: str = "a"  # whose .yaml beside it is copied: "a", "b", "c"; "" = none
    keep_metadata: bool = True  # what the models' files say of themselves
    recipe: bool = True  # how it was merged, with the hashes of the models
    metadata: Mapping[str, Any] = field(default_factory=dict)  # further entries


def merge(
    config: MergeConfig,
    report: Report = silent,
    should_stop: Callable[[], bool] = lambda: False,
    hash_of: Callable[[Path], str] | None = None,
) -> ModelFiles:
    """Write the merged model as one file, whole or not at all, and read it back.

    Memory stays within some blocks of a mebibyte, whatever the models' size. `hash_of`: SHA-256 of a file, from whoever
    remembers them; else they are computed. UserError, before anything is written, for models that do not go together
    (naming both), a name that is taken, and a full disk. Stopped when `should_stop` says so.
    """
    pattern = _checked(config)
    models = {letter: open_model(getattr(config, letter), report) for letter in _NEEDED[config.method]}
    first = models["a"]
    for letter in models:
        if letter != "a":
            _refuse_strangers(first, models[letter], letter.upper())
    vae = open_vae(config.vae) if config.vae else {}
    _refuse_other_vae(first, vae, config.vae)
    names = [name for name in first.tensors if not (pattern and pattern.search(name))]
    names = [name for name in names if not _stale(name, models)]
    if not any(name.startswith(UNET) for name in names):
        raise UserError(f"discard {config.discard!r} leaves no U-Net.", fix="write a narrower expression.")
    tensors = [_planned(name, vae.get(name), models, config, should_stop) for name in names]
    _require_space(config.out, sum(one.size_bytes for one in tensors))
    header = _header(config, models, hash_of, report, should_stop)
    with plain_disk_errors(f"write {config.out.name}"), atomic_path(config.out) as scratch:
        write_and_verify(scratch, config.out, tensors, header, report, hash_key="modelspec.hash_sha256")
        _stop_if(should_stop)
        _refuse_taken(config.out)
    _copy_yaml(config, models)
    return ModelFiles(config.a.family, "single_file", config.out)


# ------------------------------------------------------------------ what is refused


def _checked(config: MergeConfig) -> re.Pattern[str] | None:
    """The pattern of what is discarded; UserError for a config that cannot be followed."""
    if config.method not in _NEEDED:
        raise UserError(f"method is {config.method!r}.", fix=f"take one of: {', '.join(_NEEDED)}.")
    for letter in _NEEDED[config.method]:
        if getattr(config, letter) is None:
            label = METHOD_LABELS[config.method]
            raise UserError(f"{label} needs a model {letter.upper()}.", fix="choose one, or another method.")
    if not -10 <= config.multiplier <= 10:  # NaN is within nothing
        raise UserError(f"multiplier is {config.multiplier}.", fix="take 0 to 1; 0.5 is half of each.")
    if config.out.suffix != ".safetensors":
        raise UserError(
            f"{config.out.name} does not end in .safetensors.", fix=f"write to {config.out.stem}.safetensors."
        )
    _refuse_taken(config.out)
    target_dtype("F32", config.dtype)
    if not config.discard:
        return None
    try:
        return re.compile(config.discard)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"discard {config.discard[:100]!r} is no regular expression: {error}.",
            fix="write, for example, ^model_ema\\.",
        ) from None


def _refuse_taken(out: Path) -> None:
    if out.exists():
        raise UserError(
            f"{out.name} is there already.", fix="choose another name, or remove that file first."
        )


def _refuse_strangers(first: Model, other: Model, letter: str) -> None:
    """UserError unless the tensors that both have are of one shape, but for an inpainting A."""
    if first.kind != other.kind:
        raise UserError(
            f"A, {first.name}, is {first.label}, and {letter}, {other.name}, is {other.label}.",
            fix="merge models of one family.",
        )
    missing = missing_from(other, first.tensors)
    if missing:
        raise UserError(
            f"{letter}, {other.name}, lacks {len(missing)} weights of the U-Net of A, {first.name}; first {missing[0]}.",
            fix="merge models of one shape.",
        )
    for name, source in first.tensors.items():
        theirs = other.tensors.get(name)
        if theirs is None or source.dtype not in FLOATS or _alike(source, theirs):
            continue
        if name == f"{UNET}input_blocks.0.0.weight" and _fewer_inputs(source, theirs):
            continue
        if name == f"{UNET}input_blocks.0.0.weight" and _fewer_inputs(theirs, source):
            raise UserError(
                f"{letter}, {other.name}, takes a picture and a mask besides (inpainting), and A, {first.name}, does not.",
                fix="take the inpainting model as A.",
            )
        raise UserError(
            f"A, {first.name}, and {letter}, {other.name}, are not of one shape: {name} is "
            f"{_shape(source)} and {_shape(theirs)}.",
            fix="merge models of one shape.",
        )


def _alike(one: Source, other: Source) -> bool:
    """Shapes that differ at most by sides of 1, as attention projections do."""
    return [side for side in one.shape if side > 1] == [side for side in other.shape if side > 1]


def _fewer_inputs(one: Source, other: Source) -> bool:
    """Whether `one` is the first convolution of an inpainting or instruction model, `other` a usual one."""
    return (
        len(one.shape) == len(other.shape) == 4
        and one.shape[1] in (8, 9)
        and other.shape[1] == 4
        and one.shape[:1] + one.shape[2:] == other.shape[:1] + other.shape[2:]
    )


def _shape(source: Source) -> str:
    return "x".join(map(str, source.shape)) or "one number"


def _refuse_other_vae(first: Model, vae: Mapping[str, Source], path: Path | None) -> None:
    own = {name: source for name, source in first.tensors.items() if name.startswith(VAE)}
    for name, source in vae.items():
        if name not in own or not _alike(own[name], source):
            raise UserError(
                f"{path.name} is a VAE of another shape than that of A, {first.name} (first at {name}).",
                fix=f"take a VAE made for {first.label} models.",
            )


def _stale(name: str, models: Mapping[str, Model]) -> bool:
    """Averages that training left in A alone: they are not those of the merged weights."""
    return name.startswith("model_ema.") and any(name not in one.tensors for one in models.values())


def _require_space(out: Path, needed_bytes: int) -> None:
    with plain_disk_errors(f"write {out.name}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
    if free < needed_bytes + _ROOM_BYTES:
        raise UserError(
            f"{out.name} needs {needed_bytes / 1e9:.1f} GB in {out.parent}; {free / 1e9:.1f} GB are free.",
            fix="free some space there, or write fp16.",
        )


# ------------------------------------------------------------------ one tensor


def _planned(
    name: str,
    from_vae: Source | None,
    models: Mapping[str, Model],
    config: MergeConfig,
    should_stop: Callable[[], bool],
) -> NewTensor:
    first = models["a"].tensors[name]
    if from_vae is not None:
        first, others = replace(from_vae, shape=first.shape), []
    else:
        others = [models[letter].tensors.get(name) for letter in list(models)[1:]]
    target = target_dtype(first.dtype, config.dtype)
    if first.dtype not in FLOATS or not others or None in others:
        others = []
    if others or target != first.dtype:
        for model, source in zip(models.values(), [first, *others], strict=False):
            check_readable(name, source, model.path)
        blocks = partial(_computed, name, first, others, config.multiplier, target)
    else:
        blocks = first.chunks
    return NewTensor(name, target, first.shape, lambda: _until(should_stop, blocks()))


def _until(should_stop: Callable[[], bool], chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        _stop_if(should_stop)
        yield chunk


def _stop_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Stopped("The merge was stopped; nothing was written.")


def _computed(name: str, first: Source, others: list[Source], share: float, target: str) -> Iterator[bytes]:
    if not all(_alike(first, other) for other in others):
        yield _bytes(name, _first_channels(first, others, share), target)
        return
    for values, *more in zip(first.blocks(), *(other.blocks() for other in others), strict=True):
        yield _bytes(name, _mixed(values, more, share), target)


def _mixed(first: np.ndarray, others: list[np.ndarray], share: float) -> np.ndarray:
    """float32, the steps in A1111's order, so that the sums round alike."""
    if not others:
        return first
    if len(others) == 1:
        return np.float32(1 - share) * first + np.float32(share) * others[0]
    return first + np.float32(share) * (others[0] - others[1])


def _first_channels(first: Source, others: list[Source], share: float) -> np.ndarray:
    """A's first convolution takes a mask and a picture besides: its first four inputs are merged, the others stay."""
    whole = [np.concatenate(list(one.blocks())).reshape(one.shape) for one in (first, *others)]
    merged = whole[0].copy()
    merged[:, :4] = _mixed(merged[:, :4], [one[:, :4] for one in whole[1:]], share)
    return merged


def _bytes(name: str, values: np.ndarray, target: str) -> bytes:
    if not np.isfinite(values).all():
        raise UserError(
            f"The merged weight {name} holds values that are no numbers.",
            fix="one of the models is damaged: take another copy of it.",
        )
    result = from_float32(np.ascontiguousarray(values), target)
    if target == "F16" and np.isinf(result).any():
        raise UserError(
            f"The merged weight {name} holds values beyond 65504, which fp16 cannot store.",
            fix="take bf16 or fp32.",
        )
    return result.tobytes()


# ------------------------------------------------------------------ what the file says of itself


def _header(
    config: MergeConfig,
    models: Mapping[str, Model],
    hash_of: Callable[[Path], str] | None,
    report: Report,
    should_stop: Callable[[], bool],
) -> dict[str, str]:
    first = models["a"]
    known: dict[str, str] = {}
    for model in reversed(models.values()) if config.keep_metadata else ():
        known |= {key: value for key, value in model.metadata.items() if key not in _OWN_KEYS}
    header = known | {
        "format": "pt",
        "modelspec.title": config.out.stem,
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.merged_from": ", ".join(model.name for model in models.values()),
    }
    if METADATA_KEY in first.metadata:  # without them nobody could load it
        header[METADATA_KEY] = first.metadata[METADATA_KEY]
    header |= {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in config.metadata.items()
    }
    return header | (_recipe(config, models, hash_of, report, should_stop) if config.recipe else {})


def _recipe(
    config: MergeConfig,
    models: Mapping[str, Model],
    hash_of: Callable[[Path], str] | None,
    report: Report,
    should_stop: Callable[[], bool],
) -> dict[str, str]:
    """Under A1111's names, so that its users' programs read it."""
    hashes: dict[str, str | None] = dict.fromkeys("abc")
    merged: dict[str, Any] = {}
    for number, (letter, model) in enumerate(models.items()):
        _stop_if(should_stop)
        report(ProgressEvent("hashes of the models", number, len(models)))
        hashes[letter] = sha256 = hash_of(model.hashed) if hash_of else model.sha256
        merged |= _parsed(model.metadata.get("sd_merge_models"), {})
        recipe = _parsed(model.metadata.get("sd_merge_recipe"), None)
        merged[sha256] = {"name": model.name, "legacy_hash": None, "sd_merge_recipe": recipe}
    report(ProgressEvent("hashes of the models", len(models), len(models)))
    inputs = models["a"].tensors.get(f"{UNET}input_blocks.0.0.weight")
    recipe = {
        "type": "webui",
        "primary_model_hash": hashes["a"],
        "secondary_model_hash": hashes["b"],
        "tertiary_model_hash": hashes["c"],
        "interp_method": METHOD_LABELS[config.method],
        "multiplier": config.multiplier,
        "save_as_half": config.dtype == "fp16",
        "custom_name": config.out.stem,
        "config_source": config.config_from,
        "bake_in_vae": config.vae.name if config.vae else "None",
        "discard_weights": config.discard,
        "is_inpainting": inputs is not None and inputs.shape[1] == 9,
        "is_instruct_pix2pix": inputs is not None and inputs.shape[1] == 8,
    }
    return {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(merged, ensure_ascii=False)}


def _parsed(text: str | None, usual: Any) -> Any:
    """What an older merge left in a file, which may have come from anywhere."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return usual
    return value if isinstance(value, dict) else usual


def _copy_yaml(config: MergeConfig, models: Mapping[str, Model]) -> None:
    """What the original programs read beside a model, where the chosen one has it."""
    source = models.get(config.config_from)
    if source is None or source.layout != "single_file":
        return
    beside, new = source.path.with_suffix(".yaml"), config.out.with_suffix(".yaml")
    if beside.is_file() and beside.stat().st_size < 1 << 20 and not new.exists():
        with plain_disk_errors(f"write {new.name}"), atomic_path(new) as scratch:
            shutil.copyfile(beside, scratch)
