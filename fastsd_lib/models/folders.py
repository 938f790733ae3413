"""Folders of the Diffusers kind, told from configs and headers: whole pipelines, and one part of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.tensor_file import Tensor, TensorFile, read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.models.kind import KIND_WORDS, USES, channels
from fastsd_lib.models.kinds import Kind, foreign_model, kind_of

MAX_JSON_BYTES = 16 << 20  # the index of a model in a hundred shards has a few megabytes
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
# How the class of a pipeline begins -> family; the first that fits. "": not known here.
_CLASSES = {
    "StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "Flux2": "", "FluxPriorRedux": "", "Flux": "flux",
}  # fmt: skip
# How the class of a pipeline for SD 1.x and 2.x begins: which of the two, its U-Net tells.
_SD1_OR_SD2 = ("StableDiffusion", "StableUnCLIP", "LatentConsistency")
# What the class says of a Flux model and its shapes do not.
_FLUX_BY_CLASS = {"FluxKontext": "kontext", "FluxFill": "fill", "FluxControlPipeline": "depth or canny"}
# diffusers' class of one part -> kind, asked when its tensors are of no known shape.
_PARTS = {
    "UNet2DConditionModel": "unet", "AutoencoderKL": "vae", "AutoencoderTiny": "vae", "ControlNetModel": "controlnet",
    "ControlNetUnionModel": "controlnet", "FluxControlNetModel": "controlnet", "SD3ControlNetModel": "controlnet",
    "T2IAdapter": "t2i-adapter", "MotionAdapter": "motion-module", "CLIPTextModel": "text-encoder",
    "CLIPTextModelWithProjection": "text-encoder", "T5EncoderModel": "text-encoder",
    "FluxTransformer2DModel": "transformer", "SD3Transformer2DModel": "transformer",
}  # fmt: skip
# The factor by which a VAE's latents are scaled, in its config -> whose latents they are. 0.18215: SD 1.x and 2.x.
_LATENTS_OF = {0.13025: "sdxl", 1.5305: "sd3", 0.3611: "flux"}
_LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class FolderSeen:
    """What a folder holds, headers and configs only."""

    kind: Kind
    tensors: tuple[Tensor, ...]
    first: Tensor  # of the U-Net, or of whatever there is
    size_bytes: int  # of all files in it
    prediction: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def look_at(folder: Path) -> FolderSeen:
    """What the folder is. UserError for one that is no model, misses a shard, or holds only pickled weights."""
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    loras = [folder / name for name in _LORA_NAMES if (folder / name).is_file()]
    if loras or (folder / "config.json").is_file():
        return _part(folder, loras[:1])
    names = sorted(entry.name for entry in folder.iterdir())
    there = ", ".join(escaped(name[:60]) for name in names[:5]) or "nothing"
    raise UserError(
        f"{folder} is not a Diffusers folder: it has no model_index.json (there: {there}).",
        fix="name the folder that holds model_index.json, unet/, vae/ and text_encoder/, or the model file itself.",
    )


def first_weights(folder: Path) -> TensorFile:
    """The first file of a pipeline's U-Net or transformer; UserError when there is none."""
    body = _body(folder)
    if body is None:
        raise UserError(
            f"{folder} holds no .safetensors weights in unet/.",
            fix="download the model again with its .safetensors weights; pickled .bin files are not opened.",
        )
    return read_tensor_file(weight_files(body)[0])


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors of one part: the plain file, all shards of its index, or the first variant.

    UserError for a shard that is missing or lies elsewhere, and when all weights there are pickles.
    """
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        shards = _shards(index)
        if not any(path.name.replace(".safetensors", "") == index.name.partition(".")[0] for path in found):
            return shards
    plain = [path for path in found if path.name.count(".") == 1 and "-of-" not in path.name]
    if not (plain or found):
        raise _without_weights(folder)
    return plain[:1] or found[:1]


def _shards(index: Path) -> list[Path]:
    said = _json(index)
    places = said.get("weight_map", {}) if isinstance(said, dict) else {}
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    for name in names:
        if name != Path(name).name or name in ("", ".", ".."):
            raise UserError(
                f"{index} names a file outside its folder: {escaped(name[:120])!r}.",
                fix="download the model again, from a source that you trust.",
            )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{index.parent} lacks {escaped(missing[0][:120]) if missing else 'every file of its index'} "
            f"({len(names) - len(missing)} of {len(names)} files are there).",
            fix="download the missing files as well; names must be the same to the letter.",
        )
    return [index.parent / name for name in names]


def _without_weights(folder: Path) -> UserError:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        return UserError(
            f"{folder} holds its weights as {escaped(pickled[0][:80])} only, no .safetensors weights.",
            fix="download the model again with its .safetensors weights; pickled .bin files are not opened.",
        )
    return UserError(
        f"{folder} holds no .safetensors weights.", fix="download the model again, with its weights."
    )


# ------------------------------------------------------------------ a whole pipeline


def _pipeline(folder: Path) -> FolderSeen:
    index = _json(folder / "model_index.json")
    pipeline = str(index.get("_class_name", "")) if isinstance(index, dict) else ""
    first = first_weights(folder)
    headers = [read_tensor_file(file) for part in _parts(folder) for file in weight_files(part)]
    tensors = tuple(tensor for header in headers for tensor in header.tensors.values())
    return FolderSeen(
        Kind("checkpoint", *_family_and_variant(folder, index, pipeline), "diffusers", whole=True),
        tensors,
        _first_tensor(first),
        _size(folder),
        _prediction(folder),
    )


def _body(folder: Path) -> Path | None:
    parts = (folder / name for name in ("unet", "transformer"))
    return next((part for part in parts if any(part.glob("*.safetensors"))), None)


def _parts(folder: Path) -> list[Path]:
    """The parts of a pipeline that have weights as .safetensors."""
    return [part for part in sorted(folder.iterdir()) if part.is_dir() and any(part.glob("*.safetensors"))]


def _family_and_variant(folder: Path, index: Any, pipeline: str) -> tuple[str, str]:
    tensors = _body_tensors(folder)
    body = kind_of(tensors)
    start = next((start for start in _CLASSES if pipeline.startswith(start)), None)
    family = _CLASSES[start] if start is not None else _family_by_unet(folder, index, pipeline, tensors, body)
    if not family or foreign_model(tensors):
        raise _unknown_pipeline(folder, pipeline, tensors)
    if family in ("sd3", "flux"):
        by_class = next((word for start, word in _FLUX_BY_CLASS.items() if pipeline.startswith(start)), "")
        return family, by_class or (body.variant if body else "")
    if family == "sdxl" and body and body.family == "sdxl_refiner":
        family = "sdxl_refiner"
    if pipeline.startswith("StableUnCLIP"):
        return family, "unCLIP"
    first_layer = tensors.get("conv_in.weight")
    use = USES.get(channels(first_layer.shape) if first_layer else 4, "")
    return family, "" if use == "text to image" else use


def _body_tensors(folder: Path) -> dict[str, Tensor]:
    """Of the U-Net or transformer, all its shards."""
    body = _body(folder)
    files = [read_tensor_file(path) for path in weight_files(body)] if body else []
    return {name: one for file in files for name, one in file.tensors.items()}


def _family_by_unet(
    folder: Path, index: Any, pipeline: str, tensors: Mapping[str, Tensor], body: Kind | None
) -> str:
    """The family of a pipeline whose class names none, by its U-Net; "" when that is of another, or there is none."""
    if not (folder / "unet" / "config.json").is_file():
        return ""
    if pipeline.startswith(_SD1_OR_SD2):
        # SD 2.x projects with linear layers where SD 1.x has 1x1 convolutions.
        shapes = [one.shape for name, one in tensors.items() if name.endswith("proj_in.weight")]
        return "sd2" if shapes and len(shapes[0]) == 2 else "sd1"
    # U-Nets for sound or other pictures may read what is as wide; theirs is not written by CLIP.
    parts = (
        [index.get(part) for part in ("text_encoder", "text_encoder_2")] if isinstance(index, dict) else []
    )
    reads = any(isinstance(part, list) and str(part[-1]).startswith("CLIP") for part in parts if part)
    return body.family if reads and body and body.kind == "unet" else ""


def _unknown_pipeline(folder: Path, pipeline: str, tensors: Mapping[str, Tensor]) -> UserError:
    told = escaped(pipeline[:80]) or "pipeline without a name"
    other = foreign_model(tensors)
    seen = f"{told} with the network of a {other} model" if other else told
    return UserError(
        f"{folder} holds a {seen}, which is not known here{_shapes_seen(tensors)}.",
        fix="take a Stable Diffusion pipeline.",
    )


def _shapes_seen(tensors: Mapping[str, Tensor]) -> str:
    """What a U-Net takes in, as words to end a sentence with; "" for anything else."""
    first = tensors.get("conv_in.weight")
    reads = next((one.shape for name, one in tensors.items() if name.endswith("attn2.to_k.weight")), ())
    if first is None or len(first.shape) != 4:
        return ""
    texts = f" and texts {reads[1]} wide" if len(reads) == 2 else ""
    return f" (its U-Net takes {first.shape[1]} channels{texts})"


def _prediction(folder: Path) -> str:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    said = _json(scheduler) if scheduler.is_file() else {}
    if not isinstance(said, dict):
        return ""
    if "FlowMatch" in str(said.get("_class_name", "")):
        return "flow"
    if str(said.get("_class_name", "")).startswith("EDM"):
        return "edm"
    word = said.get("prediction_type", "")
    return word if word in ("epsilon", "v_prediction", "sample") else ""


# ------------------------------------------------------------------ one part


def _part(folder: Path, loras: list[Path]) -> FolderSeen:
    files = [read_tensor_file(path) for path in loras or weight_files(folder)]
    tensors = {name: one for file in files for name, one in file.tensors.items()}
    metadata = files[0].metadata
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    config = config if isinstance(config, dict) else {}
    kind = kind_of(tensors, metadata)
    built = config.get("architectures")
    says = str(config.get("_class_name", "") or (built[0] if isinstance(built, list) and built else ""))
    if kind is None and says in _PARTS:
        kind = Kind(_PARTS[says], naming="diffusers")
    if kind is None:
        examples = ", ".join(
            f"{escaped(name[:80])} {list(one.shape)}" for name, one in list(tensors.items())[:3]
        )
        raise UserError(
            f"{folder} holds no model known here: {len(tensors)} tensors, such as {examples or 'none'}"
            + (f"; its config says {escaped(says[:60])}." if says else "."),
            fix=f"known are {', '.join(KIND_WORDS.values())}.",
        )
    factor = config.get("scaling_factor")
    if kind.kind == "vae" and isinstance(factor, float) and factor in _LATENTS_OF:
        kind = replace(kind, family=_LATENTS_OF[factor])
    return FolderSeen(
        kind, tuple(tensors.values()), _first_tensor(files[0]), _size(folder), metadata=metadata
    )


# ------------------------------------------------------------------ small things


def _first_tensor(file: TensorFile) -> Tensor:
    first = file.tensors.get("conv_in.weight") or next(iter(file.tensors.values()), None)
    if first is None:
        raise UserError(f"{file.path} holds no tensors at all.", fix="download it again.")
    return first


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes, more than a list of files needs.",
            fix="download the model again, from a source that you trust.",
        )
    return read_json(path)
