"""A supervisor whose words and addresses can be looked at."""

from __future__ import annotations

import time

from tunnel_app import visitor

from fastsd_lib.webui.tunnels.config import Tunnel, TunnelConfig
from fastsd_lib.webui.tunnels.supervisor import Patience, Tunnels

QUICK = Patience(health_s=0.5, backoff_s=(0.1, 0.2), limit_s=8.0, answer_s=1.0, round_s=0.5)


class Watched(Tunnels):
    """Keeps what was said and every address that was up."""

    def __init__(self, origin, config: TunnelConfig, patience: Patience = QUICK) -> None:
        self.said: list[str] = []
        self.up: list[Tunnel] = []
        super().__init__(origin, config, self.up.append, self.said.append, patience)

    def wait_for(self, count: int, limit_s: float = 20.0) -> Tunnel:
        """The count-th address that is up."""
        end = time.monotonic() + limit_s
        while len(self.up) < count:
            assert time.monotonic() < end, self.said
            time.sleep(0.02)
        return self.up[count - 1]


def works(url: str) -> bool:
    with visitor(url) as user:
        return user.get("/").text == "<h1>the page</h1>"
