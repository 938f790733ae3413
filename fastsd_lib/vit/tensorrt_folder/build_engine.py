"""Build model.engine from model.onnx for the GPU of this machine, and try it on the pictures in check.npz.

    python build_engine.py [--least 1] [--tuned 8] [--most 32] [--workspace-mib 4096]

Needs tensorrt (10 or later), numpy, and torch with CUDA for the trial. The precision stands in model.onnx: the network
is strongly typed, the only way that TensorRT 11 knows. model.engine fits this kind of GPU and this TensorRT only.
"""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ONNX, ENGINE, CHECK, ANSWER = (
    HERE / name for name in ("model.onnx", "model.engine", "check.npz", "engine.json")
)
LEAST_COSINE = 0.999


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--least", type=int, default=1, help="pictures at once, at least")
    parser.add_argument("--tuned", type=int, default=8, help="pictures at once that it is made fast for")
    parser.add_argument("--most", type=int, default=32, help="pictures at once, at most")
    parser.add_argument("--workspace-mib", type=int, default=4096, help="memory for trying out kernels")
    options = parser.parse_args()
    if not 1 <= options.least <= options.tuned <= options.most:
        parser.error("--least, --tuned and --most must grow")
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError:
        raise SystemExit("tensorrt is not installed here: pip install tensorrt") from None
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    scratch = ENGINE.with_suffix(".partial")
    scratch.write_bytes(build(tensorrt, logger, options))
    scratch.replace(ENGINE)
    error, cosine = tried(tensorrt, logger, options.most)
    if not cosine >= LEAST_COSINE:
        raise SystemExit(
            f"The engine does not give the model's logits: cosine {cosine:.5f}, off by {error:.3g}."
        )
    import torch

    told = {
        "tensorrt": tensorrt.__version__,
        "gpu": torch.cuda.get_device_name(),
        "max_abs_error": error,
        "cosine": cosine,
    }
    ANSWER.write_text(json.dumps(told, indent=2) + "\n")
    print(
        f"{ENGINE.name}: {ENGINE.stat().st_size / 2**20:.1f} MiB, logits within {error:.3g} (cosine {cosine:.6f})"
    )


def build(tensorrt, logger, options) -> bytes:
    """The serialized engine, with one optimization profile over the batch."""
    builder = tensorrt.Builder(logger)
    strong = getattr(
        tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None
    )  # TensorRT 11 knows no other
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    reader = tensorrt.OnnxParser(network, logger)
    if not reader.parse(ONNX.read_bytes()):
        raise SystemExit("\n".join(str(reader.get_error(at)) for at in range(reader.num_errors)))
    pixels = network.get_input(0)
    profile = builder.create_optimization_profile()
    shapes = [(batch, *tuple(pixels.shape)[1:]) for batch in (options.least, options.tuned, options.most)]
    profile.set_shape(pixels.name, *shapes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SystemExit("TensorRT built no engine; what it said stands above.")
    return bytes(engine)


def tried(tensorrt, logger, most: int) -> tuple[float, float]:
    """(largest difference, cosine) of the engine's logits on the pictures of check.npz."""
    import torch

    given = np.load(CHECK)
    expected = given["logits"][:most]
    pixels = torch.from_numpy(given["pixels"][:most]).cuda().contiguous()
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(ENGINE.read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
    asked = next(name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT)
    answer = next(name for name in names if name != asked)
    context.set_input_shape(asked, tuple(pixels.shape))
    logits = torch.empty(expected.shape, dtype=torch.float32, device="cuda")
    context.set_tensor_address(asked, pixels.data_ptr())
    context.set_tensor_address(answer, logits.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    if not context.execute_async_v3(stream.cuda_stream):
        raise SystemExit("The engine did not run.")
    stream.synchronize()
    found = logits.cpu().numpy()
    cosine = (found * expected).sum() / (np.linalg.norm(found) * np.linalg.norm(expected) + 1e-30)
    return float(np.abs(found - expected).max()), float(cosine)


if __name__ == "__main__":
    main()
