"""Thousands of small orders in a row, and whether memory stays where it is: `fastsd benchmark soak --jobs 5000`.

Several clients send orders over HTTP in the mixture of a long day: sizes, samplers, seeds, prompts of one and two chunks,
second passes, picture to picture, clients that leave, interrupts, and requests that must be refused.
"""

from __future__ import annotations

import argparse
import base64
import csv
import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._serving import PATIENCE_S, PROMPTS, REPOSITORY, Helper, machine_state, request

SAMPLERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M Karras", "DPM++ SDE", "UniPC", "LMS", "Heun")
SIZES = ((64, 64), (64, 64), (96, 64), (64, 96), (32, 64))
EVERY = 50  # orders between two looks at the memory
SETTLED = 0.2  # of the run: what is loaded and kept by then is no leak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--most-minutes", type=float, default=8.0, help="the run ends then, however far it is"
    )
    parser.add_argument("--csv", type=Path, default=Path("soak.csv"))
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs" / "soak.png")
    options = parser.parse_args(arguments)
    print(
        f"{machine_state()}, {options.threads} threads, {options.clients} clients, {options.jobs} orders",
        flush=True,
    )
    server = Helper("server", model="embedded", threads=options.threads, batching=True)
    try:
        run = Run(server, options.jobs, options.clients, options.most_minutes * 60)
        run.go()
    finally:
        server.close()
    with options.csv.open("w", newline="") as file:
        csv.writer(file).writerows([("orders", "seconds", "rss_mib"), *run.curve])
    slope = slope_per_1000(run.curve)
    done, seconds, _ = run.curve[-1]
    print(f"{done} orders in {seconds:.0f} s: {dict(run.outcomes)}")
    print(f"errors: {len(run.errors)}", *run.errors[:5], sep="\n  ")
    first, last = (
        sum(rss for _, _, rss in part) / len(part) for part in (settled(run.curve)[:10], run.curve[-10:])
    )
    print(
        f"memory {first:.0f} MiB once settled, {last:.0f} MiB at the end, highest {server_peak(run.curve):.0f} MiB"
    )
    print(f"slope {slope:+.2f} MiB per 1000 orders after the first fifth; curve in {options.csv}")
    draw(run.curve, slope, len(run.errors)).save(options.picture)
    print(f"picture in {options.picture}")
    return 1 if run.errors else 0


class Run:
    """The orders of all clients, and what came of them."""

    def __init__(self, server: Helper, jobs: int, clients: int, most_s: float) -> None:
        self.server, self.jobs, self.clients = server, jobs, clients
        self.outcomes: Counter[str] = Counter()
        self.errors: list[str] = []
        self.curve: list[tuple[int, float, float]] = []  # (orders, seconds, MiB)
        self._next, self._lock, self._picture = 0, threading.Lock(), ""
        self._started = time.perf_counter()
        self._ends = self._started + most_s

    def go(self) -> None:
        self._look(0)
        threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._look(self._next)

    def _look(self, number: int) -> None:
        seconds = round(time.perf_counter() - self._started, 1)
        self.curve.append((number, seconds, round(self.server.rss_mib, 1)))
        if number and number % 500 == 0:
            print(f"  {number:6} orders, {seconds:5.0f} s, {self.curve[-1][2]:.0f} MiB", flush=True)

    def _client(self) -> None:
        while time.perf_counter() < self._ends:
            with self._lock:
                if self._next >= self.jobs:
                    return
                self._next += 1
                number = self._next
                if number % EVERY == 0:
                    self._look(number)
            try:
                outcome = self._order(number)
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = f"{type(error).__name__}: {error}"
            with self._lock:
                if outcome in ("drawn", "left", "interrupted", "refused"):
                    self.outcomes[outcome] += 1
                else:
                    self.errors.append(f"order {number}: {outcome}")

    def _order(self, number: int) -> str:
        chance = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.ready["port"], timeout=PATIENCE_S)
        try:
            if number % 23 == 0:  # one that cannot be followed
                status, answer = request(
                    connection, "POST", "txt2img", {"prompt": "a", "sampler_name": "none such"}
                )
                return "refused" if 400 <= status < 500 else f"answered {status}: {str(answer)[:200]}"
            if number % 17 == 0:  # a client that does not wait
                text = json.dumps(self._body(chance) | {"steps": 20})
                connection.request("POST", "/sdapi/v1/txt2img", text, {"Content-Type": "application/json"})
                time.sleep(chance.random() * 0.1)
                return "left"
            if number % 29 == 0:
                status, answer = request(connection, "POST", "interrupt", {})
                return "interrupted" if status == 200 else f"interrupt answered {status}"
            body, route = self._body(chance), "txt2img"
            if number % 5 == 0 and self._picture:
                body, route = body | {"init_images": [self._picture], "denoising_strength": 0.6}, "img2img"
            status, answer = request(connection, "POST", route, body)
            if status != 200:
                return f"answered {status}: {str(answer)[:200]}"
            pictures = answer["images"]
            if pictures and not base64.b64decode(pictures[0]).startswith(b"\x89PNG"):
                return "no PNG"
            if pictures and number % 50 == 1:
                self._picture = pictures[0]
            return "drawn"  # or cut short by another client's interrupt: A1111's ends whatever draws
        finally:
            connection.close()

    def _body(self, chance: random.Random) -> dict[str, Any]:
        width, height = chance.choice(SIZES)
        body = {
            "prompt": chance.choice(PROMPTS) * (chance.choice((1, 1, 1, 12))),
            "negative_prompt": chance.choice(("", "grey", "(blurred:1.3)")),
            "seed": chance.randrange(2**31),
            "steps": chance.choice((1, 2)),
            "cfg_scale": chance.choice((1, 4, 7.5)),
            "sampler_name": chance.choice(SAMPLERS),
            "width": width,
            "height": height,
            "batch_size": chance.choice((1, 1, 1, 2)),
        }
        if chance.random() < 0.03:
            body |= {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5, "hr_upscaler": "Latent"}
        return body


def settled(curve: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    return [point for point in curve if point[0] >= SETTLED * curve[-1][0]]


def slope_per_1000(curve: list[tuple[int, float, float]]) -> float:
    """MiB per 1000 orders, by least squares on what is settled."""
    points = [(number / 1000, rss) for number, _, rss in settled(curve)]
    x0, y0 = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - x0) * (y - y0) for x, y in points) / (sum((x - x0) ** 2 for x, _ in points) or 1.0)


def server_peak(curve: list[tuple[int, float, float]]) -> float:
    return max(rss for _, _, rss in curve)


def draw(curve: list[tuple[int, float, float]], slope: float, errors: int) -> Any:
    """The curve as a picture, memory from 0 so that small waves look small."""
    from PIL import Image, ImageDraw, ImageFont

    width, height, left, top, bottom = 960, 480, 90, 60, 420
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    most, last = max(server_peak(curve) * 1.15, 1.0), max(curve[-1][0], 1)
    step = next(size for size in (50, 100, 200, 500, 1000, 2000, 5000, 10**6) if most / size <= 8)

    def at(number: float, rss: float) -> tuple[float, float]:
        return left + (width - left - 30) * number / last, bottom - (bottom - top) * rss / most

    for rss in range(0, int(most), step):
        pen.line([at(0, rss), at(last, rss)], fill="#dddddd")
        pen.text((left - 10, at(0, rss)[1]), f"{rss}", fill="#444444", font=font, anchor="rm")
    for share in range(6):
        number = last * share / 5
        pen.text((at(number, 0)[0], bottom + 8), f"{number:.0f}", fill="#444444", font=font, anchor="mt")
    pen.line([at(number, rss) for number, _, rss in curve], fill="#1f5fbf", width=3, joint="curve")
    said = f"{curve[-1][0]} orders in {curve[-1][1]:.0f} s: {slope:+.1f} MiB per 1000, {errors} errors"
    pen.text((left, 20), f"Memory of the server, MiB.  {said}", fill="black", font=font)
    pen.text((width / 2, height - 8), "orders", fill="#444444", font=font, anchor="mb")
    return picture


if __name__ == "__main__":
    raise SystemExit(main())
