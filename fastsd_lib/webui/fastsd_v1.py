"""/fastsd/v1: orders that have an id. They are queued, watched, moved, ended one by one, and found again later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from fastsd_lib.generation.history import History
from fastsd_lib.generation.infotext import infotext
from fastsd_lib.generation.jobs import Job
from fastsd_lib.generation.picture_text import picture_bytes
from fastsd_lib.webui import fastsd_v1_lists
from fastsd_lib.webui.api_errors import Refused, answers
from fastsd_lib.webui.context import ApiContext, owner_of
from fastsd_lib.webui.errands import Errands
from fastsd_lib.webui.fastsd_v1_bodies import JobBody, JobView, body_of, job_view, order_of
from fastsd_lib.webui.fastsd_v1_events import Previews, events
from fastsd_lib.webui.job_ids import check_job_id

_PICTURE = {200: {"content": {"image/png": {}}, "description": "the picture"}}
_PREVIEW = {
    200: {"content": {"image/jpeg": {}}, "description": "a small picture"},
    204: {"description": "there is nothing to see yet"},
}
_STREAM = {200: {"content": {"text/event-stream": {}}, "description": "progress, preview, picture, done"}}


class Jobs(BaseModel):
    jobs: list[JobView]


class Queue(BaseModel):
    """`jobs` are yours; `waiting` and `drawing` count everybody's."""

    paused: bool
    waiting: int
    drawing: int
    jobs: list[JobView]


class Place(BaseModel):
    place: int = Field(ge=1, le=1_000_000, description="1 = the next one")


class Past(BaseModel):
    """A page of the history, and how many there are in all."""

    count: int
    jobs: list[dict[str, Any]]


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/fastsd/v1", tags=["orders"])
    _add_jobs(routes, context)
    _add_queue(routes, context)
    _add_history(routes, context)
    fastsd_v1_lists.add(routes, context)
    return routes


def _own_job(job_id: str, request: Request, context: ApiContext) -> Job:
    """A job of whoever asks; for anybody else it is not there."""
    job, owner = context.service.job(job_id), owner_of(request)
    if job is None or (owner and job.order.owner != owner):
        raise Refused(404, f"There is no job {job_id[:100]!r}.", "GET /fastsd/v1/jobs lists yours.")
    return job


def _others_wait(request: Request, context: ApiContext) -> bool:
    owner = owner_of(request)
    return bool(owner) and any(job.order.owner != owner for job in context.service.jobs())


# ------------------------------------------------------------------ jobs


def _add_jobs(routes: APIRouter, context: ApiContext) -> None:
    service, errands = context.service, Errands(threads=2, most=64)
    previews = Previews(errands)

    @routes.post("/jobs", status_code=202, responses=answers(404, 409, 413, 429))
    async def order(body: JobBody, request: Request, response: Response) -> JobView:
        """Order pictures; the answer comes at once."""

        def submitted() -> Job:
            owner = owner_of(request)
            check_job_id(body.id or "", owner, context)
            return service.submit(order_of(body, context, owner))

        job = await errands.run(submitted)
        context.tasks.note(job.id, [job])
        response.headers["location"] = f"/fastsd/v1/jobs/{job.id}"
        return job_view(job)

    @routes.get("/jobs")
    async def jobs(request: Request) -> Jobs:
        """Your jobs: those that wait or are drawn, in order; then those that are over, the newest first."""
        owner = owner_of(request) or None
        found = [*service.jobs(owner), *reversed(service.kept(owner))]
        return Jobs(jobs=[job_view(job) for job in {job.id: job for job in found}.values()])

    @routes.get("/jobs/{job_id}", responses=answers(404))
    async def job(job_id: str, request: Request) -> JobView:
        """One job as it stands, also for a while after its end."""
        return job_view(_own_job(job_id, request, context))

    @routes.get(
        "/jobs/{job_id}/pictures/{number}",
        responses={**answers(404, 429), **_PICTURE},
        response_class=Response,
    )
    async def picture(job_id: str, number: int, request: Request) -> Response:
        """A finished picture as PNG, with how it was made inside."""
        made = list(_own_job(job_id, request, context).pictures)
        if not 0 <= number < len(made):
            raise Refused(
                404, f"There is no picture {number} yet; {len(made)} are finished.", "wait for its event."
            )
        return Response(await errands.run(_png, made[number]), media_type="image/png")

    @routes.get(
        "/jobs/{job_id}/preview", responses={**answers(404, 429), **_PREVIEW}, response_class=Response
    )
    async def preview(job_id: str, request: Request) -> Response:
        """What is in work, small; of a job that is over its last picture."""
        data = await previews.jpeg(_own_job(job_id, request, context))
        if data is None:
            return Response(status_code=204)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=60"})

    @routes.get("/jobs/{job_id}/events", responses={**answers(404), **_STREAM}, response_class=Response)
    async def job_events(
        job_id: str,
        request: Request,
        preview_every_s: float = Query(1.0, ge=0, le=3600, allow_inf_nan=False, description="0 is never"),
    ) -> Response:
        """Server-sent events until the job is over."""
        stream = events(_own_job(job_id, request, context), job_view, previews, preview_every_s)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @routes.delete("/jobs/{job_id}", responses=answers(404))
    async def cancel(job_id: str, request: Request) -> JobView:
        """End a job; what is finished of it stays. One that is over stays as it is."""
        found = _own_job(job_id, request, context)
        service.cancel(found.id)
        return job_view(found)

    @routes.post("/jobs/{job_id}/stop-after-picture", responses=answers(404))
    async def stop_after_picture(job_id: str, request: Request) -> JobView:
        """End a job when the pictures in work are finished."""
        found = _own_job(job_id, request, context)
        service.stop_after_picture(found.id)
        return job_view(found)

    @routes.post("/jobs/{job_id}/skip", responses=answers(404))
    async def skip(job_id: str, request: Request) -> JobView:
        """Leave the pictures in work and go on with the next ones."""
        found = _own_job(job_id, request, context)
        service.skip(found.id)
        return job_view(found)

    @routes.post("/jobs/{job_id}/move", responses=answers(403, 404, 409))
    async def move(job_id: str, body: Place, request: Request) -> JobView:
        """To another place in the queue; before another user's order only that user may go."""
        found = _own_job(job_id, request, context)
        owner = owner_of(request)
        waiting = [one for one in service.jobs() if one.state == "waiting"]
        passed = [one for one in waiting if body.place <= one.place < found.place]
        if owner and any(one.order.owner != owner for one in passed):
            raise Refused(403, f"Place {body.place} is before another user's order.", "take a later place.")
        if not service.move(found.id, body.place):
            raise Refused(
                409, f"The job {found.id!r} does not wait: it is {found.state}.", "only waiting jobs move."
            )
        return job_view(found)


def _png(picture: Any) -> bytes:
    return picture_bytes(picture.image, "PNG", infotext(picture.record), picture.record, compress_level=1)


# ------------------------------------------------------------------ the queue


def _add_queue(routes: APIRouter, context: ApiContext) -> None:
    service = context.service

    def shown(request: Request) -> Queue:
        jobs, owner = service.jobs(), owner_of(request)
        return Queue(
            paused=service.paused,
            waiting=sum(job.state == "waiting" for job in jobs),
            drawing=sum(job.state == "drawing" for job in jobs),
            jobs=[job_view(job) for job in jobs if not owner or job.order.owner == owner],
        )

    @routes.get("/queue")
    async def queue(request: Request) -> Queue:
        """What waits and what is drawn."""
        return shown(request)

    @routes.post("/queue/pause", responses=answers(403))
    async def pause(request: Request) -> Queue:
        """Begin no other job until it is resumed; not while other users' orders are under way."""
        if _others_wait(request, context):
            raise Refused(403, "Orders of other users are under way.", "wait for their end.")
        service.pause()
        return shown(request)

    @routes.post("/queue/resume")
    async def resume(request: Request) -> Queue:
        """Go on."""
        service.resume()
        return shown(request)


# ------------------------------------------------------------------ the history


def _add_history(routes: APIRouter, context: ApiContext) -> None:
    def kept() -> History:
        if context.service.history is None:
            raise Refused(404, "This server keeps no history.", "start it with one.")
        return context.service.history

    async def own_entry(job_id: str, request: Request) -> dict[str, Any]:
        entry, owner = await context.aside(kept().get, job_id), owner_of(request)
        if entry is None or (owner and entry["owner"] != owner):
            raise Refused(
                404, f"The history has no job {job_id[:100]!r}.", "GET /fastsd/v1/history lists yours."
            )
        return entry

    @routes.get("/history", responses=answers(404))
    async def history(
        request: Request,
        text: str = Query("", max_length=1000, description="in the prompt or in how the pictures were made"),
        state: Literal["", "waiting", "drawing", "done", "stopped", "failed", "lost"] = "",
        most: int = Query(50, ge=1, le=500),
        skip: int = Query(0, ge=0, le=1_000_000),
    ) -> Past:
        """Your jobs of earlier, the newest first."""
        which = {"text": text, "owner": owner_of(request) or None, "state": state}
        found = await context.aside(lambda: kept().search(**which, most=most, skip=skip))
        return Past(
            count=await context.aside(lambda: kept().count(**which)), jobs=[_told(entry) for entry in found]
        )

    @routes.get("/history/{job_id}", responses=answers(404))
    async def past_job(job_id: str, request: Request) -> dict[str, Any]:
        """One job of earlier."""
        return _told(await own_entry(job_id, request))

    @routes.get("/history/{job_id}/request", responses=answers(404))
    async def past_request(job_id: str, request: Request) -> dict[str, Any]:
        """What to POST to /fastsd/v1/jobs to have it drawn again, pictures in base64."""
        entry = await own_entry(job_id, request)
        return await context.aside(lambda: body_of(kept().request_of(entry["id"])))

    @routes.delete("/history/{job_id}", responses=answers(404))
    async def forget(job_id: str, request: Request) -> dict[str, bool]:
        """Forget one job; its saved pictures stay."""
        entry = await own_entry(job_id, request)
        return {"deleted": await context.aside(kept().delete, entry["id"])}


def _told(entry: dict[str, Any]) -> dict[str, Any]:
    """Saved pictures by their names: where they lie concerns nobody who is not at this machine."""
    return {**entry, "files": [Path(file).name for file in entry.get("files") or []]}
