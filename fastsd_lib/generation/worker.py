"""The thread that draws on one device: requests that fit together share each U-Net call, and come and go by steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.heap import give_back
from fastsd_lib.generation.denoising import ask_together
from fastsd_lib.generation.engine import can_offload
from fastsd_lib.generation.jobs import Job, OwnFault, State
from fastsd_lib.generation.jobs_queue import JobQueue
from fastsd_lib.generation.pipeline_engine import PipelineEngine
from fastsd_lib.generation.plan import drawing_mode, make_plan
from fastsd_lib.generation.preview import rough_picture
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.generation.vae import out_of_memory, release
from fastsd_lib.generation.worker_faults import for_the_user, took_too_long
from fastsd_lib.generation.worker_strands import Strand, Work
from fastsd_lib.generation.worker_whole import WholeDrawing

LOG = logging.getLogger(__name__)

# In latents, as the engine counts them: so many in one U-Net call at most. The figures are in docs/service.md.
MOST_LATENTS = {"cpu": 16 * 16 * 16, "cuda": 4 * 64 * 64}
TURN_S = 4.0  # pictures of another size or with another LoRA wait so long at most for their turn
MODEL_TURN_S = 20.0  # and those of another model, before no more jobs are begun that overtake them
TIDY_S = 10.0  # between two returns of freed memory in a long run
MOST_UNBEGUN = 2  # jobs with a plan that wait for room: a plan holds pictures


class Worker:
    """Takes jobs from the queue and draws them with the models of the shelf; `run` is its thread."""

    def __init__(
        self, shelf: Shelf, queue: JobQueue, device: str = "auto", number: int = 0, batching: bool = True
    ) -> None:
        self.shelf, self.queue, self.batching = shelf, queue, batching
        self.device, self.number = device, number  # the number tells apart two that share a device
        self.works: list[Work] = []  # the oldest first
        self._model: tuple[str, str] = ("", "")
        self._most = 0  # latents in one call; less after a lack of memory
        self._company: Hashable = None  # whose turn it is
        self._turn_began = 0.0
        self._last_turn: dict[Hashable, float] = {}
        self._others_since: float | None = None  # since when another model is waited for
        self._tidied_s = 0.0
        self.thread = threading.Thread(target=self.run, name=f"drawing-{number}", daemon=True)

    def run(self) -> None:
        while self.queue.wait(self._has_work):
            began = time.monotonic()
            try:
                self._round()
            except Exception:  # a fault of ours, outside of any one job
                LOG.exception("The drawing thread stumbled")
                for work in list(self.works):
                    self._end(work, "failed", OwnFault())
            for work in self.works:
                work.drawn_s += time.monotonic() - began
            self._tidy()
        for work in list(self.works):
            self._end(work, "stopped")

    def _tidy(self) -> None:
        """Give freed memory back: soon when nothing is left to draw, now and then when there always is something."""
        now = time.monotonic()
        if now - self._tidied_s > (TIDY_S if self.works else 1.0):
            give_back()
            self._tidied_s = now

    def _has_work(self) -> bool:
        wished = any(work.job.wish or work.job.skips for work in self.works)
        return wished or (not self.queue.paused and bool(self.works or self.queue.waiting))

    def _round(self) -> None:
        """Between two steps everyone is heard; then comes one step."""
        self._run_errands()
        for work in list(self.works):
            self._obey(work)
        if self.queue.paused:
            return
        while self._take_jobs() and self._begin_strands():
            pass
        if strands := self._whose_turn():
            self._step(strands)

    def _run_errands(self) -> None:
        while (errand := self.queue.next_errand()) is not None:
            work, told = errand
            try:
                told.set_result(work())
            except Exception as error:  # whoever waits for it hears of it
                told.set_exception(error)

    # --- what those who ordered want

    def _obey(self, work: Work) -> None:
        job = work.job
        if job.wish == "cancel":
            self._end(work, "stopped")
        elif work.drawn_s > self.queue.limits.most_seconds:
            self._end(work, "failed", took_too_long(self.queue.limits.most_seconds))
        elif job.wish or job.skips:
            if job.wish == "interrupt" or job.skips:
                self._cut(work, list(work.strands) if job.wish else work.batch_in_work())
            if job.wish:
                work.give_up_rest()
            if not work.strands and not work.left:
                self._finish(work)

    def _cut(self, work: Work, strands: list[Strand]) -> None:
        """These end as they stand; what shows nothing yet is dropped."""
        work.job.skips = False
        for strand in strands:
            if strand.cut():
                with drawing_mode(work.plan):
                    self._advance([strand])
            elif strand.step > 0:  # its second pass has just begun: a step later there is something to see
                work.job.skips = True
            else:
                work.drop(strand)

    # --- which jobs, which pictures, whose turn

    def _take_jobs(self) -> bool:
        """True while there may be room for more."""
        while not self.queue.paused and sum(not work.strands for work in self.works) < MOST_UNBEGUN:
            alone = not self.batching and self.works
            job = None if alone else self.queue.take(self._suits)
            if job is None:
                self._begin_strands()
                return False
            if not self.works:
                self._model, self._most, self._others_since = job.model_key, 0, None
            self._open(job)
        return True

    def _suits(self, job: Job) -> bool:
        return not self.works or (job.model_key == self._model and not self._turn_is_over())

    def _turn_is_over(self) -> bool:
        """Whether another model has waited long enough."""
        if not self.queue.others_wait(self._model):
            self._others_since = None
        elif self._others_since is None:
            self._others_since = time.monotonic()
        return self._others_since is not None and time.monotonic() - self._others_since > MODEL_TURN_S

    def _open(self, job: Job) -> None:
        job.tell()
        try:
            engine = self.shelf.engine(*job.model_key, device=self.device, number=self.number)
            if isinstance(engine, PipelineEngine):
                whole = job.carried or WholeDrawing(job, self.queue, self._run_errands)
                whole.draw(engine, self.shelf.known_hash(job.model_key[0]), self._turn_is_over)
                return
            plan = make_plan(engine.parts, job.order.request, engine.texts, engine.library)
        except Exception as error:
            self.queue.end(job, "failed", for_the_user(job, error))
            return
        work = job.carried or Work(job, engine, plan)
        work.engine, work.plan, work.model_hash = engine, plan, self.shelf.known_hash(job.model_key[0])
        job.preview_of = lambda _: preview_of(work)
        if not self._most:
            kind = next(engine.parts.unet.parameters()).device.type
            self._most = MOST_LATENTS.get(kind, MOST_LATENTS["cpu"])
        self.works.append(work)
        work.tell()

    def _begin_strands(self) -> bool:
        """Those that have nothing in work come first, the oldest of them first of all. True when one began."""
        begun = False
        over = len(self.works) > 0 and self._turn_is_over()
        in_work: dict[Hashable, int] = {}
        for work in self.works:
            for strand in work.strands:
                in_work[strand.company] = in_work.get(strand.company, 0) + strand.latents
        for work in sorted(self.works, key=lambda one: bool(one.strands)):
            if over and not work.strands and work.left and work.next:
                self._let_others_first(work)
                continue
            if sum(in_work.values()) >= 2 * self._most:  # of all sizes and LoRA sets together
                break
            if not work.left or (over and work.next) or (work.plan.alone and work.strands):
                continue
            taken = in_work.get(work.company, 0)
            # Half of the room stays for whoever comes next: he begins with the next step.
            room = self._most // (2 if work.strands or taken == 0 else 1) - taken
            count = room // work.plan.largest_latents
            if count <= 0 and taken == 0:
                count = 1  # a picture larger than all of the room
            if count > 0:
                work.begin(count)
                begun = True
                in_work[work.company] = taken + work.strands[-1].latents
        return begun

    def _let_others_first(self, work: Work) -> None:
        """A job of many pictures goes on when another model has had its turn."""
        self.works.remove(work)
        work.engine = work.plan = None  # made again then; what is finished stays
        work.job.carried = work
        self.queue.give_back(work.job)

    def _whose_turn(self) -> list[Strand]:
        """The strands of one company, as many as fit into one call, the oldest first."""
        groups: dict[Hashable, list[Strand]] = {}
        for work in self.works:
            for strand in work.strands:
                groups.setdefault(strand.company, []).append(strand)
        if not groups:
            return []
        now = time.monotonic()
        if self._company not in groups or (len(groups) > 1 and now - self._turn_began > TURN_S):
            self._last_turn = {key: when for key, when in self._last_turn.items() if key in groups}
            self._company = min(groups, key=lambda key: self._last_turn.get(key, 0.0))
            self._turn_began = now
        self._last_turn[self._company] = now
        chosen, latents = [], 0
        for strand in groups[self._company]:
            if chosen and latents + strand.latents > self._most:
                break
            chosen.append(strand)
            latents += strand.latents
        return chosen

    # --- one step

    def _step(self, strands: list[Strand]) -> None:
        began = time.monotonic()
        works = list({id(strand.work): strand.work for strand in strands}.values())
        before = sum(strand.step * len(strand.numbers) for strand in strands)
        with ExitStack() as mode:
            try:
                mode.enter_context(drawing_mode(strands[0].work.plan))
            except Exception as error:  # a LoRA that cannot be put in force
                for strand in strands:
                    self._fail(strand, error)
                return
            self._advance([strand for strand in strands if strand.denoising is None])
            self._ask([strand for strand in strands if strand.waits])
            self._advance([strand for strand in strands if strand.is_at_an_end])
        steps = sum(strand.step * len(strand.numbers) for strand in strands) - before
        if steps > 0:
            self.queue.measured(steps, time.monotonic() - began)
        for work in works:
            if work not in self.works:
                continue
            if not work.strands and not work.left:
                self._finish(work)
            else:
                work.tell()

    def _ask(self, strands: Sequence[Strand]) -> None:
        """One U-Net call. When it fails, each alone: only the one that is to blame falls."""
        if not strands:
            return
        plan = strands[0].work.plan
        try:
            told = ask_together(plan.parts, plan.levels, [strand.denoising for strand in strands])
        except Exception as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                self._with_less_memory(strands)
            elif len(strands) == 1:
                self._fail(strands[0], error)
            else:
                for strand in strands:
                    self._ask([strand])
            return
        for strand, answers in zip(strands, told, strict=True):
            self._guarded(strand, lambda one=strand, said=answers: one.denoising.tell(said, plan.levels))

    def _advance(self, strands: Sequence[Strand]) -> None:
        """Into the next pass or to the end, where the pictures are decoded."""
        for strand in strands:
            if strand in strand.work.strands:  # its job may have failed just now
                self._guarded(strand, strand.advance)
            if strand.pictures is not None:
                strand.work.collect(strand)

    def _guarded(self, strand: Strand, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                self._with_less_memory([strand])
            else:
                self._fail(strand, error)

    def _with_less_memory(self, strands: Sequence[Strand]) -> None:
        """Fewer pictures in one call from here on; one alone that does not fit is an error."""
        release()
        pictures = sum(len(strand.numbers) for strand in strands)
        if pictures == 1 and can_offload(strands[0].work.plan.parts):
            plan = strands[0].work.plan
            plan.parts.offload()
            plan.note("out of memory with one picture: text encoders and VAE are on the GPU only to work")
            strands[0].work.split(strands[0])
            return
        if pictures == 1:
            plan = strands[0].work.plan
            self._fail(
                strands[0],
                UserError(
                    f"The memory does not suffice for a picture of {plan.width_px} x {plan.height_px} px.",
                    fix="take a smaller width_px and height_px, or the dtype fp16 on a GPU.",
                ),
            )
            return
        self._most = max(sum(strand.latents for strand in strands) // 2, 1)
        note = f"out of memory with {pictures} pictures at once: fewer at once from there on"
        for strand in strands:
            strand.work.plan.note(note)
        if len(strands) == 1:
            strands[0].work.split(strands[0])
        else:
            middle = len(strands) // 2
            self._ask(strands[:middle])
            self._ask(strands[middle:])

    # --- ends

    def _finish(self, work: Work) -> None:
        work.show(to_the_end=True)
        work.tell()
        whole = len(work.finished) == work.plan.request.count and work.job.wish != "interrupt"
        self._end(work, "done" if whole else "stopped")

    def _fail(self, strand: Strand, error: Exception) -> None:
        if strand.work in self.works:
            self._end(strand.work, "failed", for_the_user(strand.work.job, error))

    def _end(self, work: Work, state: State, error: UserError | None = None) -> None:
        self.works.remove(work)
        for strand in list(work.strands):
            work.drop(strand)
        work.show(to_the_end=True)
        self.queue.end(work.job, state, error)


def preview_of(work: Work):
    """What the oldest strand shows; called by whoever asks, not by the worker."""
    for strand in list(work.strands):
        denoising = strand.denoising
        seen = None if denoising is None else denoising.seen
        if seen is not None:
            return rough_picture(work.engine.parts, seen[:1])
    return None
