"""Pictures per second from JPEG files to labels, beside transformers.pipeline: `python3 -m fastsd_lib benchmark vit`.

ViT-B/16-224 with random weights, photographs of 2 to 12 megapixels. Each way runs in a process of its own (memory is the
most that it ever held); the ways take turns on pieces of the photographs, so that a busy machine slows them alike: trust
the ratios. Then the model alone as a share of the fastest matrix product of the same run, what preparing a picture costs
and how far it is from transformers' own, and the time from a fresh program to the first label.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import _vit_ways as ways
from benchmarks._vit_photos import make_photos, megapixels
from fastsd_lib.core.errors import UserError

PREPARED = ((500, 375), (1920, 1080), (4032, 3024))
WARM_UP = 8


class Way:
    """A process that is asked line by line."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks._vit_ways", name, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.name, self.seconds, self.pictures = name, 0.0, 0
        self.labels: list[str] = []
        self.opened = self._answer()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def classify(self, paths: list[Path], count: bool = True) -> None:
        told = self.ask(do="classify", paths=[str(path) for path in paths])
        if count:
            self.seconds += told["seconds"]
            self.pictures += len(paths)
            self.labels += told["labels"]

    @property
    def per_s(self) -> float:
        return self.pictures / self.seconds

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, told = self._process.communicate()
            raise UserError(
                f"{self.name} ended: {told.strip().splitlines()[-1:]}", fix="leave it out with --ways."
            )
        return json.loads(line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastsd benchmark vit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keeps the model and photos for the next time (1 GB)")
    parser.add_argument("--count", type=int, default=500, help="photographs")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the ways take")
    names = [ways.PIPELINE, ways.PIPELINE_16, "fastsd bf16", "fastsd int8"]
    parser.add_argument("--ways", nargs="+", default=names, choices=[*names, "fastsd fp32"])
    parser.add_argument("--alone-s", type=float, default=6.0, help="seconds for each turn of the model alone")
    parser.add_argument("--skip", nargs="+", default=[], choices=["classify", "alone", "prepare", "cold"])
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsd-vit-")))
        stack.enter_context(_own_cache(work))
        began = time.perf_counter()
        photos = make_photos(work / "photos", options.count)
        ways.random_vit_b(work / ways.MODEL)
        if "fastsd int8" in options.ways:
            ways.int8_of(work / ways.MODEL, work / ways.INT8, photos[:16])
        elif set(ways.OURS) & set(options.ways):
            ways.trace_once(work / ways.MODEL)  # the first use of a model alone takes this time and memory
        sizes = megapixels(photos)
        print(
            f"ViT-B/16-224, random weights; {len(photos)} JPEGs, {min(sizes):.1f} to {max(sizes):.1f} megapixels,"
            f" mean {sum(sizes) / len(sizes):.1f}, made in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        if "classify" not in options.skip or "alone" not in options.skip:
            _speed(options, work, photos)
        if "prepare" not in options.skip:
            _prepare(work)
        if "cold" not in options.skip:
            _cold(work, photos[0], options.ways)
    return 0


def _speed(options: argparse.Namespace, work: Path, photos: list[Path]) -> None:
    with ExitStack() as stack:
        running = []
        for name in options.ways:
            running.append(Way(name, work))
            stack.callback(running[-1].end)
        if "classify" not in options.skip:
            _classify(running, photos, options.rounds)
        if "alone" not in options.skip:
            gemm = Way(ways.GEMM, work)
            stack.callback(gemm.end)
            _alone([way for way in running if way.name in ways.OURS], gemm, options, work)


def _classify(running: list[Way], photos: list[Path], rounds: int) -> None:
    for way in running:
        way.classify(photos[:WARM_UP], count=False)
    pieces = [photos[start::rounds] for start in range(rounds)]
    for number, piece in enumerate(pieces):
        for way in running[number % len(running) :] + running[: number % len(running)]:
            way.classify(piece)
    print(f"\nfrom JPEG files to labels, {rounds} turns each:")
    pipelines = [way for way in running if way.name not in ways.OURS]
    loop = next((way.per_s for way in pipelines if way.name == ways.PIPELINE), None)
    best = max((way.per_s for way in pipelines), default=None)
    for way in running:
        ratios = ""
        if way.name in ways.OURS and best:
            ratios = f"   {way.per_s / best:.2f} of the better pipeline" + (
                f", {way.per_s / loop:.2f} of the loop" if loop else ""
            )
        peak = way.ask(do="peak")["peak_mib"]
        print(
            f"  {way.name:<24} {way.per_s:6.2f} pictures/s   peak memory {peak:6.0f} MiB{ratios}", flush=True
        )
    first = running[0]
    for way in running[1:]:
        same = sum(a == b for a, b in zip(first.labels, way.labels, strict=True)) / len(first.labels)
        print(f"  {way.name} names the same first label as {first.name}: {same:.1%} (random weights)")


def _alone(ours: list[Way], gemm: Way, options: argparse.Namespace, work: Path) -> None:
    flops = ways.flops_per_picture(work / ways.MODEL)
    print(f"\nthe model alone, batches of 16 ({flops / 1e9:.2f} GFLOP a picture), best of 3 turns each:")
    for way in ours:
        precision = ways.OURS[way.name]
        peaks, rates = [], []
        for _ in range(3):
            peaks.append(gemm.ask(do="gemm", precision=precision)["gflops"])
            rates.append(way.ask(do="alone", seconds=options.alone_s)["per_s"])
        share = max(rates) * flops / 1e9 / max(peaks)
        print(
            f"  {way.opened['name']:<24} {max(rates):6.2f} pictures/s   {share:.0%} of the {precision} matrix product's"
            f" {max(peaks):,.0f} GFLOP/s",
            flush=True,
        )


def _prepare(work: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import ViTImageProcessorPil

    from fastsd_lib.vit.model import open_model
    from fastsd_lib.vit.transform import Transform

    ours, theirs = Transform.of(open_model(work / ways.MODEL)), ViTImageProcessorPil()
    print("\npreparing a picture from its file, one thread, processor time (median of 8):")
    for width, height in PREPARED:
        paths = make_photos(work / f"prepare_{width}", 8, ((width, height),))
        spent: dict[str, list[float]] = {"ours": [], "theirs": []}
        errors = []
        for path in [*paths[:1], *paths]:
            began = time.process_time()
            mine = ours.open_and_apply(path)
            spent["ours"].append(time.process_time() - began)
            began = time.process_time()
            with Image.open(path) as image:
                other = theirs(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
            spent["theirs"].append(time.process_time() - began)
            errors.append(np.abs(mine - other) * 127.5)
        fast, slow = (1000 * sorted(spent[name][1:])[4] for name in ("ours", "theirs"))
        print(
            f"  {width}x{height:<5} {fast:6.1f} ms, transformers {slow:6.1f} ms; apart by {np.mean(errors):.3f} of 255"
            f" levels on average, {np.max(errors):.1f} at most",
            flush=True,
        )


def _cold(work: Path, photo: Path, names: list[str]) -> None:
    """A fresh program for each: what importing costs, then what opening the model and naming one picture costs."""
    print("\nfrom a fresh program to the first label (second start: graphs are in the cache):")
    for name in names:
        if name == ways.PIPELINE_16:
            continue
        told = [_first_label(name, work, photo) for _ in range(3)]
        told.sort(key=lambda one: one["whole_s"])
        print(
            f"  {name:<24} {told[1]['whole_s']:5.2f} s, of it imports {told[1]['import_s']:.2f} s,"
            f" model and label {told[1]['model_s']:.2f} s",
            flush=True,
        )


def _first_label(name: str, work: Path, photo: Path) -> dict[str, float]:
    folder = work / (ways.INT8 if name == "fastsd int8" else ways.MODEL)
    if name in ways.OURS:
        imports = (
            "from fastsd_lib.vit.classify import Classifier\nfrom fastsd_lib.vit.config import RunnerConfig"
        )
        imports += "\nfrom fastsd_lib.vit import runner_openvino\nimport openvino"
        precision = "auto" if name == "fastsd int8" else ways.OURS[name]
        call = f"next(Classifier(sys.argv[1], RunnerConfig(precision={precision!r})).classify(sys.argv[2])).label"
    else:
        imports = "from transformers import pipeline"
        call = "pipeline('image-classification', model=sys.argv[1])(sys.argv[2])[0]['label']"
    program = (
        f"import sys, time, json\nbegan = time.perf_counter()\n{imports}\nloaded = time.perf_counter()\n{call}\n"
        "ended = time.perf_counter()\nprint(json.dumps([loaded - began, ended - loaded]), flush=True)"
    )
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(photo)], capture_output=True, text=True, check=True
    )
    imported, modelled = json.loads(ran.stdout.splitlines()[-1])
    return {"whole_s": time.perf_counter() - began, "import_s": imported, "model_s": modelled}


@contextmanager
def _own_cache(work: Path) -> Iterator[None]:
    """Graphs are kept in the work folder, for the processes as well, and the user's cache stays as it is."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


if __name__ == "__main__":
    raise SystemExit(main())
