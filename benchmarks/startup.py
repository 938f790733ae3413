"""How long `fastsd webui --no-ui` takes until it answers, and which imports take it: `fastsd benchmark startup`.

Each start is a new process with a folder of its own. "CPU" is what the process computed until then: on a quiet machine the
wait is about that, on a busy one it is the figure to compare. The import profile is Python's own (-X importtime), so
slower than a plain start.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks._serving import PATIENCE_S, REPOSITORY, machine_state, order_body, request

MOST_S = 180


class Start(NamedTuple):
    ready_s: float
    cpu_s: float
    picture_s: float  # the first order: one picture of one step
    rss_mib: float
    log: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with-page", action="store_true", help="also with the page in the browser")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--imports", type=int, default=12, metavar="N", help="lines of the import profile")
    options = parser.parse_args(arguments)
    print(machine_state())
    ways = {"--no-ui": ["--no-ui"], **({"with page": []} if options.with_page else {})}
    found: dict[str, list[Start]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, words in ways.items():
            found[way].append(_start([*words, "--model", options.model]))
    for way, starts in found.items():
        middle = [statistics.median(values) for values in list(zip(*starts, strict=True))[:4]]
        print(
            f"fastsd webui {way:<10} answers after {middle[0]:5.1f} s ({', '.join(f'{one.ready_s:.1f}' for one in starts)}),"
            f" CPU {middle[1]:4.1f} s, first picture {middle[2]:.2f} s later, {middle[3]:.0f} MiB"
        )
    if options.imports:
        _profile(
            _start(["--no-ui", "--model", options.model], {"PYTHONPROFILEIMPORTTIME": "1"}).log,
            options.imports,
        )
    return 0


def _start(words: list[str], surroundings: dict[str, str] | None = None) -> Start:
    """Start the server, wait until it answers, draw once, end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        place = ["--folder", f"{folder}/data", "--port", str(port), "--no-auth"]
        started = time.perf_counter()
        with log.open("w") as lines:
            process = subprocess.Popen(
                [sys.executable, "-m", "fastsd_lib", "webui", *words, *place],
                cwd=REPOSITORY, env=os.environ | (surroundings or {}), stdout=lines, stderr=lines,
            )  # fmt: skip
        try:
            while not _answers(port):
                if process.poll() is not None or time.perf_counter() - started > MOST_S:
                    raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.02)
            ready_s, cpu_s, rss_mib = time.perf_counter() - started, *_used(process.pid)
            before = time.perf_counter()
            status, answer = request(
                http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S),
                "POST",
                "txt2img",
                order_body(1, 64, 1),
            )
            if status != 200:
                raise SystemExit(f"the server answered {status}: {json.dumps(answer)[:300]}")
            return Start(ready_s, cpu_s, time.perf_counter() - before, rss_mib, log.read_text())
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException, ValueError):
        return request(connection, "GET", "progress?skip_current_image=true")[0] == 200
    return False


def _used(process: int) -> tuple[float, float]:
    """(CPU seconds, MiB in memory) of a process; not a number where there is no /proc."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
        return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float("nan"), float("nan")


def _profile(log: str, most: int) -> None:
    """The packages whose own modules take longest, and the imports that take longest with all they bring."""
    own: dict[str, float] = defaultdict(float)
    whole: list[tuple[float, str]] = []
    for line in log.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            name = parts[2].strip()
            own[name.split(".")[0]] += int(parts[0]) / 1e6
            whole.append((int(parts[1]) / 1e6, name))
    print(
        f"imports of the --no-ui server: {len(whole)} modules, {sum(own.values()):.1f} s while they are profiled"
    )
    heavy = sorted(own.items(), key=lambda one: -one[1])[:most]
    print("  own time by package:    " + ", ".join(f"{name} {spent:.2f} s" for name, spent in heavy))
    print("  with all they bring:")
    for spent, name in sorted(whole, reverse=True)[:most]:
        print(f"    {spent:6.2f} s  {name}")


if __name__ == "__main__":
    raise SystemExit(main())
