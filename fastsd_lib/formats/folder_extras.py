"""What a single file holds and a Diffusers folder has no place for, kept beside its parts.

SD 2.x files carry a last text layer, a projection and a temperature that diffusers leaves out; others a depth
estimator, schedules, ids. A folder made from a file keeps them in a file of their own, under the names of the single
file, so that the way back gives the very same model. diffusers does not look at it.
"""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.key_maps import TEXT_PREFIXES
from fastsd_lib.formats.stored_weight import Weight, Weights
from fastsd_lib.formats.weights import WEIGHT_NAMES, part_files

EXTRAS_FILE = "single_file_extras.safetensors"
POSITION_IDS = "embeddings.position_ids"


def folder_extras(folder: Path, kind: str) -> Weights:
    """The tensors that belong into the single file besides those of the parts, by their names there.

    CLIP's position ids, which old folders have, are among them: transformers refuses them on load since 4.31, older
    programs look for them, and both are content when they get what they once wrote.
    """
    found: Weights = {}
    for part, prefix in TEXT_PREFIXES[kind].items():
        if prefix.endswith(".transformer."):
            for key, file in part_files(folder / part, WEIGHT_NAMES[part]).items():
                if key.endswith(POSITION_IDS):
                    name = f"{prefix}text_model.{POSITION_IDS}"
                    found[name] = Weight(file, key, file.tensors[key].shape)
    if (folder / EXTRAS_FILE).is_file():
        extras = read_tensor_file(folder / EXTRAS_FILE)
        found |= {name: Weight(extras, name, tensor.shape) for name, tensor in extras.tensors.items()}
    return found
