"""What a model is, from the names and shapes of its tensors: never from its file name or size."""

from __future__ import annotations

import statistics
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import Family, Layout, ModelFiles
from fastsd_lib.core.pickle_header import PickleHeader, is_pickled, read_pickle_header
from fastsd_lib.core.said_prediction import TELLING_BIAS, VELOCITY_SPREAD
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, Tensor, TensorFile, read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.models import folders, said
from fastsd_lib.models.gguf import refuse_gguf
from fastsd_lib.models.kinds import USES, Kind, foreign_model, kind_of

UNET_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
TEXT_ENCODERS = ("cond_stage_model.", "conditioner.embedders.")
DRAWN_WITH = (
    "text to image",
    "inpainting",
    "instruct-pix2pix",
)  # of USES, what `identify` takes for a whole model


@dataclass(frozen=True)
class Identity:
    """A whole model."""

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
    file = read_header(path, places=False)
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
    prediction: str = ""  # "epsilon", "v_prediction", "flow", "edm"; "" where nothing but a weight would tell
    trigger_words: tuple[str, ...] = ()  # as the metadata has them
    metadata: Mapping[str, str] = field(
        default_factory=dict
    )  # as it stands in the file: modelspec.*, ss_* ...
    unknown: tuple[str, ...] = ()  # what the header does not say, in words

    @property
    def needs(self) -> str:
        """What must come from elsewhere before it can draw, in words; "" when nothing has to."""
        return self.kind.needs


def describe(path: Path) -> Description:
    """Any model file or Diffusers folder, in milliseconds: only headers are read, and no pickle is run.

    UserError for a file that is damaged or none of the kinds in `kinds.RULES`, saying what was seen.
    """
    if path.is_dir():
        return _describe_folder(path)
    file = read_header(path, places=False)
    kind = kind_of(file.tensors, file.metadata)
    if kind is None:
        raise _not_a_model(path, file)
    prediction = said.prediction(file, kind, path)
    return Description(
        path,
        kind,
        "single_file",
        dtypes_of(file.tensors.values()),
        len(file.tensors),
        path.stat().st_size,
        file.metadata.get("modelspec.title", "") or file.metadata.get("ss_output_name", ""),
        prediction,
        said.trigger_words(file.metadata),
        file.metadata,
        said.unknown(kind, prediction),
    )


def read_header(path: Path, places: bool = True) -> TensorFile | PickleHeader:
    """The header of a model file of either format; UserError for any other, GGUF by its name. `places`: of a .ckpt."""
    refuse_gguf(path)
    return read_pickle_header(path, places) if is_pickled(path) else read_tensor_file(path)


def unet_width(path: Path) -> int:
    """Channels after the U-Net's first convolution: 320 for Stable Diffusion; 0 when there is none."""
    if path.is_dir():
        first = folders.first_weights(path).tensors.get("conv_in.weight")
    else:
        first = read_header(path, places=False).tensors.get(UNET_FIRST)
    return first.shape[0] if first and first.shape else 0


def measured_prediction(path: Path) -> str:
    """ "epsilon" or "v_prediction" of an SD 2.x file, by the 320 numbers in which the two sorts differ.

    The one question that no header answers: one small weight is read. "" where it is not there, or not of SD 2.x.
    """
    file = read_header(path)
    name = next((name for name in file.tensors if name.endswith(TELLING_BIAS)), "")
    kind = kind_of(file.tensors, file.metadata)
    if not name or kind is None or kind.family != "sd2":
        return ""
    data, dtype = b"".join(file.chunks(name)), file.tensors[name].dtype
    if dtype == "BF16":  # the upper half of an F32
        data, dtype = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2)), "F32"
    letter = {"F16": "e", "F32": "f", "F64": "d"}.get(dtype)
    if letter is None or not data:
        return ""
    numbers = struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)
    return "v_prediction" if statistics.pstdev(numbers) > VELOCITY_SPREAD else "epsilon"


def dtypes_of(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Type -> bytes in it, the most first."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += prod(tensor.shape) * BYTES_PER_VALUE.get(tensor.dtype, 1)
    return dict(sizes.most_common())


# ------------------------------------------------------------------ whole models


def _single_file_family(file: TensorFile | PickleHeader) -> Family:
    kind = kind_of(file.tensors, file.metadata)
    if kind is None or kind.kind not in ("checkpoint", "unet", "transformer") or kind.naming != "original":
        raise _not_a_model(file.path, file, kind)
    names = file.tensors
    if kind.kind == "unet" and not any(name.startswith(TEXT_ENCODERS) for name in names):
        raise UserError(
            f"{file.path} holds a U-Net but no text encoder: {len(names)} tensors, first {next(iter(names))}.",
            fix="take the full checkpoint of the model.",
        )
    return "sdxl" if kind.family == "sdxl_refiner" else kind.family  # type: ignore[return-value]


def _not_a_model(path: Path, file: TensorFile | PickleHeader, kind: Kind | None = None) -> UserError:
    names = file.tensors
    if not names:
        return UserError(f"{path} holds no tensors at all.", fix="download it again.")
    examples = ", ".join(f"{escaped(name[:80])} {list(one.shape)}" for name, one in list(names.items())[:3])
    seen = f"{len(names)} tensors, such as {examples}"
    kind = kind or kind_of(names, file.metadata)
    if kind:
        return UserError(
            f"{path} is {kind.words}, not a whole model ({seen}).",
            fix="name the base model here: a checkpoint file or a Diffusers folder.",
        )
    if family := foreign_model(names):
        return UserError(
            f"{path} is a {family} model, which is not known here: {seen}.",
            fix="take a Stable Diffusion (1.x, 2.x, XL, 3) or Flux model.",
        )
    return UserError(
        f"{path} is no model known here: {seen}.",
        fix="take an SD 1.x checkpoint (.safetensors) or a Diffusers folder.",
    )


def _use(first: Tensor, path: Path) -> str:
    inputs = first.shape[1] if len(first.shape) == 4 else 0
    use = USES.get(inputs, "")
    if use not in DRAWN_WITH:
        raise UserError(
            f"{path} has a U-Net with {inputs} input channels, which is not known here.",
            fix="take a text-to-image (4) or inpainting (9) checkpoint.",
        )
    return use


# ------------------------------------------------------------------ folders


def _identify_folder(folder: Path) -> Identity:
    seen = folders.look_at(folder)
    if not seen.kind.whole:
        raise UserError(
            f"{folder} is not a Diffusers folder: it has no model_index.json; it is {seen.kind.words}.",
            fix="name the folder that holds model_index.json, unet/, vae/ and text_encoder/.",
        )
    family = "sdxl" if seen.kind.family == "sdxl_refiner" else seen.kind.family
    return Identity(
        path=folder,
        family=family,  # type: ignore[arg-type]
        layout="diffusers",
        use=_use(seen.first, folder) if family in ("sd1", "sd2", "sdxl") else "text to image",
        dtype=seen.first.dtype,
        size_bytes=seen.size_bytes,
    )


def _describe_folder(folder: Path) -> Description:
    seen = folders.look_at(folder)
    return Description(
        folder,
        seen.kind,
        "diffusers",
        dtypes_of(seen.tensors),
        len(seen.tensors),
        seen.size_bytes,
        prediction=seen.prediction,
        trigger_words=said.trigger_words(seen.metadata),
        metadata=seen.metadata,
        unknown=said.unknown(seen.kind, seen.prediction),
    )
