"""What compressing a ViT saves and costs: `python3 -m fastsd_lib benchmark vit-compress [--only digits|vit-b]`.

Two models. The embedded one on those of scikit-learn's digits that it has not learned from: size, speed, and how many
answers change, for each kind, behind the gate of `fastsd vit quantize`. And ViT-B/16 at 224 px with random weights:
sizes and speeds only, since a random model has no accuracy to lose. All kinds take turns, round after round, so that
what else the machine does disturbs each of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._vit_ways import random_vit_b
from fastsd_lib.core.progress import ConsoleProgress, Report
from fastsd_lib.vit import compress, exports, parity
from fastsd_lib.vit.exports import Recipe
from fastsd_lib.vit.folder_data import open_image_folder
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.sample_data import write_digits

VIT_B_KINDS = (
    "safetensors:fp32", "openvino:fp32", "openvino:bf16", "openvino:int8w", "openvino:int8", "onnx:int8w", "onnx:int8",
)  # fmt: skip
CALIBRATION = 16  # made pictures: speed does not depend on what they show


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastsd benchmark vit-compress", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", choices=("digits", "vit-b"), help="one of the two models")
    parser.add_argument("--kinds", help="FORMAT:PRECISION, several by commas")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every kind (default 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default 1)")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--out", type=Path, help="keep the models and tables there")
    options = parser.parse_args(argv)
    report = ConsoleProgress()
    with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-") as scratch:
        out = options.out or Path(scratch)
        if options.only != "vit-b":
            digits(out / "digits", options, report)
        if options.only != "digits":
            vit_b(out / "vit-b", options, report)
    return 0


def digits(out: Path, options: argparse.Namespace, report: Report) -> None:
    """The pictures of the split that the embedded model was tested on (benchmarks/tiny_vit), none that it knows."""
    model = open_model("embedded")
    data = open_image_folder(write_digits(out / "pictures"), validation=0.1, test=0.2)
    table = compress.compress(
        model, data.test, _kinds(options, compress.KINDS), out, calibration=data.validation, rounds=options.rounds,
        seconds=options.seconds, threads=options.threads, report=report,
    )  # fmt: skip
    print(table.markdown(), flush=True)


def vit_b(out: Path, options: argparse.Namespace, report: Report) -> None:
    model = open_model(random_vit_b(out / "model"))
    pictures = parity.made_pictures(model, CALIBRATION)
    made = {}
    for kind in _kinds(options, VIT_B_KINDS):
        format, _, precision = kind.partition(":")
        folder = out / "exports" / f"{format}-{precision}"
        made[kind] = exports.export(model, format, precision, folder, recipe=Recipe(pictures))
    speeds = compress.speeds_of(
        made,
        model.image_px,
        rounds=options.rounds,
        seconds=options.seconds,
        threads=options.threads,
        report=report,
    )
    first = speeds[next(iter(speeds))]
    print(f"ViT-B/16-224, random weights, {model.parameters:,} of them; the model alone, pictures a second")
    for kind, export in made.items():
        one, sixteen = (speeds[kind][batch] for batch in compress.BATCHES)
        print(
            f"{kind:18s} {export.size_mib:6.0f} MiB   batch 1 {one:6.2f} ({one / first[1]:.2f}x)"
            f"   batch 16 {sixteen:6.2f} ({sixteen / first[16]:.2f}x)   logits within {export.max_abs_logit_error:.1e}",
            flush=True,
        )


def _kinds(options: argparse.Namespace, usual: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(options.kinds.split(",")) if options.kinds else usual
