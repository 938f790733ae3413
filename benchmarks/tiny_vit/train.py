"""Train the embedded ViT on scikit-learn's digits and write it into the package: `python3 -m benchmarks.tiny_vit.train`.

One seed, one split: 70 % of the digits are learned from, a tenth fit the temperature, a fifth say how good it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from fastsd_lib.core.files import write_text
from fastsd_lib.core.progress import ConsoleProgress
from fastsd_lib.vit import calibration_file
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.evaluate import evaluate
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.sample_data import write_digits
from fastsd_lib.vit.train_config import preset
from fastsd_lib.vit.trainer import TrainedVit, train

EMBEDDED = Path(__file__).resolve().parents[2] / "fastsd_lib" / "vit" / "embedded"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", calibration_file.NAME)
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
---

# The embedded ViT

A Vision Transformer of {parameters:,} weights for handwritten digits: {image_px} px, patches of {patch_px} px,
{layers} blocks of width {width}. It is small so that everything that fastsd does with a ViT runs anywhere, without a
network, in seconds. It knows digits and nothing else: shown a photograph, it names a digit all the same.

- **Data**: scikit-learn's `load_digits`, 1,797 scans of 8x8 pixels, enlarged to 32x32 (E. Alpaydin and C. Kaynak, Optical
  Recognition of Handwritten Digits, UCI 1998, CC BY 4.0). {train} pictures were learned from, {validation} fit the
  temperature, {test} were kept aside until the end. The split is drawn from the seed 1337, class by class; pictures of
  one writer may be on both sides, since the data set does not say who wrote what.
- **Accuracy**: {right} of {test} test pictures ({accuracy:.2f} %; 95 % interval {low:.1f} to {high:.1f} %).
  One picture is {one:.2f} points.
- **Calibration**: logits are divided by the temperature {temperature:.3f} (`fastsd_vit.json`).
- **Training**: from random weights, {epochs} epochs, {minutes:.1f} minutes on one thread of a shared machine:
  `python3 -m benchmarks.tiny_vit.train`. Every setting stands in `fastsd_vit.json`.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tiny_vit"), help="where the run lives")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    options = parser.parse_args(argv)
    began = time.monotonic()
    digits = write_digits(options.work / "digits")
    config = preset(
        "scratch", data=str(digits), validation=0.1, test=0.2, new_patch_px=4, epochs=30, threads=1
    )
    trained = train(config, options.work / "run", ConsoleProgress())
    install(trained, options.out, (time.monotonic() - began) / 60)
    return 0


def install(trained: TrainedVit, out: Path, minutes: float) -> None:
    """The model with its temperature, its figures and its card."""
    test = evaluate(
        trained.model,
        trained.images.test,
        RunnerConfig(backend="torch", precision="fp32", device="cpu"),
        fit_on=trained.images.validation,
    )
    figures = {
        "test_pictures": test.images,
        "test_right": test.right,
        "test_accuracy": round(test.accuracy, 5),
    }
    calibration_file.write_facts(
        trained.model.path, temperature=round(test.calibration.temperature, 4), figures=figures
    )
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(trained.model.path / name, out / name)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    low, high = test.accuracy_interval
    card = CARD.format(
        parameters=open_model(out).parameters,
        image_px=config["image_size"],
        patch_px=config["patch_size"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        train=len(trained.images.train),
        validation=len(trained.images.validation),
        test=test.images,
        right=test.right,
        accuracy=100 * test.accuracy,
        low=100 * low,
        high=100 * high,
        one=100 / test.images,
        temperature=test.calibration.temperature,
        epochs=calibration_file.read_facts(out)["recipe"]["epochs"],
        minutes=minutes,
    )
    write_text(out / "README.md", card)
    print(f"{test.right} of {test.images} test pictures are named rightly ({100 * test.accuracy:.2f} %)")


if __name__ == "__main__":
    raise SystemExit(main())
