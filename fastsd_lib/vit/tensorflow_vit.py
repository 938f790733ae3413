"""ViT and DeiT in TensorFlow's own operations: what a SavedModel and a TFLite file are made from.

It reads as `jax_vit.py` does, with the same tree of weights (`array_weights.py`); torch is never imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.vit.array_weights import Design, Weights
from fastsd_lib.vit.pixels import INPUT


@dataclass(frozen=True)
class Serving:
    """What a served model knows besides its weights."""

    labels: tuple[str, ...]
    mean: tuple[float, float, float]  # of pixels in [0, 1], as the model's transform has them
    std: tuple[float, float, float]
    rescale: float  # of bytes to [0, 1]
    temperature: float  # logits are divided by it for the probabilities; 1 = as trained
    multi_label: bool  # each class by itself (sigmoid), or one of all (softmax)


def serving_module(weights: Weights, design: Design, serving: Serving, labels_file: Path) -> Any:
    """A tf.Module with the signatures `serving_default` (pixels) and `images` (uint8), weights as variables.

    `serving_default`: pixel_values (B, 3, H, W) float32, transformed. `images`: (B, H, W, 3) uint8 of the model's own
    size. Both answer `logits` and `probabilities`, (B, classes) float32. The labels are an asset.
    """
    import tensorflow as tf

    height, width = design.image_px

    class Vit(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tree = _mapped(weights, lambda array: tf.Variable(array, trainable=False))
            self.labels = tf.saved_model.Asset(str(labels_file))

        def _answer(self, pixels: Any) -> dict[str, Any]:
            found = forward(self.tree, design, pixels)
            calm = found / serving.temperature
            likely = tf.sigmoid(calm) if serving.multi_label else tf.nn.softmax(calm)
            return {"logits": tf.identity(found, "logits"), "probabilities": likely}

        @tf.function(input_signature=[tf.TensorSpec((None, 3, height, width), tf.float32, INPUT)])
        def from_pixels(self, pixel_values: Any) -> dict[str, Any]:
            return self._answer(pixel_values)

        @tf.function(input_signature=[tf.TensorSpec((None, height, width, 3), tf.uint8, "images")])
        def from_images(self, images: Any) -> dict[str, Any]:
            unit = tf.cast(images, tf.float32) * serving.rescale
            unit = (unit - tf.constant(serving.mean)) / tf.constant(serving.std)
            return self._answer(tf.transpose(unit, (0, 3, 1, 2)))

    return Vit()


def forward(weights: Any, design: Design, pixels: Any) -> Any:
    """Pixels (B, 3, H, W) float32 -> logits (B, classes)."""
    import tensorflow as tf

    activation = _activation(design)
    state = _embedded(weights, design, pixels)
    for block in weights["blocks"]:
        state = state + _attended(_normed(state, block["norm1"], design), block, design.heads)
        inner = _linear(_normed(state, block["norm2"], design), block["up"])
        state = state + _linear(activation(inner), block["down"])
    state = _normed(state, weights["norm"], design)
    if "head" in weights:
        return _linear(state[:, 0], weights["head"])
    heads = [
        _linear(state[:, at], weights[name]) for at, name in enumerate(("cls_head", "distillation_head"))
    ]
    return tf.add_n(heads) / 2


def _embedded(weights: Any, design: Design, pixels: Any) -> Any:
    """Pixels -> tokens (B, 1 or 2 + patches, D)."""
    import tensorflow as tf

    (height, width), (rows, columns) = design.image_px, design.patch_px
    down, across = height // rows, width // columns
    # At most six axes, and the first unknown: what TFLite's transpose can do.
    cut = tf.reshape(pixels, (-1, 3, down, rows, across, columns))
    flat = tf.reshape(tf.transpose(cut, (0, 2, 4, 3, 5, 1)), (-1, down * across, rows * columns * 3))
    tokens = _linear(flat, weights["patches"])
    first = [weights[name] for name in ("cls", "distillation") if name in weights]
    first = [tf.tile(token, (tf.shape(pixels)[0], 1, 1)) for token in first]
    return tf.concat([*first, tokens], axis=1) + weights["positions"]


def _attended(state: Any, block: Any, heads: int) -> Any:
    import tensorflow as tf

    tokens, width = state.shape[1], state.shape[2]

    def split(name: str) -> Any:
        parts = tf.reshape(_linear(state, block[name]), (-1, tokens, heads, width // heads))
        return tf.transpose(parts, (0, 2, 1, 3))

    scores = tf.matmul(split("query"), split("key"), transpose_b=True) * (width // heads) ** -0.5
    mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), split("value")), (0, 2, 1, 3))
    return _linear(tf.reshape(mixed, (-1, tokens, width)), block["out"])


def _normed(state: Any, norm: Any, design: Design) -> Any:
    import tensorflow as tf

    centred = state - tf.reduce_mean(state, -1, keepdims=True)
    spread = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + design.epsilon)
    return centred * spread * norm["scale"] + norm["bias"]


def _linear(state: Any, layer: Any) -> Any:
    import tensorflow as tf

    product = tf.matmul(state, layer["kernel"])
    return product + layer["bias"] if "bias" in layer else product


def _activation(design: Design):
    import tensorflow as tf

    return {
        "gelu": lambda x: tf.nn.gelu(x, approximate=False),
        "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
        "gelu_pytorch_tanh": lambda x: tf.nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
        "relu": tf.nn.relu,
        "silu": tf.nn.silu,
    }[design.activation]


def _mapped(tree: Any, change: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _mapped(value, change) for name, value in tree.items()}
    if isinstance(tree, Sequence):
        return [_mapped(value, change) for value in tree]
    return change(tree)
