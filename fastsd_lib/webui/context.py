"""What every route needs to answer: handed to each file's `router(context)`."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

if TYPE_CHECKING:
    from fastsd_lib.generation.jobs import Job
    from fastsd_lib.generation.service import Service
    from fastsd_lib.webui.options import Options

Result = TypeVar("Result")


@dataclass(frozen=True)
class ApiLimits:
    """What one request may ask for; refused with a 4xx before a pixel is decoded or drawn."""

    picture_pixels: int = 64_000_000  # of a picture that is sent
    picture_side_px: int = 16_384
    request_pixels: int = 128_000_000  # of all pictures of one request; decoded, each takes 3 or 4 bytes
    picture_bytes: int = 64 * 2**20  # of one picture's file
    side_px: int = 8192  # of a picture that is drawn or enlarged
    pixels: int = 4096 * 4096
    pictures: int = 1000  # of one request: batch_size * n_iter
    steps: int = 1000
    prompt_letters: int = 100_000
    networks: int = 64  # <lora:...> tags of one prompt
    control_units: int = 10
    script_args: int = 1000


@dataclass(frozen=True)
class ApiFlags:
    """What whoever starts the server may open; closed unless said otherwise."""

    fetch_urls: bool = False  # pictures by https address, from global addresses only
    server_stop: bool = False  # /sdapi/v1/server-stop and server-kill set `ApiContext.stopping`


class Tasks:
    """Which jobs belong to the task that a client named: a script's request is several jobs. Holds ids alone."""

    def __init__(self, most: int = 1000) -> None:
        self._most, self._lock = most, threading.Lock()
        self._jobs: OrderedDict[tuple[str, str], list[str]] = OrderedDict()  # by owner and name

    def note(self, task_id: str, jobs: Sequence[Job]) -> None:
        key = jobs[0].order.owner, task_id
        with self._lock:
            self._jobs[key] = [job.id for job in jobs]
            self._jobs.move_to_end(key)
            while len(self._jobs) > self._most:
                self._jobs.popitem(last=False)

    def job_ids(self, task_id: str, owner: str) -> list[str]:
        """The owner's; a task that is not known is the job of that name."""
        with self._lock:
            return self._jobs.get((owner, task_id), [task_id])

    def beside(self, job: Job) -> list[str]:
        """The jobs of this one's task, itself among them."""
        with self._lock:
            of_owner = (ids for (owner, _), ids in reversed(self._jobs.items()) if owner == job.order.owner)
            return next((ids for ids in of_owner if job.id in ids), [job.id])


@dataclass
class ApiContext:
    """One per server."""

    service: Service
    options: Options
    pictures_dir: Path | None = None  # where `save_images` saves; None = nowhere
    limits: ApiLimits = field(default_factory=ApiLimits)
    flags: ApiFlags = field(default_factory=ApiFlags)
    stopping: threading.Event = field(default_factory=threading.Event)  # for whoever started the server
    tasks: Tasks = field(default_factory=Tasks)
    # Pictures are coded here: neither on the thread that draws nor on the one that answers everybody.
    coders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "pictures"))

    async def aside(self, work: Callable[..., Result], *args: Any) -> Result:
        """What `work` returns, worked by `coders`: it reads folders, hashes files or codes pictures."""
        return await asyncio.get_running_loop().run_in_executor(self.coders, work, *args)


def owner_of(request: Request) -> str:
    """Who asks: the user that the guard let in, "" where the server asks for no password."""
    return request.scope.get("fastsd.user") or ""
