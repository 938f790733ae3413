"""LoRA files from one program's names to another's: kohya's, which web UIs and ComfyUI read, and peft's, diffusers'.

No number of a weight changes, only its name and place, and with `dtype` its width. What else must stay:

- alpha and rank. Kohya keeps alpha as a tensor of each layer. diffusers refuses such a tensor under peft's names; it
  reads peft's settings from the metadata (`lora_adapter_metadata`), so that is where alpha goes, layer by layer.
- the names of CLIP's layers begin with `text_model` in both, although transformers 5.6 left the word out.
- DoRA's lengths have the shape that each program wants.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile, read_tensor_file
from fastsd_lib.formats.casting import cast_chunks, target_dtype
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.lora_reading import read_layers
from fastsd_lib.formats.lora_settings import ADAPTER_METADATA, KEPT, NOTE
from fastsd_lib.formats.lora_to_kohya import Blocks, to_kohya
from fastsd_lib.formats.lora_to_peft import to_peft
from fastsd_lib.formats.model_writing import write_file
from fastsd_lib.formats.modelspec import HASHES

Naming = Literal["kohya", "peft", "diffusers"]
_IN_FOLDERS = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
# Metadata that is true of the old file alone; the hashes are over its bytes.
_STALE = (*HASHES, ADAPTER_METADATA, NOTE, KEPT, "format")


def convert_lora(
    source: Path,
    target: Path,
    naming: Naming,
    dtype: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    report: Report = silent,
    blocks: Blocks = "",
) -> Path:
    """Write the LoRA `source` as `target` under the names `naming`.

    `source`: a .safetensors, a pickle of plain weights, or a folder that peft or diffusers saved.
    "kohya": `lora_unet_...lora_down.weight`. "peft" and "diffusers" are one: `unet....lora_A.weight`, as diffusers
    writes it. `dtype`: fp16, bf16, fp32, or None to keep the bytes; alphas always stay. `metadata` joins the
    source's, which is carried over. `blocks`: for kohya's names of a U-Net, count its blocks as the original code, as
    diffusers, or as the source does; by default as kohya's trainer, or as the file did before it was converted here.

    SD 1.x, 2.x, SDXL, SD 3, Flux; LoRA, LoCon, DoRA. UserError for what is no LoRA, for half of one, for LoHa, LoKr and
    other kinds under peft's names, and where an exact translation does not exist; `target` is whole or not there.
    """
    if naming not in ("kohya", "peft", "diffusers"):
        raise UserError(
            f"A LoRA has no names of the kind {naming!r}.",
            fix="take kohya (web UIs, ComfyUI) or peft (diffusers).",
        )
    if target.suffix.lower() != ".safetensors":
        raise UserError(
            f"{target.name} does not end in .safetensors.", fix=f"write to {target.stem}.safetensors."
        )
    file = _opened(source)
    lora = read_layers(file, source)
    plan = to_kohya(lora, source, blocks) if naming == "kohya" else to_peft(lora, source)
    names = Counter(tensor.name for tensor in plan.tensors)
    if twice := next((name for name, count in names.items() if count > 1), ""):
        raise UserError(
            f"{source} holds one layer under two names, which both become {twice}.",
            fix="take the file as its trainer wrote it.",
        )
    given = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in (metadata or {}).items()
    }
    carried = {key: value for key, value in file.metadata.items() if key not in _STALE}
    header = {"format": "pt"} | carried | plan.metadata | given
    header[NOTE] += f"; numbers as {dtype}" if dtype else "; every number kept"
    write_file(target, [_cast(tensor, dtype) for tensor in plan.tensors], header, report, sha256=True)
    return target


def conversion_note(path: Path) -> str:
    """What `convert_lora` did to make this file, in words; "" for a file that it did not make."""
    return read_tensor_file(path).metadata.get(NOTE, "")


def _opened(source: Path) -> TensorFile:
    """The file, or the one in a folder that diffusers or peft saved."""
    if not source.is_dir():
        return open_weights(source)
    there = next((source / name for name in _IN_FOLDERS if (source / name).is_file()), None)
    if there is None:
        raise UserError(
            f"{source} is no folder of a LoRA: {_IN_FOLDERS[0]} is missing.", fix="name the file itself."
        )
    file = open_weights(there)
    settings = source / "adapter_config.json"  # peft's, where diffusers has them in the file
    if there.stem != "adapter_model" or not settings.is_file():
        return file
    return replace(file, metadata={**file.metadata, ADAPTER_METADATA: json.dumps(read_json(settings))})


def _cast(tensor: NewTensor, dtype: str | None) -> NewTensor:
    # Alpha is one number: rounding it would scale the whole correction.
    wanted = tensor.dtype if tensor.name.endswith(".alpha") else target_dtype(tensor.dtype, dtype)
    if wanted == tensor.dtype:
        return tensor
    chunks = partial(_cast_chunks, tensor, wanted)
    return NewTensor(tensor.name, wanted, tensor.shape, chunks)


def _cast_chunks(tensor: NewTensor, wanted: str) -> Iterable[bytes]:
    return cast_chunks(tensor.chunks(), tensor.name, tensor.dtype, wanted)
