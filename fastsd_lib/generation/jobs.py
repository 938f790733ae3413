"""Orders for pictures and what becomes of them; light, so that a form or a route needs no torch."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.engine import GeneratedImage

State = Literal["waiting", "drawing", "done", "stopped", "failed"]
Wish = Literal["", "after_picture", "interrupt", "cancel"]  # each stronger than the one before
OVER = ("done", "stopped", "failed")


class QueueFull(UserError):
    """There is no room for another order now."""

    def __init__(self, message: str, fix: str, retry_after_s: int) -> None:
        super().__init__(message, fix)
        self.retry_after_s = retry_after_s


class OwnFault(UserError):
    """The program failed at an order that was right; its log says how."""

    def __init__(self) -> None:
        super().__init__(
            "The pictures could not be drawn: something went wrong inside the program.",
            fix="the server's log says what; please report it. Other orders are not affected.",
        )


@dataclass(frozen=True)
class QueueLimits:
    """How much is taken on, and how much of what is finished is kept for clients that come back."""

    most_waiting: int = 256
    most_per_owner: int = 64  # waiting and drawing, of one owner; orders without an owner are not counted
    most_seconds: float = 3600.0  # of drawing, for one order
    kept_jobs: int = 200
    kept_mib: int = 256  # of finished pictures and those they were drawn over, three bytes a pixel
    most_input_mib: int = 1024  # of pictures to be drawn over, of all that wait


@dataclass(frozen=True)
class Order:
    """A request, and who wants it from which model."""

    request: GenerationRequest
    model: str = ""  # a checkpoint by name; "" = the service's current model
    vae: str = ""  # "" or "Automatic" = the model's own
    owner: str = ""  # who ordered it: a user or a browser session
    at_once: int | None = (
        None  # pictures to a batch, which `skip` leaves together; None = as the service likes
    )
    task_id: str = ""  # a client's own name for the job; "" = one is made
    kind: str = "txt2img"  # free text for the history


def inputs_of(request: GenerationRequest) -> dict[int, int]:
    """The pictures that a request holds in memory: their identities, and the bytes of each."""
    pictures = [request.init, request.inpaint.mask if request.inpaint else None]
    pictures += [picture for unit in request.control for picture in (unit.image, unit.mask)]
    return {id(one): one.width * one.height * len(one.getbands()) for one in pictures if one is not None}


def new_id() -> str:
    return uuid.uuid4().hex[:16]


@dataclass(eq=False)
class Job:
    """One order on its way; every property may be read from any thread, at any time, without waiting."""

    order: Order
    id: str = field(default_factory=new_id)
    state: State = "waiting"
    created_s: float = field(default_factory=time.time)  # as time.time() counts
    started_s: float | None = None
    finished_s: float | None = None
    steps: int = 0  # of all pictures and passes
    step: int = 0
    picture_steps: int = 0  # of the pictures in work: both passes of one picture
    picture_step: int = 0
    in_work: tuple[int, int] = (0, 0)  # numbers of the pictures in work: from, to (not included)
    pictures: list[GeneratedImage] = field(default_factory=list)  # finished ones, in order
    notes: list[str] = field(default_factory=list)  # such as: memory was short
    error: UserError | None = None
    future: Future[list[GeneratedImage]] = field(default_factory=Future, repr=False)
    # Between the service and its workers:
    model_key: tuple[str, str] = ("", "")  # the model and VAE that were meant when it was ordered
    wish: Wish = ""  # how it is to end
    skips: bool = False  # the pictures in work are to be left as they are
    carried: Any = field(
        default=None, repr=False
    )  # finished pictures of a job that let another model go first
    place_of: Callable[[Job], int] = field(default=lambda job: 0, repr=False)
    eta_of: Callable[[Job], float | None] = field(default=lambda job: None, repr=False)
    preview_of: Callable[[Job], Image | None] = field(default=lambda job: None, repr=False)
    _listeners: list[Callable[[Job], None]] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        request = self.order.request
        self.steps = max(request.inference_steps * request.count, 1)
        self.picture_steps = request.inference_steps

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return 1.0 if self.state == "done" else min(self.step / max(self.steps, 1), 1.0)

    @property
    def place(self) -> int:
        """0 = being drawn (or over), 1 = the next one."""
        return self.place_of(self) if self.state == "waiting" else 0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, waiting included; None while nobody can know."""
        return 0.0 if self.over else self.eta_of(self)

    def preview(self) -> Image | None:
        """A cheap picture of what is in work, made now; the last finished one, else None."""
        shown = self.preview_of(self) if self.state == "drawing" else None
        if shown is None and self.pictures:
            return self.pictures[-1].image
        return shown

    def subscribe(self, listener: Callable[[Job], None]) -> Callable[[], None]:
        """`listener` is called on every change, from the thread that makes it: it must be quick and not wait.

        Returns what ends it. When the job is over listeners hear of it once more and are let go; one that comes
        later hears it at once.
        """
        with self._lock:
            late = self.over
            if not late:
                self._listeners.append(listener)
        if late:
            listener(self)

        def unsubscribe() -> None:
            with self._lock, suppress(ValueError):
                self._listeners.remove(listener)

        return unsubscribe

    def ask_to_end(self, wish: Wish) -> None:
        """Before the next step; a weaker wish does not take back a stronger one."""
        order = ("", "after_picture", "interrupt", "cancel")
        if order.index(wish) > order.index(self.wish):
            self.wish = wish

    def tell(self) -> None:
        """Let the listeners look. What one of them raises is its own trouble."""
        with self._lock:
            listeners = list(self._listeners)
            if self.over:
                self._listeners.clear()
        for listener in listeners:
            with suppress(Exception):
                listener(self)

    def finish(self, state: State, error: UserError | None = None) -> None:
        """The end, told to everyone who waits; a second end changes nothing."""
        with self._lock:
            if self.over:
                return
            self.error, self.finished_s = error, time.time()
            self.in_work = (0, 0)
            self.state = state
        self.preview_of = lambda job: None  # the state of the drawing goes
        self.carried = None
        self.tell()
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(list(self.pictures))
