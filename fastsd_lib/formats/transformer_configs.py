"""The small files of SD3 and Flux pipelines: bundled for the published models, else from the shapes of the tensors.

What no shape tells (shift of the noise schedule, scale of the latents, activations) is the family's, and a file written
here from a pipeline that differs there carries its own configs in its header, as those of SD 1.x do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.tensor_file import Tensor
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.configs import METADATA_KEY, TOKENIZER_FILES, pack
from fastsd_lib.formats.shapes import vae_config

Configs = dict[str, str]  # path in the folder -> JSON text
Tensors = Mapping[str, Tensor]  # names without the prefix of their part

TRANSFORMER = "transformer/config.json"
FAMILIES = {"FluxTransformer2DModel": "flux", "SD3Transformer2DModel": "sd3"}
# Part of the pipeline -> the name that single files give the text encoder.
TEXT_ENCODERS = {
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
}
BUNDLED = Path(__file__).parent / "bundled"
PIPELINES_BY_CHANNELS = {
    384: "FluxFillPipeline",
    128: "FluxControlPipeline",
}  # img_in of Flux.1 Fill, Canny, Depth
HEAD_WIDTH = 64  # of SD3 and both CLIPs
MOST_BLOCKS = 1000  # far beyond any model: what a stranger's config may ask for
UNREAD = ("torch_dtype", "dtype", "transformers_version", "architectures")  # entries that change no picture


def model_name(transformer: Mapping[str, Any]) -> str:
    """The folder in bundled/ whose model this config is, or comes nearest to."""
    if FAMILIES[transformer["_class_name"]] == "flux":
        return "flux-dev" if transformer.get("guidance_embeds") else "flux-schnell"
    if transformer.get("dual_attention_layers"):
        return "sd35-medium"
    return "sd35-large" if transformer.get("qk_norm") else "sd3-medium"


def bundled_configs(model: str) -> Configs:
    folder = BUNDLED / model
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.json")}


# ------------------------------------------------------------------ of a folder


def folder_configs(folder: Path) -> Configs:
    """The small files of a Diffusers folder of SD3 or Flux; UserError when it is none, or one is damaged."""
    texts: Configs = {}
    for name in _names():
        if (folder / name).is_file():
            if name.endswith(".json"):
                read_json(folder / name)  # says the line when it is damaged
            texts[name] = (folder / name).read_text("utf-8-sig")
    if TRANSFORMER not in texts:
        raise UserError(
            f"{folder} holds no {TRANSFORMER}, so it is no Diffusers folder of SD3 or Flux.",
            fix="name the folder that holds model_index.json and transformer/.",
        )
    check_configs(texts, folder)
    return texts


def check_configs(configs: Mapping[str, str], origin: Path) -> None:
    """UserError for configs that are not those of an SD3 or Flux pipeline; they may come from anywhere."""
    try:
        parsed = {name: json.loads(text) for name, text in configs.items() if name.endswith("config.json")}
        transformer = parsed[TRANSFORMER]
        layers = [transformer["num_layers"], *(c.get("num_hidden_layers", 1) for c in parsed.values())]
        layers += [c.get("num_layers", 1) for c in parsed.values()]
        layers += [c.get("num_single_layers", 1) for c in parsed.values()]
        heads = transformer["num_attention_heads"], transformer["attention_head_dim"]
        good = transformer["_class_name"] in FAMILIES and all(0 <= int(n) <= MOST_BLOCKS for n in layers)
        good = good and int(heads[0]) * int(heads[1]) > 0
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise UserError(
            f"The configs of {origin} are not those of an SD3 or Flux model.",
            fix="take a folder or a file of Stable Diffusion 3, 3.5 or Flux.1.",
        )


def carried_configs(configs: Mapping[str, str], parts: Collection[str]) -> dict[str, str]:
    """The header entry with the configs of a pipeline that is not a published one; empty for those that are.

    The tokenizers travel along when their vocabulary is not the published one.
    """
    stock = bundled_configs(model_name(json.loads(configs[TRANSFORMER])))
    names = [name for name in configs if name.endswith("config.json") and "tokenizer" not in name]
    names = [name for name in names if name.partition("/")[0] in (*parts, "scheduler")]
    if all(_same(configs[name], stock.get(name, "{}")) for name in names):
        return {}
    own_words = any(
        json.loads(configs[name]).get("vocab_size") != json.loads(stock[name]).get("vocab_size")
        for name in names
        if name.startswith("text_encoder")
    )
    names += ["model_index.json"] if "model_index.json" in configs else []
    names += [name for name in configs if own_words and name.startswith("tokenizer")]
    return {METADATA_KEY: pack({name: configs[name] for name in names})}


def _same(own: str, stock: str) -> bool:
    """Whether two configs mean the same: an entry that is missing counts as none, no or nothing."""
    mine, theirs = json.loads(own), json.loads(stock)
    read = {name for name in {*mine, *theirs} if not name.startswith("_") and name not in UNREAD}
    return all((mine.get(name) or None) == (theirs.get(name) or None) for name in read)


def _names() -> list[str]:
    """Every small file that a pipeline of these families may have; nothing else is read or written."""
    texts = [f"text_encoder{number}/config.json" for number in ("", "_2", "_3")]
    words = [f"tokenizer{number}/{name}" for number in ("", "_2", "_3") for name in TOKENIZER_FILES]
    return [
        "model_index.json",
        TRANSFORMER,
        "vae/config.json",
        "scheduler/scheduler_config.json",
        *texts,
        *words,
    ]


# ------------------------------------------------------------------ of a single file


def unpacked_configs(packed: str, origin: Path) -> Configs:
    """The configs that a file carries; `packed` may come from anywhere."""
    try:
        values = json.loads(packed)
        configs = {
            name: json.dumps(values[name], indent=2, ensure_ascii=False) + "\n"
            if name.endswith(".json")
            else str(values[name])
            for name in _names()
            if name in values
        }
    except (ValueError, TypeError, RecursionError):
        configs = {}
    check_configs(configs, origin)
    return configs


def derived_configs(family: str, parts: Mapping[str, Tensors], origin: Path) -> Configs:
    """The configs of a bare file: of the published model, corrected by the shapes found in `parts`."""
    transformer = (_flux if family == "flux" else _sd3)(_Shapes(parts["transformer"], origin))
    stock = bundled_configs(model_name(transformer))
    found = {TRANSFORMER: transformer}
    if "vae" in parts:
        found["vae/config.json"] = vae_config(parts["vae"], origin)
    for part, name in TEXT_ENCODERS[family].items():
        if part in parts:
            shapes = _Shapes(parts[part], origin)
            found[f"{part}/config.json"] = _t5(shapes) if name == "t5xxl" else _clip(shapes)
    configs = {"scheduler/scheduler_config.json": stock["scheduler/scheduler_config.json"]}
    for name, config in found.items():
        known = json.loads(stock[name])
        same = all(known.get(key) == value for key, value in config.items())
        configs[name] = stock[name] if same else json.dumps(known | config, indent=2) + "\n"
    return configs


def pipeline_index(family: str, configs: Mapping[str, str], parts: Collection[str]) -> str:
    """model_index.json for the parts that are there; the others are said to be none."""
    transformer = json.loads(configs[TRANSFORMER])
    given = configs.get("model_index.json") or bundled_configs(model_name(transformer))["model_index.json"]
    index: dict[str, Any] = json.loads(given)
    if family == "flux" and "model_index.json" not in configs:
        index["_class_name"] = PIPELINES_BY_CHANNELS.get(transformer["in_channels"], index["_class_name"])
    for part in ("vae", *TEXT_ENCODERS[family]):
        if part not in parts:
            index[part] = [None, None]
            if part != "vae":
                index[part.replace("text_encoder", "tokenizer")] = [None, None]
    return json.dumps(index, indent=2) + "\n"


class _Shapes:
    """Shapes by name; UserError for one that is missing or of another rank, which only other models are."""

    def __init__(self, tensors: Tensors, origin: Path):
        self.tensors, self.origin = tensors, origin

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __call__(self, name: str, rank: int = 2) -> tuple[int, ...]:
        found = self.tensors.get(name)
        if found is None or len(found.shape) != rank or not all(found.shape):
            what = f"{name} of shape {list(found.shape)}" if found else f"no {name}"
            raise UserError(
                f"{self.origin} holds {what}, where every known model of its kind has one of {rank} sides.",
                fix="take the full file of the model, or its Diffusers folder.",
            )
        return found.shape

    def count(self, stem: str) -> int:
        """How many numbered blocks there are: 1 + the highest number after `stem`."""
        numbers = {name[len(stem) :].partition(".")[0] for name in self.tensors if name.startswith(stem)}
        known = [
            int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 5
        ]
        if not known or max(known) >= MOST_BLOCKS:
            raise UserError(
                f"{self.origin} holds no numbered blocks {escaped(stem)}0 and so on.",
                fix="take the full file of the model, or its Diffusers folder.",
            )
        return max(known) + 1


def _flux(shapes: _Shapes) -> dict[str, Any]:
    width, channels = shapes("img_in.weight")
    head = shapes("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    if head != 128:  # its turning angles are shared out among rows, columns and a third axis by no rule
        raise UserError(
            f"The attention heads of {shapes.origin} have {head} channels, those of Flux.1 128.",
            fix="take its Diffusers folder, or a file that carries its own configs.",
        )
    out = shapes("final_layer.linear.weight")[0]
    return {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": channels,
        "out_channels": None if out == channels else out,
        "num_layers": shapes.count("double_blocks."),
        "num_single_layers": shapes.count("single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes("txt_in.weight")[1],
        "pooled_projection_dim": shapes("vector_in.in_layer.weight")[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def _sd3(shapes: _Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes("x_embedder.proj.weight", 4)
    blocks = shapes.count("joint_blocks.")
    second = [n for n in range(blocks) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in shapes]
    return {
        "_class_name": "SD3Transformer2DModel",
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes("final_layer.linear.weight")[0] // patch**2,
        "num_layers": blocks,
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "joint_attention_dim": shapes("context_embedder.weight")[1],
        "caption_projection_dim": shapes("context_embedder.weight")[0],
        "pooled_projection_dim": shapes("y_embedder.mlp.0.weight")[1],
        "pos_embed_max_size": isqrt(shapes("pos_embed", 3)[1]),
        "dual_attention_layers": second,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _clip(shapes: _Shapes) -> dict[str, Any]:
    words, width = shapes("text_model.embeddings.token_embedding.weight")
    projects = "text_projection.weight" in shapes
    return {
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": shapes("text_model.embeddings.position_embedding.weight")[0],
        "num_hidden_layers": shapes.count("text_model.encoder.layers."),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": shapes("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "projection_dim": shapes("text_projection.weight")[0] if projects else width,
    }


def _t5(shapes: _Shapes) -> dict[str, Any]:
    words, width = shapes("shared.weight")
    attention = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = shapes(f"{attention}relative_attention_bias.weight")
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    inner = shapes(f"encoder.block.0.layer.1.DenseReluDense.wi{'_0' if gated else ''}.weight")
    known = {} if gated else {"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False}
    return known | {
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes(f"{attention}q.weight")[0] // heads,
        "d_ff": inner[0],
        "num_heads": heads,
        "num_layers": shapes.count("encoder.block."),
        "relative_attention_num_buckets": buckets,
    }
