"""What a worker has in hand: jobs with their plans, and the strands of pictures that step together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastsd_lib.generation.denoising import Denoising
from fastsd_lib.generation.engine import Engine, GeneratedImage
from fastsd_lib.generation.jobs import Job
from fastsd_lib.generation.passes import batch
from fastsd_lib.generation.plan import Plan
from fastsd_lib.generation.record import record_of

if TYPE_CHECKING:
    from PIL.Image import Image


class Strand:
    """Some pictures of one job on their way; nothing is computed before the first `advance`."""

    def __init__(self, work: Work, numbers: range) -> None:
        self.work, self.numbers = work, numbers
        self.step = 0
        self.denoising: Denoising | None = None
        self.pictures: list[Image] | None = None  # the end
        self._passes = batch(work.plan, numbers, self._told)

    def _told(self, step: int) -> None:
        self.step = step

    @property
    def size(self) -> tuple[int, int]:
        """Latents (h, w) of the pass that it is in."""
        if self.denoising is not None and self.denoising.ask is not None:
            return tuple(self.denoising.ask.x.shape[2:])
        plan = self.work.plan
        return plan.latent_size((plan.width_px, plan.height_px))

    @property
    def latents(self) -> int:
        """What it adds to a U-Net call, without the rows that guidance adds."""
        height, width = self.size
        return len(self.numbers) * height * width

    @property
    def company(self) -> Hashable:
        """Strands of the same one step in one U-Net call."""
        plan = self.work.plan
        return plan.company, self.size, id(self) if plan.alone else None

    @property
    def waits(self) -> bool:
        """For the U-Net's answer."""
        return self.denoising is not None and self.denoising.ask is not None

    @property
    def is_at_an_end(self) -> bool:
        """Of a pass."""
        return self.denoising is not None and self.denoising.ask is None

    def advance(self) -> None:
        """On to the next pass or, decoded, to the end."""
        try:
            self.denoising = next(self._passes)
        except StopIteration as end:
            self.denoising, self.pictures = None, end.value

    def cut(self) -> bool:
        """Make the picture that is seen so far the last one; False when nothing is seen yet."""
        if self.denoising is None or self.denoising.seen is None:
            return False
        self.denoising.cut()
        return True

    def drop(self) -> None:
        self._passes.close()
        self.denoising = None


@dataclass(eq=False)
class Work:
    """A job that is being drawn."""

    job: Job
    engine: Engine | None
    plan: Plan | None
    next: int = 0  # the first number of which no strand has begun
    strands: list[Strand] = field(default_factory=list)
    finished: dict[int, GeneratedImage] = field(default_factory=dict)
    drawn_s: float = 0.0
    model_hash: str | None = None

    @property
    def count(self) -> int:
        return self.plan.request.count

    @property
    def left(self) -> int:
        """Pictures that nobody has begun."""
        return self.count - self.next

    @property
    def company(self) -> Hashable:
        """Of its next strand."""
        plan = self.plan
        size = plan.latent_size((plan.width_px, plan.height_px))
        return plan.company, size, id(self) if plan.alone else None

    def batch_in_work(self) -> list[Strand]:
        """The strands of the oldest batch in work, as whoever ordered counts batches; else all."""
        at_once = self.job.order.at_once
        if not at_once or not self.strands:
            return list(self.strands)
        oldest = min(strand.numbers.start for strand in self.strands) // at_once
        return [strand for strand in self.strands if strand.numbers.start // at_once == oldest]

    def begin(self, count: int) -> None:
        """One strand more, of so many pictures."""
        count = min(count, self.left, self.job.order.at_once or count, 1 if self.plan.alone else count)
        self.strands.append(Strand(self, range(self.next, self.next + count)))
        self.next += count

    def split(self, strand: Strand) -> None:
        """Begin again in two strands (one for a single picture): memory did not suffice."""
        numbers, at = strand.numbers, self.strands.index(strand)
        strand.drop()
        middle = numbers.start + len(numbers) // 2
        halves = [range(numbers.start, middle), range(middle, numbers.stop)]
        self.strands[at : at + 1] = [Strand(self, half) for half in halves if half]

    def drop(self, strand: Strand) -> None:
        self.strands.remove(strand)
        strand.drop()

    def give_up_rest(self) -> None:
        """Begin nothing more."""
        self.next = self.count

    def collect(self, strand: Strand) -> None:
        """The finished pictures of a strand, with their records; `job.pictures` grows in order."""
        self.strands.remove(strand)
        maps = self.plan.control_maps
        for number, picture in zip(strand.numbers, strand.pictures, strict=True):
            record = record_of(self.plan, number)
            if self.model_hash:
                record["model_hash"] = self.model_hash
            if strand.step < self.plan.all_steps:
                record["warnings"].append(f"stopped at step {strand.step} of {self.plan.all_steps}")
            self.finished[number] = GeneratedImage(picture, self.plan.seeds[number], record, maps)
        self.show()

    def show(self, to_the_end: bool = False) -> None:
        """Give out what is finished: without a gap, so that their order is that of the seeds, or at the end all."""
        pictures = self.job.pictures
        numbers = sorted(self.finished)
        if not to_the_end:
            numbers = [number for at, number in enumerate(numbers) if at == number]
        pictures.extend(self.finished[number] for number in numbers[len(pictures) :])

    def tell(self) -> None:
        """Let the job know how far its pictures are."""
        job, plan = self.job, self.plan
        per_picture = max(plan.all_steps, 1)
        in_work = self.strands
        job.steps, job.picture_steps = per_picture * self.count, per_picture
        done = sum(min(strand.step, per_picture) * len(strand.numbers) for strand in in_work)
        job.step = per_picture * len(self.finished) + done
        if in_work:
            job.picture_step = in_work[0].step
            job.in_work = in_work[0].numbers.start, in_work[-1].numbers.stop
        job.notes[:] = plan.warnings
        job.tell()
