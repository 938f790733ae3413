"""What a model is, from the names and shapes of its tensors: never from its file name or size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.model_files import Family, Layout, ModelFiles
from fastsd_lib.core.pickle_header import PickleHeader, is_pickled, read_pickle_header
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, Tensor, TensorFile, read_tensor_file
from fastsd_lib.models.kinds import Kind, kind_of

UNET_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
# What the first convolution of the U-Net takes -> what the model is for. 4 latent channels are always there.
USES = {4: "text to image", 9: "inpainting", 8: "instruct-pix2pix"}

# A tensor name that holds this -> what such a file is. Asked in this order when it is no whole model.
OTHER_KINDS = {
    "lora_down": "a LoRA",
    "lora_A": "a LoRA",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding": "a ControlNet",
    "emb_params": "a textual-inversion embedding",
    "first_stage_model.": "a VAE",
    "encoder.conv_in": "a VAE",
    "down_blocks.": "one part of a Diffusers folder",
    "text_model.": "a text encoder alone",
}
FOLDER_CLASSES = {
    "StableDiffusionXL": "sdxl",
    "StableDiffusion3": "sd3",
    "Flux": "flux",
}


@dataclass(frozen=True)
class Identity:
    """What `identify` prints."""

    path: Path
    family: Family
    layout: Layout
    use: str  # "text to image", "inpainting", "instruct-pix2pix"
    dtype: str  # of the first U-Net weight, as the header says it: F32, F16, BF16
    size_bytes: int
    title: str = ""  # as the file's own metadata says it

    @property
    def model_files(self) -> ModelFiles:
        return ModelFiles(self.family, self.layout, self.path)


def identify(path: Path) -> Identity:
    """Identify a `.safetensors` or `.ckpt` file or a Diffusers folder in milliseconds; no weight is read.

    UserError for anything that is not a whole model, saying what was seen.
    """
    if path.is_dir():
        return _identify_folder(path)
    file = _header(path)
    family = _single_file_family(file)
    first = file.tensors.get(UNET_FIRST) or next(iter(file.tensors.values()))
    return Identity(
        path=path,
        family=family,
        layout="single_file",
        use=_use(first, path) if UNET_FIRST in file.tensors else "text to image",
        dtype=first.dtype,
        size_bytes=path.stat().st_size,
        title=file.metadata.get("modelspec.title", ""),
    )


@dataclass(frozen=True)
class Description:
    """What any model file is, whole or not."""

    path: Path
    kind: Kind
    layout: Layout
    dtypes: Mapping[str, int]  # "F16" ... -> bytes in it, the most first
    tensors: int
    size_bytes: int
    title: str = ""
    prediction: str = ""  # "epsilon" or "v_prediction" where the file says it


def describe(path: Path) -> Description:
    """Any model file or Diffusers folder, in milliseconds: only headers are read, and no pickle is run.

    UserError for a file that is damaged or none of the kinds in `kinds.RULES`, saying what was seen.
    """
    if path.is_dir():
        return _describe_folder(path)
    file = _header(path)
    kind = kind_of(file.tensors, file.metadata)
    if kind is None:
        raise _not_a_model(path, file.tensors)
    return Description(
        path,
        kind,
        "single_file",
        _dtypes(file.tensors.values()),
        len(file.tensors),
        path.stat().st_size,
        file.metadata.get("modelspec.title", ""),
        _said_prediction(file),
    )


def _describe_folder(folder: Path) -> Description:
    found = identify(folder)
    headers = [read_tensor_file(file) for file in sorted(folder.glob("*/*.safetensors"))]
    use = "" if found.use == "text to image" else found.use
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    scheduler = folder / "scheduler" / "scheduler_config.json"
    said = read_json(scheduler).get("prediction_type", "") if scheduler.is_file() else ""
    return Description(
        folder,
        Kind("checkpoint", found.family, use, "diffusers", whole=True),
        "diffusers",
        _dtypes(tensors),
        len(tensors),
        found.size_bytes,
        prediction=said,
    )


def _dtypes(tensors: Iterable[Tensor]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        values = prod(tensor.shape)  # a pickle's header tells no places
        sizes[tensor.dtype] += values * BYTES_PER_VALUE.get(tensor.dtype, 1)
    return dict(sizes.most_common())


def _said_prediction(file: TensorFile | PickleHeader) -> str:
    if "v_pred" in file.tensors:  # the mark that SDXL models carry
        return "v_prediction"
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    return {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}.get(said, "")


def unet_width(path: Path) -> int:
    """Channels after the U-Net's first convolution: 320 for Stable Diffusion; 0 when there is none."""
    if path.is_dir():
        first = _first_weights(path).tensors.get("conv_in.weight")
    else:
        first = _header(path).tensors.get(UNET_FIRST)
    return first.shape[0] if first and first.shape else 0


def _header(path: Path) -> TensorFile | PickleHeader:
    return read_pickle_header(path) if is_pickled(path) else read_tensor_file(path)


def _single_file_family(file: TensorFile | PickleHeader) -> Family:
    names = file.tensors
    if any("double_blocks.0.img_attn" in name for name in names):
        return "flux"
    if any("joint_blocks.0." in name for name in names):
        return "sd3"
    if UNET_FIRST not in names:
        raise _not_a_model(file.path, names)
    if any(name.startswith("conditioner.embedders.") for name in names):
        return "sdxl"
    if any(name.startswith("cond_stage_model.model.") for name in names):
        return "sd2"
    if any(name.startswith("cond_stage_model.transformer.") for name in names):
        return "sd1"
    raise UserError(
        f"{file.path} holds a U-Net but no text encoder: {len(names)} tensors, first {next(iter(names))}.",
        fix="take the full checkpoint of the model.",
    )


def _not_a_model(path: Path, names: Mapping[str, Tensor]) -> UserError:
    if not names:
        return UserError(f"{path} holds no tensors at all.", fix="download it again.")
    kind = next((kind for part, kind in OTHER_KINDS.items() if any(part in name for name in names)), "")
    examples = ", ".join(list(names)[:3])
    if kind:
        return UserError(
            f"{path} is {kind}, not a whole model ({len(names)} tensors: {examples} ...).",
            fix="name the base model here: a checkpoint file or a Diffusers folder.",
        )
    return UserError(
        f"{path} is no model known here: {len(names)} tensors, such as {examples}.",
        fix="take an SD 1.x checkpoint (.safetensors) or a Diffusers folder.",
    )


def _identify_folder(folder: Path) -> Identity:
    index, unet = folder / "model_index.json", folder / "unet" / "config.json"
    if not index.is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder} is not a Diffusers folder: it has no model_index.json (there: {there}).",
            fix="name the folder that holds model_index.json, unet/, vae/ and text_encoder/.",
        )
    pipeline = str(read_json(index).get("_class_name", ""))
    weights = _first_weights(folder)
    first = weights.tensors.get("conv_in.weight") or next(iter(weights.tensors.values()))
    family = next((family for start, family in FOLDER_CLASSES.items() if pipeline.startswith(start)), None)
    if family is None and unet.is_file():
        # SD 2.x projects with linear layers where SD 1.x has 1x1 convolutions.
        shapes = [t.shape for name, t in weights.tensors.items() if name.endswith("proj_in.weight")]
        family = "sd2" if shapes and len(shapes[0]) == 2 else "sd1"
    if family is None:
        raise UserError(
            f"{folder} holds a {pipeline or 'pipeline without a name'}, which is not known here.",
            fix="take a Stable Diffusion pipeline.",
        )
    return Identity(
        path=folder,
        family=family,
        layout="diffusers",
        use=_use(first, folder) if family in ("sd1", "sd2", "sdxl") else "text to image",
        dtype=first.dtype,
        size_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    )


def _first_weights(folder: Path) -> TensorFile:
    for part in ("unet", "transformer"):
        files = sorted((folder / part).glob("*.safetensors"))
        if files:
            return read_tensor_file(files[0])
    raise UserError(
        f"{folder} holds no .safetensors weights in unet/.",
        fix="download the model again with its .safetensors weights; pickled .bin files are not opened.",
    )


def _use(first: Tensor, path: Path) -> str:
    channels = first.shape[1] if len(first.shape) == 4 else 0
    if channels not in USES:
        raise UserError(
            f"{path} has a U-Net with {channels} input channels, which is not known here.",
            fix="take a text-to-image (4) or inpainting (9) checkpoint.",
        )
    return USES[channels]
