"""What is inside one file of the library: kind, family, layout, precision, parts. Headers alone are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.core.pickle_header import is_pickled, read_pickle_header
from fastsd_lib.core.tensor_file import Tensor, read_tensor_file
from fastsd_lib.formats.configs import read_configs
from fastsd_lib.formats.key_maps import BODY_PREFIXES, TEXT_PREFIXES
from fastsd_lib.models.identify import identify
from fastsd_lib.models.kinds import KIND_WORDS, kind_of

MOST_METADATA = 40  # entries that are shown, each cut to
LONGEST_ENTRY = 400
_PRECISION = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}


@dataclass(frozen=True)
class Inside:
    """What a file says of itself. An empty text: the file does not say, which `unknown` says in words."""

    kind: str = ""  # "a whole model", "a LoRA" ...
    family: str = ""
    use: str = ""
    layout: str = ""
    dtypes: Mapping[str, int] = field(default_factory=dict)  # precision -> numbers in it
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # part -> (tensors, bytes)
    title: str = ""
    prediction: str = ""  # what the U-Net's output means
    metadata: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def look_inside(path: Path) -> Inside:
    """Of a `.safetensors` file, a pickle whose header can be read without running it, or a Diffusers folder.

    UserError for a file that is damaged, or whose header cannot be read safely.
    """
    if path.is_dir():
        return _folder(path)
    pickled = is_pickled(path)
    file = read_pickle_header(path) if pickled else read_tensor_file(path)
    metadata = {} if pickled else _metadata(file.metadata)
    kind, family, use, unknown = _named(path, file.tensors, metadata)
    prediction = "" if pickled else _prediction(file, path)
    if kind == "a whole model" and not prediction:
        unknown.append("what the U-Net predicts (noise or velocity): the family's usual is assumed")
    if not metadata:
        unknown.append("who made it and how: the file has no metadata")
    return Inside(
        kind=kind,
        family=FAMILY_NAMES.get(family, family),
        use=use,
        layout="one file" + (" (a pickle; nothing in it is run)" if pickled else ""),
        dtypes=_dtypes(file.tensors.values()),
        parts=_parts(file.tensors),
        title=metadata.get("modelspec.title", ""),
        prediction=prediction,
        metadata=metadata,
        unknown=tuple(unknown),
        warnings=("It is a pickle: .safetensors is safer and loads faster.",) if pickled else (),
    )


def _named(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[str, str, str, list[str]]:
    """(kind, family, use, what is not known)."""
    seen = kind_of(tensors, metadata)
    if seen is None:
        return "", "", "", ["what kind of file it is: its tensors have names that are not known here"]
    use = ", ".join(part for part in (seen.variant, f"{seen.naming}'s names" if seen.naming else "") if part)
    unknown = [] if seen.family else ["the family of base models that it belongs to, by its tensors alone"]
    if seen.kind == "checkpoint":
        try:
            use = identify(path).use
        except UserError as error:
            unknown.append(f"how to draw with it: {error.message.replace(str(path), path.name)}")
    return KIND_WORDS.get(seen.kind, f"a {seen.kind}"), seen.family, use, unknown


def _folder(path: Path) -> Inside:
    seen = identify(path)
    parts, dtypes = {}, Counter()
    for place in sorted(one for one in path.iterdir() if one.is_dir()):
        files = sorted(place.glob("*.safetensors"))
        if not files:
            continue
        tensors = [tensor for file in files for tensor in read_tensor_file(file).tensors.values()]
        parts[place.name] = len(tensors), sum(tensor.size_bytes for tensor in tensors)
        dtypes.update(_dtypes(tensors))
    return Inside(
        kind="a whole model",
        family=FAMILY_NAMES.get(seen.family, seen.family),
        use=seen.use,
        layout="a Diffusers folder",
        dtypes=dict(dtypes),
        parts=parts,
        prediction=_folder_prediction(path),
        title=seen.title,
    )


def _folder_prediction(path: Path) -> str:
    import json

    try:
        scheduler = json.loads(read_configs(path).get("scheduler/scheduler_config.json", "{}"))
    except (UserError, ValueError):
        return ""
    return {"epsilon": "noise", "v_prediction": "velocity"}.get(
        scheduler.get("prediction_type", "epsilon"), ""
    )


def _prediction(file: Any, path: Path) -> str:
    from fastsd_lib.formats.derived_configs import said_prediction

    said = said_prediction(file, path)
    return "" if said is None else {"epsilon": "noise"}.get(said.kind, "velocity")


def _dtypes(tensors: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[_PRECISION.get(tensor.dtype, tensor.dtype)] += prod(tensor.shape)
    return dict(counts.most_common())


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    prefixes = {prefix: part for kinds in TEXT_PREFIXES.values() for part, prefix in kinds.items()}
    prefixes = {prefix: name.replace("_", " ") for prefix, name in prefixes.items()}
    prefixes |= {
        BODY_PREFIXES["unet"]: "U-Net",
        BODY_PREFIXES["vae"]: "VAE",
        "model_ema.": "averaged U-Net (unused)",
    }
    found: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        part = next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "other tensors")
        count, size = found.get(part, (0, 0))
        found[part] = count + 1, size + tensor.size_bytes
    return {"tensors": found["other tensors"]} if set(found) == {"other tensors"} else found


def _metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is short enough to read; pictures and configs that some programs put there are left out."""
    shown = {key: value for key, value in metadata.items() if len(value) <= 20 * LONGEST_ENTRY}
    return {key[:100]: value[:LONGEST_ENTRY] for key, value in list(shown.items())[:MOST_METADATA]}
