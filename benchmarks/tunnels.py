"""A public address whose client is killed again and again: `fastsd benchmark tunnels [--kills 20]`.

Two real tunnels on this machine, ssh -R through sshd and localtunnel through its server, the client or its minder killed
with signal 9 at random moments. Prints the seconds until a page came through the address again, what comes through and
how fast, and whether anything is left running afterwards.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from contextlib import suppress
from typing import Any

import httpx
import psutil

from fastsd_lib.webui.tunnels.supervisor import Tunnels
from tests.webui.tunnels import tunnel_hosts
from tests.webui.tunnels.tunnel_app import check_everything, served_app, visitor

GOAL_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark tunnels", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    before = {one.pid for one in psutil.process_iter()}
    missed = 0
    with served_app() as server:
        figures = check_everything(server.url.rstrip("/"))
        print(f"{'direct':12} upload {figures['upload_mb_per_s']:4.0f} MB/s", flush=True)
        for route, host in (("ssh", tunnel_hosts.sshd), ("localtunnel", tunnel_hosts.localtunnel_server)):
            try:
                with host() as (_, config):
                    missed += run(route, server, config, options)
            except tunnel_hosts.Unavailable as reason:
                print(f"{route:12} not here: {reason}")
    time.sleep(0.5)
    me = psutil.Process()
    left = [one.cmdline() for one in me.children(recursive=True) if one.pid not in before]
    left += tunnel_hosts.clients_running()
    print(f"left running: {len(left)}", *left, sep="\n  ")
    return 1 if missed or left else 0


def run(route: str, server: Any, config: Any, options: argparse.Namespace) -> int:
    """Kill and wait, `options.kills` times; how often it took longer than the goal."""
    chance, lines, seconds, addresses = random.Random(options.seed), [], [], set()
    began = time.monotonic()
    tunnels = Tunnels(server, config, say=lines.append)
    try:
        addresses.add(tunnels.start().url)
        opened_s = time.monotonic() - began
        figures = check_everything(tunnels.url)
        for _ in range(options.kills):
            time.sleep(chance.uniform(0, 2))
            minder = psutil.Process(tunnels.tunnel.pid)
            began = time.monotonic()
            chance.choice([minder, *minder.children(recursive=True)]).kill()
            while not page_comes(tunnels, killed=minder.pid):
                if time.monotonic() - began > 60:
                    raise SystemExit("\n".join([f"{route}: not back after 60 s", *lines[-20:]]))
                time.sleep(0.02)
            seconds.append(time.monotonic() - began)
            addresses.add(tunnels.url)
    finally:
        tunnels.close()
    print(
        f"{route:12} upload {figures['upload_mb_per_s']:4.0f} MB/s, first address after {opened_s:.1f} s; "
        f"{options.kills} kills: back after {statistics.median(seconds):.1f} s (longest {max(seconds):.1f} s), "
        f"{len(addresses)} address{'es' * (len(addresses) > 1)}",
        flush=True,
    )
    print("    " + " ".join(f"{one:.1f}" for one in seconds), flush=True)
    return sum(one > GOAL_S for one in seconds)


def page_comes(tunnels: Tunnels, killed: int) -> bool:
    tunnel = tunnels.tunnel
    if tunnel is None or tunnel.pid == killed:
        return False
    with suppress(httpx.HTTPError), visitor(tunnel.url) as user:
        return user.get("/").status_code == 200
    return False


if __name__ == "__main__":
    raise SystemExit(main())
