"""Pictures per second and waiting times of the ViT server: `fastsd benchmark vit_serve`.

Three processes: our server with batches, our server that computes one picture at a time, and the clients, who send JPEG
photographs over HTTP on loopback. The servers take turns, round by round, so that a busy machine slows both alike; the
model alone, without a server, is asked in the same rounds. Trust the ratios, and on a busy machine the processor time
of the server (CPU ms). At the end 71 hostile requests are sent, which must be refused.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
BODY_MIB = 16
PATIENCE_S = 600.0


def main(arguments: list[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--helper"]:
        return _helper(json.loads(given[1]))
    parser = argparse.ArgumentParser(prog="fastsd benchmark vit_serve", description=__doc__)
    parser.add_argument("--model", help="a model folder; without it ViT-B/16 with random weights")
    parser.add_argument("--tiny", action="store_true", help="the embedded model in place of ViT-B/16")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--each", type=int, default=4, help="pictures of each client in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0 = all")
    parser.add_argument("--long-side", type=int, default=1280, help="of the photographs")
    options = parser.parse_args(given)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsd-vit-serve-")))
        model = options.model or (
            "embedded" if options.tiny else str(_random_vit_b(folder / "vit-b16-random"))
        )
        common = {
            "model": model, "backend": options.backend, "precision": options.precision, "threads": options.threads,
        }  # fmt: skip
        files = _photographs(folder / "photos", options.long_side)
        batching = _Child(stack, role="server", max_batch=options.max_batch, **common)
        single = _Child(stack, role="server", max_batch=1, **common)
        clients = _Child(stack, role="clients", folder=str(files))
        load = os.getloadavg()
        print(
            f"{Path(model).name} on {batching.ready['runner']}; {os.cpu_count()} cores, load {load[0]:.1f}; photographs of"
            f" {options.long_side} px; batches of at most {options.max_batch}", flush=True,
        )  # fmt: skip
        rounds = [
            _round(batching, single, clients, options, number) for number in range(options.rounds + 1)
        ]  # the first one warms up
        fine = _tell(rounds[1:], options)
        refused = clients.ask(what="hostile", port=batching.ready["port"])
        print(
            f"hostile requests: {refused['sent']} sent, {refused['sent'] - len(refused['wrong'])} refused as they should be"
        )
        for line in refused["wrong"]:
            print(f"  not refused: {line}")
        after = clients.ask(what="one", port=batching.ready["port"])
        print(
            f"afterwards the server answers {after['status']}; its memory: {batching.peak_mib:.0f} MiB at most"
        )
    return 0 if fine and not refused["wrong"] and after["status"] == 200 else 1


def _round(batching: _Child, single: _Child, clients: _Child, options: Any, number: int) -> dict[str, Any]:
    crowd = {"clients": options.clients, "each": options.each if number else 1}
    alone = {"clients": 1, "each": max(options.clients // 4, 4) if number else 2}
    found: dict[str, Any] = {}
    offline = 4 * options.max_batch if number else options.max_batch
    found["offline"] = batching.ask(what="offline", pictures=offline, folder=clients.given["folder"])
    for name, server, asked in (
        ("crowd", batching, crowd),
        ("crowd, one at a time", single, crowd),
        ("serial", batching, alone),
    ):
        before = server.ask(what="so far")
        found[name] = clients.ask(what="crowd", port=server.ready["port"], **asked)
        after = server.ask(what="so far")
        pictures = asked["clients"] * asked["each"]
        found[name]["cpu_ms"] = 1000 * (after["cpu_s"] - before["cpu_s"]) / pictures
        sizes = {int(size): count - before["sizes"].get(size, 0) for size, count in after["sizes"].items()}
        found[name]["sizes"] = sizes
    if number:
        rates = ", ".join(f"{name} {value['rate']:.2f}" for name, value in found.items())
        print(f"  round {number}: load {os.getloadavg()[0]:.1f}; {rates} pictures/s", flush=True)
    return found


def _tell(rounds: list[dict[str, Any]], options: Any) -> bool:
    """Prints the table; whether nobody met an error and batches were formed."""
    names = {
        "offline": "the model and decoding alone, no server",
        "crowd": f"{options.clients} clients, batches",
        "crowd, one at a time": f"{options.clients} clients, batching off",
        "serial": "one client, one request after the other",
    }
    print(f"{'':42} pictures/s    p50 ms    p99 ms   of offline   CPU ms each   errors")
    errors = 0
    for name, words in names.items():
        rate = statistics.median(one[name]["rate"] for one in rounds)
        share = statistics.median(one[name]["rate"] / one["offline"]["rate"] for one in rounds)
        waits = sorted(wait for one in rounds for wait in one[name].get("waits_ms", ()))
        bad = sum(one[name].get("errors", 0) for one in rounds)
        errors += bad
        told = f"{_share(waits, 0.5):10.0f}{_share(waits, 0.99):10.0f}" if waits else " " * 20
        cpu_ms = statistics.median(one[name]["cpu_ms"] for one in rounds)
        print(f"{words:42} {rate:10.2f}{told}   {share:10.0%}   {cpu_ms:11.1f}   {bad if waits else '':>6}")
    sizes: dict[int, int] = {}
    for one in rounds:
        for size, count in one["crowd"]["sizes"].items():
            sizes[size] = sizes.get(size, 0) + count
    mean = sum(size * count for size, count in sizes.items()) / max(sum(sizes.values()), 1)
    shown = ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items()) if count)
    print(f"batches of the crowd: {mean:.1f} pictures on average ({shown})")
    for base in ("crowd, one at a time", "serial"):
        ratio = statistics.median(one["crowd"]["rate"] / one[base]["rate"] for one in rounds)
        print(f"batches / {names[base]}: {ratio:.2f} x the pictures per second")
    return errors == 0 and mean > 1.5


def _share(values: list[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)]


# ------------------------------------------------------------------ the processes


class _Child:
    """A process of this file that answers lines of JSON."""

    def __init__(self, stack: ExitStack, **given: Any) -> None:
        self.given = given
        command = [sys.executable, "-m", "benchmarks.vit_serve", "--helper", json.dumps(given)]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self._close)
        self.ready = self._answer()

    def ask(self, **question: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    @property
    def peak_mib(self) -> float:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:  # not Linux
            return float("nan")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"the benchmark's {self.given['role']} ended with {self._process.wait()}; see above")

    def _close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _helper(given: dict[str, Any]) -> int:
    {"server": _server, "clients": _clients}[given.pop("role")](**given)
    return 0


def _converse(answer: Any, ready: dict[str, Any]) -> None:
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def _server(model: str, backend: str, precision: str, threads: int, max_batch: int) -> None:
    """Our server; "offline" runs the same model on the same files without HTTP, as `fastsd vit classify` does."""
    from fastsd_lib.vit.classify import Classifier
    from fastsd_lib.vit.config import RunnerConfig
    from fastsd_lib.webui.vit_server.config import ServeConfig
    from fastsd_lib.webui.vit_server.running import serve

    config = RunnerConfig(backend, precision, threads=threads, batch_size=max_batch)
    limits = {"body_mib": BODY_MIB, "timeout_s": PATIENCE_S, "silence_s": 2.0, "body_s": 10.0}
    running = serve(model, ServeConfig(port=None, max_batch=max_batch, queue_limit=1024, **limits), config)
    classifiers: list[Classifier] = []

    def answer(what: str, pictures: int = 0, folder: str = "") -> dict[str, Any]:
        if what == "so far":
            sizes = {str(size): times for size, times in running.service.batchers["labels"].sizes.items()}
            return {"sizes": sizes, "cpu_s": time.process_time()}
        if not classifiers:
            classifiers.append(Classifier(running.service.model, config))
        files = sorted(Path(folder).iterdir())
        began, cpu_s = time.perf_counter(), time.process_time()
        told = list(classifiers[0].classify([files[n % len(files)] for n in range(pictures)]))
        assert len(told) == pictures and not any(one.error for one in told)
        spent_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        return {"rate": pictures / spent_s, "cpu_ms": 1000 * cpu_s / pictures}

    _converse(answer, {"port": running.server.port, "runner": running.service.runner.name})
    for classifier in classifiers:
        classifier.close()
    running.close()


def _clients(folder: str) -> None:
    from benchmarks import _hostile

    pictures = [file.read_bytes() for file in sorted(Path(folder).iterdir())]

    def answer(what: str, port: int, clients: int = 1, each: int = 1) -> dict[str, Any]:
        if what == "crowd":
            return asyncio.run(_crowd(port, clients, each, pictures))
        if what == "one":
            return {"status": _hostile.send(port, _hostile.Hostile("honest", pictures[0], "image/jpeg"))[0]}
        names: list[str] = []
        wrong = _hostile.refusals(port, BODY_MIB << 20, lambda name, status: names.append(name))
        return {"sent": len(names), "wrong": wrong}

    _converse(answer, {})


async def _crowd(port: int, clients: int, each: int, pictures: list[bytes]) -> dict[str, Any]:
    """So many clients, each with a connection of its own, who ask again as soon as they are answered."""
    import httpx

    waits, errors = [], 0

    async def client(number: int, line: httpx.AsyncClient) -> None:
        nonlocal errors
        for again in range(each):
            picture = pictures[(number * each + again) % len(pictures)]
            began = time.perf_counter()
            found = await line.post(
                f"http://127.0.0.1:{port}/predict", content=picture, headers={"content-type": "image/jpeg"}
            )
            waits.append(1000 * (time.perf_counter() - began))
            errors += found.status_code != 200 or not found.json()[0]["label"]

    async with AsyncExitStack() as stack:
        lines = [  # before the clock runs; to read certificates takes longer than a picture
            await stack.enter_async_context(
                httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S, verify=False)
            )
            for _ in range(clients)
        ]
        began = time.perf_counter()
        await asyncio.gather(*(client(number, line) for number, line in enumerate(lines)))
        spent = time.perf_counter() - began
    return {"rate": clients * each / spent, "waits_ms": waits, "errors": errors}


# ------------------------------------------------------------------ what they work on


def _random_vit_b(folder: Path) -> Path:
    """ViT-B/16-224 with random weights: as fast as a trained one."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    print("writing ViT-B/16 with random weights ...", flush=True)
    torch.manual_seed(0)
    names = {number: f"class {number}" for number in range(1000)}
    model = ViTForImageClassification(
        ViTConfig(id2label=names, label2id={name: n for n, name in names.items()})
    )
    model.save_pretrained(folder)
    size = {"height": 224, "width": 224}
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size, "resample": 2, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _photographs(folder: Path, long_side: int, count: int = 24) -> Path:
    """Real photographs of scikit-image, cut differently."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    chance = random.Random(3)
    whole = [
        Image.fromarray(getattr(data, name)()).convert("RGB")
        for name in ("astronaut", "coffee", "cat", "rocket")
    ]
    for number in range(count):
        photo, share = whole[number % len(whole)], chance.uniform(0.5, 1.0)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = chance.randint(0, photo.width - width), chance.randint(0, photo.height - height)
        size = (long_side, max(long_side * height // width, 1))
        file = io.BytesIO()
        photo.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height)).save(
            file, "JPEG", quality=90
        )
        (folder / f"{number:03d}.jpg").write_bytes(file.getvalue())
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
