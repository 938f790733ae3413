"""How often a wrong password may be tried, and how much one client may ask for at once."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

FREE_TRIES = 5  # a person mistypes; a program that guesses does not stop at five
LONGEST_WAIT_S = 300.0
FORGET_AFTER_S = 900.0
TRIES_PER_MINUTE = 60  # wrong ones, of all clients together: many addresses make no quicker guesser
KEPT_CLIENTS = 1024


@dataclass
class _Record:
    failures: int
    last_s: float
    free_at_s: float


class Throttle:
    """Wrong passwords per client and altogether. Memory is bounded; nothing is locked for good.

    Whoever holds a session is never asked here, so a stranger who guesses cannot shut the owner out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, _Record] = OrderedDict()
        self._recent: deque[float] = deque(maxlen=TRIES_PER_MINUTE)

    def wait_s(self, client: str) -> float:
        """Seconds until `client` may try a password again; 0 = now."""
        now = self._clock()
        record = self._clients.get(client)
        own = record.free_at_s - now if record else 0.0
        full = len(self._recent) == TRIES_PER_MINUTE
        everyone = self._recent[0] + 60.0 - now if full else 0.0
        return max(own, everyone, 0.0)

    def failed(self, client: str) -> None:
        now = self._clock()
        self._recent.append(now)
        record = self._clients.pop(client, None)
        failures = 1 if record is None or now - record.last_s > FORGET_AFTER_S else record.failures + 1
        wait_s = 0.0 if failures < FREE_TRIES else min(2.0 ** (failures - FREE_TRIES), LONGEST_WAIT_S)
        self._clients[client] = _Record(failures, now, now + wait_s)
        while len(self._clients) > KEPT_CLIENTS:
            self._clients.popitem(last=False)

    def succeeded(self, client: str) -> None:
        self._clients.pop(client, None)


class Crowd:
    """Requests under way per client."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: Counter[str] = Counter()

    def enter(self, client: str) -> bool:
        """False when `client` has its share under way already; else pair it with `leave`."""
        if self._under_way[client] >= self._limit:
            return False
        self._under_way[client] += 1
        return True

    def leave(self, client: str) -> None:
        self._under_way[client] -= 1
        if self._under_way[client] <= 0:
            del self._under_way[client]


def client_key(address: str) -> str:
    """One key per client: an IPv6 network of 64 bits is one home, with more addresses than anybody could count."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
