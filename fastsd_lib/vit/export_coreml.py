"""Core ML: a .mlpackage for iPhones and Macs that takes a picture and answers with names and probabilities.

The resizing is left to the app (the package's metadata `fastsd.resize` says how); the scaling of the pixel values
stands in the package. Only a Mac can run it; what is checked here are its inputs, outputs, operations and weights.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit.exports import Recipe, Written
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.transform import Transform

PACKAGE = "model.mlpackage"
PRECISIONS = ("fp32", "fp16", "int8w")
#: Largest difference of a stored weight, as a share of the largest in its tensor: rounding, nothing else.
LIMITS = {"fp32": 1e-6, "fp16": 1e-3, "int8w": 1 / 127}
QUANTISED_FROM = 2048  # tensors of fewer values stay in fp16: nothing to gain
HALF_EPSILON = 1e-5  # transformers' 1e-12 is 0 in half precision; this is what PyTorch's own LayerNorm has


class Answering(nn.Module):
    """Pixels (1, 3, H, W) as the image input brings them -> probabilities (1, classes), calibrated."""

    def __init__(self, model: nn.Module, scaling: Scaling, temperature: float, multi_label: bool) -> None:
        super().__init__()
        self.model = model
        self.own_scale = scaling.uneven
        self.register_buffer("mean", torch.tensor(scaling.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(scaling.std).reshape(1, 3, 1, 1))
        self.temperature, self.multi_label = temperature, multi_label

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.own_scale:
            pixels = (pixels - self.mean) / self.std
        calm = self.model(pixel_values=pixels, return_dict=True).logits / self.temperature
        return torch.sigmoid(calm) if self.multi_label else torch.softmax(calm, -1)


class Scaling:
    """How Core ML's image input turns bytes into pixels: value * scale + bias, one scale for all channels.

    ViT's (mean and deviation 0.5) fits; ImageNet's three deviations do not, so they follow in the model.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], rescale: float) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.uneven = len(set(self.std)) > 1
        self.scale = rescale if self.uneven else rescale / self.std[0]
        self.bias = [0.0] * 3 if self.uneven else [-mean / self.std[0] for mean in self.mean]


def write(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """model.mlpackage for iOS 16, macOS 13 and later; UserError for precisions or models that Core ML does not take."""
    require("coremltools", group="dev")
    if precision not in PRECISIONS:
        raise UserError(
            f"Core ML is written here as {', '.join(PRECISIONS)}, not {precision}.",
            fix="choose one of these; int8w stores the weights in 8 bits.",
        )
    transform = Transform.of(model)
    scaling = Scaling(transform.mean, transform.std, transform.geometry.rescale)
    loaded = load_torch(model)
    if precision != "fp32":
        _lift_epsilons(loaded)
    answering = Answering(loaded, scaling, model.temperature or 1.0, model.multi_label).eval()
    with quiet_coremltools() as coremltools:
        package = _converted(coremltools, answering, model, scaling, precision)
        _describe(package, model, transform)
        package.save(str(folder / PACKAGE))
        found = inspect_package(folder / PACKAGE)
    _check_face(found, model)
    worst = _check_weights(found, loaded, precision)
    counted = sum(found.operations.values())
    return Written(
        opens=PACKAGE,
        checked=f"structure only, a Mac must run it: image input {model.image_px[1]}x{model.image_px[0]}, "
        f"{counted} operations, {len(found.weights)} weight tensors within {worst:.1e} of the model's",
        runs_here=False,
    )


class Package:
    """What stands in a .mlpackage: `spec`, how often each operation, and its weights as float arrays."""

    def __init__(self, spec: Any, program: Any) -> None:
        self.spec, self.program = spec, program
        main = program.functions["main"]
        self.operations = Counter(one.op_type for one in main.operations if one.op_type != "const")
        self.weights = [array for one in main.operations if (array := stored_array(one)) is not None]


def inspect_package(path: Path) -> Package:
    """Read a .mlpackage back from the disk; inside `quiet_coremltools`."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto import load

    read = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = read.get_spec()
    program = load.load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=read.weights_dir
    )
    return Package(spec, program)


def stored_array(operation: Any) -> np.ndarray | None:
    """The values that a constant, plain or quantised, stands for; None for what is computed or no float."""
    if operation.op_type.startswith("constexpr_"):
        return np.asarray(operation.materialized_val_inference(), np.float32)
    if operation.op_type != "const":
        return None
    value = operation.outputs[0].val
    if isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32) and value.ndim:
        return value.astype(np.float32)
    return None


def unique_labels(labels: Sequence[str]) -> list[str]:
    """Core ML answers by name, so names must differ: of ImageNet's two cranes, the second is "crane (517)"."""
    seen: set[str] = set()
    named = []
    for number, label in enumerate(labels):
        named.append(label if label not in seen else f"{label} ({number})")
        seen.add(named[-1])
    return named


@contextmanager
def quiet_coremltools() -> Iterator[Any]:
    """coremltools, without TensorFlow: it imports that where it finds it, ten seconds for nothing, beside torch."""
    hidden = "tensorflow" not in sys.modules
    if hidden:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # import says: not there
    loud = logging.getLogger("coremltools")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # its progress bars, one per pass
            warnings.simplefilter("ignore")
            import coremltools

            yield coremltools
    finally:
        loud.setLevel(level)
        if hidden:
            del sys.modules["tensorflow"]


def _converted(
    coremltools: Any, answering: nn.Module, model: VitModel, scaling: Scaling, precision: str
) -> Any:
    shape = (1, 3, *model.image_px)
    with torch.inference_mode():
        traced = torch.jit.trace(answering, torch.zeros(shape), check_trace=False)
    image = coremltools.ImageType(
        name="image",
        shape=shape,
        scale=scaling.scale,
        bias=scaling.bias,
        color_layout=coremltools.colorlayout.RGB,
    )
    if model.multi_label:  # Core ML's classifiers choose one class
        face = {"outputs": [coremltools.TensorType(name="probabilities")]}
    else:
        face = {"classifier_config": coremltools.ClassifierConfig(unique_labels(model.labels))}
    exact = precision == "fp32"
    try:
        package = coremltools.convert(
            traced,
            inputs=[image],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT32 if exact else coremltools.precision.FLOAT16,
            skip_model_load=True,
            **face,
        )
        return _quantised(package) if precision == "int8w" else package
    except (RuntimeError, ValueError, NotImplementedError, KeyError, TypeError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"coremltools cannot convert a {model.architecture}: {said[-1][:200]}",
            fix='export it as "onnx" instead.',
        ) from None


def _lift_epsilons(loaded: nn.Module) -> None:
    for module in loaded.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = max(module.eps, HALF_EPSILON)


def _quantised(package: Any) -> Any:
    from coremltools.optimize import coreml

    every = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=QUANTISED_FROM)
    return coreml.linear_quantize_weights(package, coreml.OptimizationConfig(global_config=every))


def _describe(package: Any, model: VitModel, transform: Transform) -> None:
    package.short_description = f"{model.name}: {len(model.labels)} classes"
    told = {
        "fastsd.resize": _resizing(transform),
        "fastsd.temperature": str(model.temperature or 1.0),
    }
    if model.multi_label:
        told["fastsd.labels"] = "\n".join(model.labels)
    for name, value in told.items():
        package.user_defined_metadata[name] = value


def _resizing(transform: Transform) -> str:
    """What the app must do before: "to 256x256 (bicubic), then the middle 224x224"."""
    (height, width), resize = transform.size, transform.geometry.resize
    how = transform.resample.name.lower()
    if resize == (height, width):
        return f"to {width}x{height} ({how})"
    first = f"short side to {resize} ({how}), " if isinstance(resize, int) else ""
    if isinstance(resize, tuple):
        first = f"to {resize[1]}x{resize[0]} ({how}), "
    return f"{first}then the middle {width}x{height}"


def _check_face(found: Package, model: VitModel) -> None:
    """One RGB image of the model's size in, a name and probabilities out, under the model's own names."""
    asked = found.spec.description.input
    size = (asked[0].type.imageType.height, asked[0].type.imageType.width)
    answers = {one.name for one in found.spec.description.output}
    expected = {"probabilities"} if model.multi_label else {"classLabel", "classLabel_probs"}
    named = [one for op in found.program.functions["main"].operations for one in _classes(op)]
    if len(asked) != 1 or size != model.image_px or answers != expected:
        raise _wrong(f"takes {size} and answers {sorted(answers)}")
    if not model.multi_label and named != unique_labels(model.labels):
        raise _wrong("names other classes than the model")


def _classes(operation: Any) -> list[str]:
    if operation.op_type != "classify":
        return []
    return [str(getattr(one, "val", one)) for one in operation.classes.val]


def _check_weights(found: Package, loaded: nn.Module, precision: str) -> float:
    """The largest difference of any matrix of the model from its nearest copy in the package, as a share."""
    by_size: dict[int, list[np.ndarray]] = {}
    for array in found.weights:
        by_size.setdefault(array.size, []).append(array)
    worst = 0.0
    for name, parameter in loaded.named_parameters():
        if parameter.dim() < 2 or "pooler" in name or name.endswith(("mask_token", "_token", "embeddings")):
            continue  # tokens and positions may be joined to one constant
        own = parameter.detach().numpy()
        turned = [own.ravel(), own.T.ravel()] if own.ndim == 2 else [own.ravel()]
        candidates = [other.ravel() for other in by_size.get(own.size, [])]
        nearest = min(
            (float(np.abs(one - other).max()) for one in turned for other in candidates), default=np.inf
        )
        share = nearest / float(np.abs(own).max() or 1)
        worst = max(worst, share)
        if share > LIMITS[precision]:
            raise _wrong(f"holds no copy of {name} (nearest: off by {share:.2g} of its largest value)")
    return worst


def _wrong(what: str) -> UserError:
    return UserError(
        f"The Core ML package {what}.", fix='export the model as "onnx" instead, and report this.'
    )
