"""Training on real pictures, judged on pictures that were kept aside.

`fastsd benchmark vit-train [digits] [faces] [scenes] [distil]`; without a name, all four.

Every figure is a mean over seeds or folds with its spread. Nothing is selected by the pictures that it is judged on: the
last epoch's model counts. Seconds are of this machine as it was; CPU seconds do not count what else ran on it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastsd_lib.core.progress import ConsoleProgress, Report, silent
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.evaluate import evaluate
from fastsd_lib.vit.folder_data import ImageFolder, open_image_folder
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.sample_data import write_digits, write_faces, write_scenes
from fastsd_lib.vit.train_config import VitTrainConfig, preset
from fastsd_lib.vit.trainer import train

RUNNER = RunnerConfig(backend="torch", precision="fp32", device="cpu")


@dataclass(frozen=True)
class Figure:
    """One training, judged."""

    right: int
    of: int
    seconds: float
    cpu_seconds: float
    weights: int

    @property
    def accuracy(self) -> float:
        return 100 * self.right / self.of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark vit-train", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many (digits, scenes, distil)")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (faces)")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 = as torch chooses")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(argv)
    if unknown := set(options.what) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report = ConsoleProgress() if options.progress else silent
    with tempfile.TemporaryDirectory() as folder:
        for name in options.what or PARTS:
            PARTS[name](Path(folder), options, report)
    return 0


def digits(work: Path, options: argparse.Namespace, report: Report) -> None:
    """From scratch, a fifth kept aside."""
    data = write_digits(work / "digits")
    config = preset(
        "scratch", data=str(data), validation=0.0, test=0.2, report=False, threads=options.threads
    )
    figures = []
    for seed in range(options.seeds):
        images = open_image_folder(data, validation=0.0, test=0.2, seed=seed)
        figures.append(_run(replace(config, seed=seed), images, work / f"digits {seed}", report)[0])
    _say(f"digits, from scratch, {config.epochs} epochs", figures, "seeds")


def faces(work: Path, options: argparse.Namespace, report: Report) -> None:
    """200 crops: each fold is judged once by a model that learned from the others."""
    data = write_faces(work / "faces")
    every = open_image_folder(data, validation=0.0, seed=0)
    folds = _folds(every, options.folds)
    ways = {
        "faces, from scratch": preset("scratch", epochs=80, batch_size=32, augment="standard", flip=True, mixup=0.2),
        "faces, from the embedded ViT (digits)": preset(
            "default", epochs=40, learning_rate=1e-3, weight_decay=0.05, augment="standard", ema_decay=0.95, keep_best=False
        ),
    }  # fmt: skip
    for name, config in ways.items():
        config = replace(config, data=str(data), validation=0.0, report=False, threads=options.threads)
        figures = [
            _run(config, images, work / f"{name} {number}", report)[0] for number, images in enumerate(folds)
        ]
        _say(f"{name}, {config.epochs} epochs", figures, "folds")


def scenes(work: Path, options: argparse.Namespace, report: Report) -> None:
    """20 photographs: crops of their left sides are learned from, crops of their right sides judged."""
    data = write_scenes(work / "scenes")
    config = preset(
        "scratch", data=str(data), validation=0.0, epochs=30, new_width=96, flip=True, augment="standard",
        report=False, threads=options.threads,
    )  # fmt: skip
    images = open_image_folder(data, validation=0.0)
    figures = [
        _run(replace(config, seed=seed), images, work / f"scenes {seed}", report)[0]
        for seed in range(options.seeds)
    ]
    _say(f"scenes, 20 classes, from scratch, {config.epochs} epochs", figures, "seeds")


def distil(work: Path, options: argparse.Namespace, report: Report) -> None:
    """A student with about a tenth of the weights, few epochs: alone, and with a teacher that saw the same pictures only."""
    data = write_digits(work / "digits")
    common = {"data": str(data), "validation": 0.0, "test": 0.2, "report": False, "threads": options.threads}
    # Without label smoothing: it takes from a teacher what it could teach (Mueller et al. 2019, arXiv 1906.02629).
    teacher_config = preset("scratch", **common, label_smoothing=0.0)
    student = {**common, "epochs": 20, "new_width": 24, "new_layers": 2, "new_heads": 2}
    soft = {"distil_weight": 0.9, "distil_temperature": 4.0}
    ways = {
        "student alone": preset("scratch", **student),
        "student with a teacher (T 2, half)": preset("scratch", **student),
        "student with a teacher (T 4, nine tenths)": preset("scratch", **student, **soft),
        "student with a teacher, features too": preset("scratch", **student, distil_features=10.0),
    }
    found: dict[str, list[Figure]] = {"teacher": [], **{name: [] for name in ways}}
    for seed in range(options.seeds):
        images = open_image_folder(data, validation=0.0, test=0.2, seed=seed)
        figure, teacher = _run(replace(teacher_config, seed=seed), images, work / f"teacher {seed}", report)
        found["teacher"].append(figure)
        for name, config in ways.items():
            taught = str(teacher.path) if "teacher" in name else ""
            config = replace(config, seed=seed, teacher=taught)
            found[name].append(_run(config, images, work / f"{name} {seed}", report)[0])
    for name, figures in found.items():
        _say(f"distil, {name}", figures, "seeds")


PARTS: dict[str, Callable[[Path, argparse.Namespace, Report], None]] = {
    "digits": digits,
    "faces": faces,
    "scenes": scenes,
    "distil": distil,
}


def _run(config: VitTrainConfig, images: ImageFolder, out: Path, report: Report) -> tuple[Figure, VitModel]:
    clock, cpu = time.perf_counter(), time.process_time()
    model = train(config, out, report, images=images).model
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    found = evaluate(model, images.test, RUNNER)
    print(
        f"  {out.name}: {found.right} of {found.images} right, {seconds:.0f} s, {cpu_seconds:.0f} s of CPU",
        flush=True,
    )
    return Figure(found.right, found.images, seconds, cpu_seconds, model.parameters), model


def _folds(every: ImageFolder, count: int) -> list[ImageFolder]:
    """Each class dealt out to `count` folds in one random order; the set has no copies."""
    order = np.random.default_rng(0).permutation(len(every.train))
    of: dict[int, int] = {}
    dealt = [0] * len(every.classes)
    for place in order:
        label = every.train[place][1]
        of[int(place)] = dealt[label] % count
        dealt[label] += 1
    return [
        replace(
            every,
            train=tuple(one for place, one in enumerate(every.train) if of[place] != fold),
            test=tuple(one for place, one in enumerate(every.train) if of[place] == fold),
        )
        for fold in range(count)
    ]


def _say(name: str, figures: Sequence[Figure], of_what: str) -> None:
    each = [figure.accuracy for figure in figures]
    spread = np.std(each, ddof=1) if len(each) > 1 else 0.0
    right, total = sum(figure.right for figure in figures), sum(figure.of for figure in figures)
    print(
        f"{name}: {np.mean(each):.2f} % (sd {spread:.2f}, {min(each):.2f} to {max(each):.2f}, {len(each)} {of_what}; "
        f"{right} of {total} right), {figures[0].weights:,} weights, "
        f"{np.mean([figure.seconds for figure in figures]):.0f} s each "
        f"({np.mean([figure.cpu_seconds for figure in figures]):.0f} s of CPU)",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
