"""Downloads over one connection and over several, from a server on this machine.

    python3 -m fastsd_lib benchmark download [--mb 512] [--rate 20] [--rounds 3] [--folder DIR]

The server, a process of its own, gives a file of `--mb` megabytes: first as fast as it can, then `--rate` MB/s to each
connection (a third of the file), as hosts do that share out their line. Each way runs in a process of its own, in turn;
start and imports do not count, the hash of the file and its fsync do. `urllib` only reads and writes: no check, no
resuming. The median of the rounds is shown, with the client's processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import socketserver
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.download_watch import SPARE_BYTES
from fastsd_lib.models.downloading import DownloadRules, Source, download_file

WAYS = ("urllib", "1 connection", "4 connections")
_PIECE = 256 << 10


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--rate", type=float, default=20.0, help="MB/s for each connection")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="on the disk that is written to; default: a temporary one"
    )
    parser.add_argument("--fetch", nargs=3, help=argparse.SUPPRESS)  # way, address, SHA-256: a child of ours
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return _serve(Path(options.serve))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="fastsd-download-") as work:
        if options.fetch:
            return _fetch(*options.fetch, Path(work))
        if shutil.disk_usage(work).free < 2 * options.mb * 1e6 + SPARE_BYTES:
            raise UserError(f"{work} has too little space.", fix="name another --folder, or less --mb.")
        for rate, mb in ((0.0, options.mb), (options.rate, max(options.mb // 3, 48))):
            _compare(Path(work), mb, rate, options.rounds)
    return 0


def _compare(work: Path, mb: int, rate: float, rounds: int) -> None:
    file = work / "model.bin"
    block = os.urandom(1_000_000)
    with file.open("wb") as out:
        for number in range(mb):
            out.write(number.to_bytes(8, "little") + block[8:])
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.download", "--serve", str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/{rate:g}/model.bin"
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                ran = subprocess.run(
                    [sys.executable, "-m", "benchmarks.download", "--folder", str(work), "--fetch", way, url, sha256],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                wall, cpu = map(float, ran.stdout.split())
                found[way].append((wall, cpu))
    finally:
        server.kill()
        server.wait()
        file.unlink()
    print(f"\n{mb} MB, {f'{rate:g} MB/s for each connection' if rate else 'no limit'}")
    for way, rows in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"  {way:14} {wall:7.2f} s  {mb / wall:8.0f} MB/s  {cpu:6.2f} s of processor time")


def _fetch(way: str, url: str, sha256: str, folder: Path) -> int:
    begun = time.monotonic(), sum(os.times()[:2])
    if way == "urllib":
        with urllib.request.urlopen(url) as answer, (folder / "plain").open("wb") as out:
            shutil.copyfileobj(answer, out, _PIECE)
    else:
        rules = DownloadRules(parts=int(way.split()[0]), http_allowed=True, private_allowed=True)
        download_file([Source(url, sha256)], folder, rules)
    print(time.monotonic() - begun[0], sum(os.times()[:2]) - begun[1])
    return 0


# ------------------------------------------------------------------ the server


def _serve(file: Path) -> int:
    handler = type("Handler", (_Handler,), {"file": file, "size": file.stat().st_size})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        print(server.server_address[1], flush=True)
        server.serve_forever()
    return 0


class _Handler(BaseHTTPRequestHandler):
    """/RATE/...: the file, parts of it, at RATE MB/s; 0 = no limit."""

    protocol_version = "HTTP/1.1"
    file: Path
    size: int

    def do_GET(self) -> None:
        rate = float(self.path.split("/")[1]) * 1e6
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        start, end = (int(asked[1]), int(asked[2] or self.size - 1) + 1) if asked else (0, self.size)
        end = min(end, self.size)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{self.size}")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.flush()
        begun = time.monotonic()
        with self.file.open("rb") as source:
            at = start
            while at < end:
                at += os.sendfile(self.connection.fileno(), source.fileno(), at, min(_PIECE, end - at))
                ahead = (at - start) / rate - (time.monotonic() - begun) if rate else 0
                if ahead > 0:
                    time.sleep(ahead)

    def log_message(self, *words: object) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main())
