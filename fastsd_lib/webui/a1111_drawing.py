"""/sdapi/v1/txt2img and /img2img: a request waits for its pictures without holding a thread."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.jobs import Job, OwnFault
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.a1111 import Ordered, translate
from fastsd_lib.webui.a1111_answer import answer_of
from fastsd_lib.webui.a1111_models import DrawingBody, Drawn, Img2ImgBody, Txt2ImgBody
from fastsd_lib.webui.api_errors import ClientLeft, Refused, answers
from fastsd_lib.webui.context import ApiContext, owner_of
from fastsd_lib.webui.job_ids import check_job_id


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/sdapi/v1", tags=["drawing"])
    could_fail = answers(404, 409, 413, 429)

    @routes.post("/txt2img", response_model=Drawn, responses=could_fail)
    async def txt2img(body: Txt2ImgBody, request: Request) -> Any:
        """Draw pictures of a prompt."""
        return await draw(body, request, context)

    @routes.post("/img2img", response_model=Drawn, responses=could_fail)
    async def img2img(body: Img2ImgBody, request: Request) -> Any:
        """Draw over a picture, or over a part of it."""
        return await draw(body, request, context)

    return routes


async def draw(body: DrawingBody, request: Request, context: ApiContext) -> dict[str, Any]:
    """Order, wait, answer. Whoever goes away is drawn for no longer."""
    owner = owner_of(request)

    def order() -> tuple[Ordered, list[Job]]:
        check_job_id(body.force_task_id or "", owner, context)
        ordered = translate(body, context, owner)
        return ordered, submit(ordered, context)

    ordered, jobs = await context.aside(order)
    try:
        pictures = await _pictures(jobs, request, context, forgiving=ordered.plot is not None)
    except BaseException:
        for job in jobs:
            context.service.cancel(job.id)
        raise
    if ordered.kept:  # what was refused, or names a damaged model, changes nothing
        await context.aside(a1111_settings.apply, context, ordered.kept)
    return await context.aside(answer_of, ordered, pictures, context, jobs)


def submit(ordered: Ordered, context: ApiContext) -> list[Job]:
    """All orders or none. More than there is ever room for are refused, not told to come again."""
    limits = context.service.limits
    most = limits.most_waiting
    if ordered.orders[0].owner:
        most = min(most, limits.most_per_owner)
    if 1 < len(ordered.orders) > most:
        raise Refused(
            422,
            f"The request makes {len(ordered.orders)} orders, one for each prompt or cell; the most is {most}.",
            "ask for fewer pictures, or send several requests.",
        )
    jobs: list[Job] = []
    try:
        for order in ordered.orders:
            jobs.append(context.service.submit(order))
    except UserError:
        for job in jobs:
            context.service.cancel(job.id)
        raise
    context.tasks.note(ordered.body.force_task_id or jobs[0].id, jobs)
    return jobs


async def _pictures(
    jobs: list[Job], request: Request, context: ApiContext, forgiving: bool = False
) -> list[Any]:
    """The pictures of all jobs, those of stopped ones as far as they came; UserError when one failed, or, `forgiving`,
    when there are none.
    """
    # Shielded: to stop waiting must not cancel the future that the drawing thread will set.
    futures = [asyncio.shield(asyncio.wrap_future(job.future)) for job in jobs]
    drawn = asyncio.gather(*futures, return_exceptions=forgiving)
    drawn.add_done_callback(
        lambda done: done.cancelled() or done.exception()
    )  # heard, also when nobody waits
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({drawn, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not drawn.done():
            raise ClientLeft
        errors = [told for told in drawn.result() if isinstance(told, BaseException)]
        pictures = [one for told in drawn.result() if isinstance(told, list) for one in told]
        if errors and not pictures:
            raise errors[0]
        return pictures
    except OwnFault as error:
        raise Refused(500, error.message, error.fix) from None
    finally:
        gone.cancel()
        drawn.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
