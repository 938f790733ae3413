"""What the door costs in front of a program that is not ours: `fastsd benchmark proxy`.

Three processes take turns with the same client, round by round: a small server alone, the same server behind the
guard in its own process, and the guard with the reverse proxy in front of the first. Uploads and downloads of 64 MiB,
small requests one after the other and sixteen at a time, all on loopback. Trust the ratios to "direct" of the medians.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MIB = 64
PIECE = bytes(1 << 18)
PIECES = (MIB << 20) // len(PIECE)
SMALL, CROWD = 200, 16
USER, PASSWORD = "me", "the password of this benchmark"
SIGNED = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


async def small_server(scope: Any, receive: Any, send: Any) -> None:
    """GET /big: 64 MiB; POST: how many bytes came; else a few bytes."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    size, more = 0, scope["method"] == "POST"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    big = scope["path"] == "/big"
    body = b"" if big else str(size).encode()
    length = MIB << 20 if big else len(body)
    headers = [(b"content-length", str(length).encode()), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(PIECES if big else 0):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": body})


def serve(role: str, upstream: str) -> None:
    """One contestant: prints its port, runs until its standard input ends."""
    from fastsd_lib.webui.answers import FOREIGN
    from fastsd_lib.webui.asked import FOREIGN_LIMITS
    from fastsd_lib.webui.door import Door
    from fastsd_lib.webui.reverse_proxy import serve_proxy
    from fastsd_lib.webui.server import serve_app

    door = Door(users={USER: PASSWORD})
    if role == "proxy":
        port = serve_proxy(upstream, door, None).port
    elif role == "guard":
        port = serve_app(small_server, door, None, limits=FOREIGN_LIMITS, rules=FOREIGN).port
    else:
        import uvicorn

        config = uvicorn.Config(small_server, port=0, http="h11", log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
    print(port, flush=True)
    sys.stdin.read()


class Contestant:
    def __init__(self, role: str, upstream: str = "") -> None:
        command = [sys.executable, "-m", "benchmarks.proxy", "--serve", role, "--upstream", upstream]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._process.stdout.readline())

    def memory_mib(self) -> float:
        """The most that it held until now."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:  # not Linux
            return float("nan")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def processor_s(self) -> float:
        """What it has used of the processor, which other programs on the machine change little."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # not Linux
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user, system

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def ask(line: http.client.HTTPConnection, path: str, body: Any = None) -> int:
    """One request, its answer read; how many bytes that had."""
    headers = dict(SIGNED)
    if body is not None:
        headers |= {"Content-Length": str(MIB << 20), "Content-Type": "application/octet-stream"}
    line.request("POST" if body is not None else "GET", path, body=body, headers=headers)
    answer, size = line.getresponse(), 0
    assert answer.status == 200, answer.status
    while piece := answer.read(1 << 18):
        size += len(piece)
    return size


def measure(contestant: Contestant) -> dict[str, float]:
    """Speeds as a client sees them, and what the contestant's own process used of the processor."""
    line = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=120)
    ask(line, "/")
    used_s = 0.0

    def timed(work: Callable[[], object]) -> float:
        nonlocal used_s
        begun, used = time.perf_counter(), contestant.processor_s()
        work()
        used_s = contestant.processor_s() - used
        return time.perf_counter() - begun

    def one_of_the_crowd(_: int) -> None:
        own = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=120)
        for _ in range(SMALL // CROWD):
            ask(own, "/")
        own.close()

    figures = {"up MiB/s": MIB / timed(lambda: ask(line, "/up", (PIECE for _ in range(PIECES))))}
    figures["down MiB/s"] = MIB / timed(lambda: ask(line, "/big"))
    figures["CPU ms/MiB down"] = 1000 * used_s / MIB
    figures["requests/s"] = SMALL / timed(lambda: [ask(line, "/") for _ in range(SMALL)])
    figures["CPU ms/request"] = 1000 * used_s / SMALL
    with ThreadPoolExecutor(CROWD) as crowd:
        crowd_s = timed(lambda: list(crowd.map(one_of_the_crowd, range(CROWD))))
    figures[f"requests/s by {CROWD}"] = SMALL // CROWD * CROWD / crowd_s
    line.close()
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=("direct", "guard", "proxy"), help=argparse.SUPPRESS)
    parser.add_argument("--upstream", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.upstream)
        return 0
    direct = Contestant("direct")
    all_of_them = {"direct": direct, "guard": Contestant("guard")}
    all_of_them["guard + proxy"] = Contestant("proxy", f"http://127.0.0.1:{direct.port}")
    try:
        rounds = [
            {name: measure(one) for name, one in all_of_them.items()} for _ in range(options.rounds + 1)
        ]
        rounds = rounds[1:]  # the first warms up
        held = {name: one.memory_mib() for name, one in all_of_them.items()}
    finally:
        for one in all_of_them.values():
            one.close()
    medians = {
        name: {what: statistics.median(one[name][what] for one in rounds) for what in rounds[0][name]}
        for name in all_of_them
    }
    if options.json:
        print(json.dumps({"medians": medians, "peak_mib": held}))
        return 0
    print(f"medians of {options.rounds} rounds; in brackets as a multiple of direct")
    for what, plain in medians["direct"].items():
        shown = [f"{name} {one[what]:8.2f} ({one[what] / plain:4.2f})" for name, one in medians.items()]
        print(f"{what:18}" + "   ".join(shown))
    print(f"{'peak MiB':18}" + "   ".join(f"{name} {size:8.0f}       " for name, size in held.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
