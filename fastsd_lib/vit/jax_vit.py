"""ViT and DeiT in pure JAX: one function of weights and pixels (Dosovitskiy et al. 2021; Touvron et al. 2021).

The weights are the same safetensors file (`array_weights.py`). In fp32 every product is a true fp32 one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.array_weights import Design, Weights
from fastsd_lib.vit.config import Features

Output = Literal["logits"] | Features


def compiled(design: Design, output: Output = "logits", precision: str = "fp32"):
    """A jitted function (weights, pixels (B, 3, H, W) float32) -> (B, N) float32; compiled once per batch size.

    UserError for a layer that the model has not.
    """
    import jax

    if output != "logits" and not -1 <= output.layer <= design.layers:
        raise UserError(
            f"There is no layer {output.layer}: this model has {design.layers} blocks.",
            fix=f"choose 0 (embeddings) to {design.layers}, or -1 for the last after its LayerNorm.",
        )

    def run(weights: Weights, pixels: Any) -> Any:
        with jax.default_matmul_precision("highest" if precision == "fp32" else "default"):
            states = hidden_states(weights, design, pixels)
            if output == "logits":
                return logits(weights, normed(states[-1], weights["norm"], design))
            return features(weights, design, states, output)

    return jax.jit(run)


def on_device(weights: Weights, precision: str = "fp32", device: Any = None) -> Weights:
    """The tree as JAX arrays: float32, or bfloat16 where products are computed in it."""
    import jax
    import jax.numpy as jnp

    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[precision]
    return jax.tree.map(lambda array: jax.device_put(np.asarray(array).astype(dtype), device), weights)


def hidden_states(weights: Weights, design: Design, pixels: Any) -> list[Any]:
    """What each level yields, (B, tokens, D): the embeddings, then after every block, before the last LayerNorm."""
    state = embedded(weights, design, pixels)
    states = [state]
    for block in weights["blocks"]:
        state = state + attended(normed(state, block["norm1"], design), block, design.heads)
        inner = linear(normed(state, block["norm2"], design), block["up"])
        state = state + linear(_activation(design)(inner), block["down"])
        states.append(state)
    return states


def embedded(weights: Weights, design: Design, pixels: Any) -> Any:
    """Pixels (B, 3, H, W) -> tokens (B, 1 or 2 + patches, D). A patch is a product, not a convolution: no overlap."""
    import jax.numpy as jnp

    batch, channels, height, width = pixels.shape
    rows, columns = design.patch_px
    cut = pixels.reshape(batch, channels, height // rows, rows, width // columns, columns)
    flat = cut.transpose(0, 2, 4, 3, 5, 1).reshape(batch, -1, rows * columns * channels)
    tokens = linear(flat.astype(weights["cls"].dtype), weights["patches"])
    first = [weights[name] for name in ("cls", "distillation") if name in weights]
    first = [jnp.broadcast_to(token, (batch, 1, token.shape[-1])) for token in first]
    return jnp.concatenate([*first, tokens], axis=1) + weights["positions"]


def attended(state: Any, block: Weights, heads: int) -> Any:
    """Self-attention; the softmax is in float32 whatever the weights are."""
    import jax
    import jax.numpy as jnp

    batch, tokens, width = state.shape
    split = (batch, tokens, heads, width // heads)
    query, key, value = (linear(state, block[name]).reshape(split) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * (width // heads) ** -0.5
    weight = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weight, value).reshape(batch, tokens, width)
    return linear(mixed, block["out"])


def normed(state: Any, norm: Weights, design: Design) -> Any:
    """LayerNorm over the last axis, in float32."""
    import jax
    import jax.numpy as jnp

    wide = state.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + design.epsilon)
    return (scaled * norm["scale"] + norm["bias"]).astype(state.dtype)


def linear(state: Any, layer: Weights) -> Any:
    product = state @ layer["kernel"]
    return product + layer["bias"] if "bias" in layer else product


def logits(weights: Weights, state: Any) -> Any:
    """(B, classes) float32. A DeiT with two heads answers with their mean."""
    if "head" in weights:
        found = linear(state[:, 0], weights["head"])
    else:
        found = linear(state[:, 0], weights["cls_head"])
        found = (found + linear(state[:, 1], weights["distillation_head"])) / 2
    return found.astype("float32")


def features(weights: Weights, design: Design, states: list[Any], asked: Features) -> Any:
    """(B, D) float32, as `vit/outputs.py` has them from PyTorch."""
    import jax.numpy as jnp

    last = asked.layer == -1
    state = normed(states[-1], weights["norm"], design) if last else states[asked.layer]
    state = state.astype(jnp.float32)
    before_patches = 2 if design.kind == "deit" else 1
    pooled = state[:, 0] if asked.pool == "cls" else state[:, before_patches:].mean(axis=1)
    if asked.normalize:
        pooled = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    return pooled


def _activation(design: Design):
    import jax

    return {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
    }[design.activation]
