"""Whether two model files, or two folders, hold the same weights to the last bit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

from fastsd_lib.core.tensor_file import TensorFile, read_tensor_file

# What diffusers writes into a config and the published ones leave out: its defaults.
_LEFT_OUT = {
    "model_index": {"feature_extractor": [None, None], "image_encoder": [None, None]},
    "unet/config": {
        "addition_embed_type_num_heads": 64, "attention_type": "default", "class_embeddings_concat": False,
        "conv_in_kernel": 3, "conv_out_kernel": 3, "dropout": 0.0, "dual_cross_attention": False,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False, "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
        "upcast_attention": False,
    },
    "vae/config": {"mid_block_add_attention": True, "use_post_quant_conv": True, "use_quant_conv": True},
}  # fmt: skip
# Folder -> file -> folder, by model: which lines may be there. The configs of SD 1.5 travel in the file, because its
# tokenizer is the embedded model's. Those of SDXL are taken for the published ones, which then come back: with their
# sampler and the ids of their vocabulary, which no single file holds.
EXPLAINED: dict[str, tuple[str, ...]] = {
    "sd15": (),
    "sdxl": (
        r"only theirs: tokenizer(_2)?/(merges\.txt|vocab\.json|special_tokens_map\.json|tokenizer_config\.json)",
        r"[a-z_0-9/]+\.json: (_diffusers|transformers)_version: None, theirs '[^']*'",
        r"model_index\.json: scheduler: \['diffusers', 'EulerDiscreteScheduler'\], theirs .*",
        r"scheduler/scheduler_config\.json: (_class_name|interpolation_type|use_karras_sigmas|clip_sample(_range)?"
        r"|dynamic_thresholding_ratio|rescale_betas_zero_snr|sample_max_value|set_alpha_to_one|thresholding): .*",
        r"text_encoder(_2)?/config\.json: (bos|eos|pad)_token_id: \d+, theirs \d+",
        *(
            re.escape(f"{file}.json: {key}: None, theirs {value!r}")
            for file, values in _LEFT_OUT.items()
            for key, value in values.items()
        ),
    ),
}


def all_explained(model: str, single: Iterable[str], folder: Iterable[str]) -> bool:
    """The verdict: no difference of the single files, and of the folders only what `EXPLAINED` tells."""
    return not unexplained(single) and not unexplained(folder, model)


def unexplained(lines: Iterable[str], model: str | None = None) -> list[str]:
    """The lines that no rule for the folders of `model` covers; without it none does."""
    rules = EXPLAINED[model] if model else ()
    return [line for line in lines if not any(re.fullmatch(rule, line) for rule in rules)]


def differences(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """How many tensors are the same in both .safetensors files, and what differs, a line each."""
    one, other = read_tensor_file(ours), read_tensor_file(theirs)
    lines = [f"only ours: {name}" for name in one.tensors if name not in other.tensors]
    lines += [f"only theirs: {name}" for name in other.tensors if name not in one.tensors]
    same = 0
    for name in one.tensors:
        if name in other.tensors:
            what = _difference(one, other, name)
            same += not what
            lines += [f"{name}: {what}"] if what else []
    return same, lines


def folder_differences(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """The same of two Diffusers folders: their weights bit for bit, their configs as values."""
    same, lines = 0, []
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    others = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    lines += [f"only ours: {name}" for name in sorted(names - others)]
    lines += [f"only theirs: {name}" for name in sorted(others - names)]
    for name in sorted(names & others):
        if name.suffix == ".safetensors":
            count, found = differences(ours / name, theirs / name)
            same += count
            lines += [f"{name.parent}: {line}" for line in found]
        elif name.suffix == ".json":
            one, other = (json.loads((folder / name).read_text("utf-8")) for folder in (ours, theirs))
            lines += [f"{name}: {line}" for line in _json_differences(one, other)]
        elif (ours / name).read_bytes() != (theirs / name).read_bytes():
            lines.append(f"{name}: other bytes")
    return same, lines


def _difference(one: TensorFile, other: TensorFile, name: str) -> str:
    mine, yours = one.tensors[name], other.tensors[name]
    if (mine.dtype, mine.shape) != (yours.dtype, yours.shape):
        return f"{mine.dtype} {list(mine.shape)}, theirs {yours.dtype} {list(yours.shape)}"
    chunks = zip_longest(one.chunks(name), other.chunks(name))
    return "" if all(ours == theirs for ours, theirs in chunks) else "other bits"


def _json_differences(one: object, other: object) -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else ["other values"]
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [f"{key}: {one.get(key)!r}, theirs {other.get(key)!r}" for key in keys]
