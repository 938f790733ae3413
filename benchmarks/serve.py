"""Pictures per second of our server beside diffusers' pipeline called one by one: `fastsd benchmark serve`.

Three processes with the same number of threads take turns, round by round, so that a busy machine slows them alike:
diffusers' StableDiffusionPipeline, our HTTP API with batching, and our HTTP API that draws one order at a time.
Clients stand in a fourth process and speak real HTTP on loopback; an answer is a PNG. Trust the ratios of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks._serving import Helper, machine_state
from fastsd_lib.models.registry import base_model

CLIENTS = (1, 4, 16)
WAITING = 48
LONGEST_S = 360  # no further round begins after that


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark serve", description=__doc__)
    parser.add_argument(
        "--sd15", action="store_true", help="random weights of SD 1.5's size at 256 px, 15 GiB"
    )
    parser.add_argument("--model", default="embedded", help="a Diffusers folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="20, with --sd15 2")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contestant")
    parser.add_argument("--parts", default="pictures,overhead,crowd", help="what is measured")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    with ExitStack() as stack:
        model, side_px, steps = options.model, None, options.steps or 20
        if options.sd15:
            from benchmarks._random_sd15 import save_random_sd15

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastsd-sd15-")))
            print("writing SD 1.5 with random weights ...", flush=True)
            model, side_px, steps = str(save_random_sd15(folder)), 256, options.steps or 2
        model = str(base_model(model).path)
        print(f"{machine_state()}, {options.threads} threads for each contestant; {model}", flush=True)

        def start(role: str, **more: object) -> Helper:
            helper = Helper(role, **more)
            stack.callback(helper.close)
            return helper

        common = {"model": model, "threads": options.threads}
        ours = start("server", **common, batching=True)
        side_px = side_px or ours.ready["side_px"]
        work = {"steps": steps, "side_px": side_px}
        clients = start("clients")
        if "pictures" in parts:
            # the large model has no room for a third copy
            others = {} if options.sd15 else {"one at a time": start("server", **common, batching=False)}
            peer = start("peer", **common)
            _pictures(peer, {"batching": ours, **others}, clients, work, options.rounds, options.sd15)
        if "overhead" in parts:
            _overhead(ours, clients, work, 2 if options.sd15 else 12)
        if "crowd" in parts:
            _crowd(ours, clients, work)
    return 0


def _pictures(
    peer: Helper, servers: dict[str, Helper], clients: Helper, work: dict[str, int], rounds: int, few: bool
) -> None:
    """Prints pictures per second and ratios to the peer's of the same round."""
    ways = [(name, count) for name in servers for count in CLIENTS]
    rates: dict[tuple[str, int], list[float]] = {("diffusers", 1): [], **{way: [] for way in ways}}
    ends = time.monotonic() + LONGEST_S
    for number in range(rounds + 1):  # the first round warms up
        if number > 1 and time.monotonic() > ends:
            break
        times = 1 if few or number == 0 else 3
        spent = peer.ask(times=times, **work)["seconds"]
        found = {("diffusers", 1): 0.0}
        for name, count in ways:
            if number == 0 and count != CLIENTS[-1]:
                continue
            each = 1 if few or number == 0 else {1: 4, 4: 2, 16: 2}[count]
            asked = {"port": servers[name].ready["port"], "clients": count, "each": each, **work}
            found[name, count] = count * each / clients.ask(what="draw", **asked)["seconds"]
        if number:  # once more: the load of the machine may have changed meanwhile
            spent += peer.ask(times=times, **work)["seconds"]
        found["diffusers", 1] = len(spent) / sum(spent)
        if number or rounds == 0:
            for way, rate in found.items():
                rates[way].append(rate)
            print(f"  round {number}: load {os.getloadavg()[0]:.1f}", flush=True)
    base = rates["diffusers", 1]
    print(
        f"pictures/s, {work['side_px']} px, {work['steps']} steps of DDIM with guidance, median of {len(base)} rounds"
    )
    for (name, count), values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        who = "one by one, no server" if name == "diffusers" else f"{count} client{'s' * (count > 1)}"
        print(
            f"  {name:<14} {who:<22} {statistics.median(values):7.3f}"
            f"   {min(values):6.3f} ... {max(values):6.3f}   {ratio:5.2f} x diffusers"
        )
    for name, helper in {"diffusers": peer, **servers}.items():
        print(f"  peak memory of {name:<14} {helper.peak_mib:7.0f} MiB")


def _overhead(ours: Helper, clients: Helper, work: dict[str, int], times: int) -> None:
    """What a picture costs beyond the U-Net's and VAE's own calls, and where."""
    spent: dict[str, list[float]] = {"bare": [], "engine": [], "HTTP": []}
    for _ in range(times):  # turn by turn
        for what in ("bare", "engine"):
            spent[what] += ours.ask(what=what, times=1, **work)["seconds"]
        spent["HTTP"] += clients.ask(what="draw", port=ours.ready["port"], clients=1, each=1, **work)[
            "latencies"
        ]
    ms = {what: 1000 * statistics.median(values) for what, values in spent.items()}
    print(f"one picture, median of {times}; load {os.getloadavg()[0]:.1f}")
    print(f"  U-Net and VAE alone        {ms['bare']:8.1f} ms")
    print(f"  a request to the engine    {ms['engine']:8.1f} ms   + {ms['engine'] - ms['bare']:.1f}")
    print(
        f"  over HTTP, PNG in base64   {ms['HTTP']:8.1f} ms   + {ms['HTTP'] - ms['bare']:.1f} in all"
        f" (best of each: + {1000 * (min(spent['HTTP']) - min(spent['bare'])):.1f})"
    )


def _crowd(ours: Helper, clients: Helper, work: dict[str, int]) -> None:
    """How soon the server answers while many wait."""
    found = clients.ask(what="crowd", port=ours.ready["port"], waiting=WAITING, **work)
    print(f"with {WAITING} orders waiting")
    for name, spent in found.items():
        ms = sorted(1000 * one for one in spent)
        print(f"  /{name:<10} median {statistics.median(ms):6.1f} ms, longest {ms[-1]:6.1f} ms of {len(ms)}")


if __name__ == "__main__":
    raise SystemExit(main())
