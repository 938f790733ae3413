"""Processes that the benchmarks of serving are made of, told what to do by lines of JSON: a server, its clients, the peer.

python3 -m benchmarks._serving server|clients|peer OPTIONS
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PROMPTS = (
    "a photo of a red star",
    "a blue circle on a green background",
    "a yellow square",
    "two white stars",
)
GUIDANCE = 7.5
PATIENCE_S = 600


class Helper:
    """A process of this file; `ask` waits for its answer. `rss_mib` and `peak_mib` are its memory."""

    def __init__(self, role: str, **options: Any) -> None:
        command = [sys.executable, "-m", "benchmarks._serving", role, json.dumps(options)]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready: dict[str, Any] = self._answer()

    def ask(self, **question: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(
            f"a helper of the benchmark ended with {self._process.wait()}; its lines stand above"
        )

    def _memory_mib(self, name: str) -> float:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:  # not Linux
            return float("nan")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name))

    @property
    def rss_mib(self) -> float:
        return self._memory_mib("VmRSS:")

    @property
    def peak_mib(self) -> float:
        return self._memory_mib("VmHWM:")

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def machine_state() -> str:
    load = os.getloadavg()
    return f"{os.cpu_count()} cores, load {load[0]:.1f} (1 min) {load[1]:.1f} (5 min)"


def order_body(number: int, side_px: int, steps: int) -> dict[str, Any]:
    """A request of /sdapi/v1/txt2img; each number another prompt and seed."""
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": number,
        "steps": steps,
        "cfg_scale": GUIDANCE,
        "sampler_name": "DDIM",
        "width": side_px,
        "height": side_px,
    }


# ------------------------------------------------------------------ what the processes do


def _server(model: str, threads: int, batching: bool) -> None:
    """Our HTTP API on a free port of loopback; "bare" times the model alone, "engine" a request without service."""
    import torch

    torch.set_num_threads(threads)
    from fastsd_lib.generation.library import LibraryFolders
    from fastsd_lib.generation.request import GenerationRequest
    from fastsd_lib.generation.resources import Library
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf
    from fastsd_lib.models.registry import base_model
    from fastsd_lib.webui.api import api_app
    from fastsd_lib.webui.door import LOOPBACK
    from fastsd_lib.webui.server import serve_app

    shelf = Shelf(Library.of(LibraryFolders()), base_model(model), "cpu", threads=threads)
    engine = shelf.engine()
    service = Service(shelf, batching=batching)
    server = serve_app(api_app(service), LOOPBACK, port=None)
    parts = engine.parts

    def bare(steps: int, side_px: int) -> None:
        side = side_px // parts.vae_factor
        x, text = torch.randn(2, 4, side, side), torch.randn(2, 77, parts.unet.config.cross_attention_dim)
        with torch.inference_mode():
            for step in range(steps):
                (parts.fast_unet or parts.unet)(
                    x, torch.full((2,), 999.0 - step), encoder_hidden_states=text, return_dict=False
                )
            parts.vae.decode(x[:1], return_dict=False)

    def drawn(steps: int, side_px: int) -> None:
        request = GenerationRequest(
            PROMPTS[0], inference_steps=steps, guidance_scale=GUIDANCE, width_px=side_px, height_px=side_px
        )
        engine.generate(request)

    def answer(what: str, times: int, steps: int, side_px: int) -> dict[str, Any]:
        return {"seconds": _timed({"bare": bare, "engine": drawn}[what], times, steps, side_px)}

    _converse(answer, {"port": server.port, "side_px": parts.side_px})
    service.close()
    server.close()


def _peer(model: str, threads: int) -> None:
    """diffusers' own pipeline, one picture after the other."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(steps: int, side_px: int, number: int = 0) -> None:
        pipeline(
            PROMPTS[number % len(PROMPTS)],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            height=side_px,
            width=side_px,
            generator=torch.Generator().manual_seed(number),
        )

    _converse(lambda times, steps, side_px: {"seconds": _timed(draw, times, steps, side_px)}, {})


def _clients() -> None:
    """HTTP clients, each a thread with a connection of its own."""

    def draw(port: int, clients: int, each: int, steps: int, side_px: int) -> dict[str, Any]:
        def one(client: int) -> list[float]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            spent = []
            for number in range(each):
                started = time.perf_counter()
                status, answer = request(
                    connection, "POST", "txt2img", order_body(client * each + number, side_px, steps)
                )
                spent.append(time.perf_counter() - started)
                if status != 200 or not base64.b64decode(answer["images"][0]).startswith(b"\x89PNG"):
                    raise SystemExit(f"the server answered {status}: {str(answer)[:300]}")
            return spent

        with ThreadPoolExecutor(clients) as pool:
            started = time.perf_counter()
            latencies = [spent for found in pool.map(one, range(clients)) for spent in found]
            return {"seconds": time.perf_counter() - started, "latencies": latencies}

    def crowd(port: int, waiting: int, steps: int, side_px: int, asked: int = 40) -> dict[str, Any]:
        """How long /progress and /interrupt take while so many orders wait."""

        def order(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            request(connection, "POST", "txt2img", order_body(number, side_px, steps))

        threads = [threading.Thread(target=order, args=(number,)) for number in range(waiting)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        progress, interrupt = [], []
        for _ in range(asked):
            started = time.perf_counter()
            request(connection, "GET", "progress?skip_current_image=true")
            progress.append(time.perf_counter() - started)
            time.sleep(0.01)
        while any(thread.is_alive() for thread in threads):
            started = time.perf_counter()
            request(connection, "POST", "interrupt", {})
            interrupt.append(time.perf_counter() - started)
            time.sleep(0.05)
        return {"progress": progress, "interrupt": interrupt}

    _converse(lambda what, **options: {"draw": draw, "crowd": crowd}[what](**options), {})


def request(
    connection: http.client.HTTPConnection, method: str, route: str, body: dict[str, Any] | None = None
) -> tuple[int, Any]:
    """(status, answer) of a route of /sdapi/v1."""
    text = None if body is None else json.dumps(body)
    connection.request(method, f"/sdapi/v1/{route}", text, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"null")


def _timed(work: Callable[..., None], times: int, *arguments: Any) -> list[float]:
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        work(*arguments)
        spent.append(time.perf_counter() - started)
    return spent


def _converse(answer: Callable[..., dict[str, Any]], ready: dict[str, Any]) -> None:
    """Answer each line on the standard input until it ends."""
    print(json.dumps({"ready": True, **ready}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    from fastsd_lib.environment.threads import spin_briefly

    spin_briefly()
    {"server": _server, "peer": _peer, "clients": _clients}[sys.argv[1]](**json.loads(sys.argv[2]))
