"""/sdapi/v1: what the server is doing, how to stop it, and how it is set."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from fastsd_lib.generation.jobs import Job
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.a1111_pictures import in_base64
from fastsd_lib.webui.api_errors import Refused, answers
from fastsd_lib.webui.context import ApiContext, owner_of

_PREVIEW_QUALITY = 80


class State(BaseModel):
    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(BaseModel):
    """Of what draws now; `progress` 0 and `job_count` 0 say that nothing does."""

    progress: float = 0.0
    eta_relative: float = 0.0
    state: State = State()
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/sdapi/v1", tags=["state"])
    service = context.service

    @routes.get("/progress", response_model=Progress)
    async def progress(request: Request, skip_current_image: bool = False) -> Any:
        """How far the drawing is; where users sign in, the caller's own."""
        jobs = own_jobs(context, request)
        if not jobs:
            return Progress()
        current = None
        if not skip_current_image and context.options["live_previews_enable"]:
            current = await context.aside(preview_text, jobs[0], context)
        waiting = [job for job in service.jobs() if job.state == "waiting"]
        told = progress_of(task_of(context, jobs[0]), jobs[0], current)
        told.textinfo = f"{len(waiting)} waiting" if waiting else None
        return told

    @routes.post("/interrupt", response_model=dict[str, Any])
    async def interrupt(request: Request) -> Any:
        """End the requests that draw now with the pictures they have; where users sign in, the caller's own."""
        for drawn in own_jobs(context, request):
            for job in task_of(context, drawn):  # a script's other lines would be drawn next
                if job.state == "waiting":
                    service.cancel(job.id)
                else:
                    service.interrupt(job.id)
        return {}

    @routes.post("/skip", response_model=None)
    async def skip(request: Request) -> None:
        """Leave the pictures in work and go on with the next ones."""
        for job in own_jobs(context, request):
            service.skip(job.id)

    @routes.get("/options", response_model=dict[str, Any])
    async def options() -> Any:
        """Every setting with its value."""
        return await context.aside(a1111_settings.shown, context)

    @routes.post("/options", response_model=None, responses=answers(404))
    async def set_options(given: dict[str, Any]) -> None:
        """Change settings, all or none. `sd_model_checkpoint` is a model by title, name, file name or hash."""
        new = await context.aside(a1111_settings.checked_change, context, given)
        if new.get("sd_model_checkpoint"):  # loaded before it counts: a damaged file changes nothing
            await asyncio.shield(asyncio.wrap_future(service.load(new["sd_model_checkpoint"])))
        await context.aside(a1111_settings.apply, context, new)

    @routes.get("/cmd-flags", response_model=dict[str, Any])
    async def cmd_flags() -> Any:
        """How the server was started, as far as that is anybody's business: no password, no path, no token."""
        return flags_of(context)

    @routes.get("/memory", response_model=dict[str, Any])
    async def memory() -> Any:
        """Bytes of main memory, and of the GPU when there is one."""
        return await context.aside(memory_of, context)

    @routes.post("/unload-checkpoint", response_model=dict[str, Any])
    async def unload() -> Any:
        """Free the memory of the models; the next request loads its own again."""
        await context.aside(service.shelf.unload)
        return {}

    @routes.post("/reload-checkpoint", response_model=dict[str, Any])
    async def reload() -> Any:
        await context.aside(service.shelf.reload)
        return {}

    @routes.post("/server-kill", response_model=None, responses=answers(403), tags=["server"])
    @routes.post("/server-stop", response_model=None, responses=answers(403), tags=["server"])
    async def stop(request: Request) -> None:
        """End the server, where it was started so that this is open."""
        if not context.flags.server_stop:
            raise Refused(403, f"{request.url.path} is switched off.", "end the server where it was started.")
        context.stopping.set()

    @routes.post("/server-restart", response_model=None, responses=answers(403), tags=["server"])
    async def restart(request: Request) -> None:
        """Never open: nothing here would start it again."""
        raise Refused(403, f"{request.url.path} is switched off.", "start the server again by hand.")

    return routes


def own_jobs(context: ApiContext, request: Request) -> list[Job]:
    """What draws now: all of it, or the caller's own where users sign in."""
    owner = owner_of(request)
    return [job for job in context.service.running() if not owner or job.order.owner == owner]


def task_of(context: ApiContext, job: Job) -> list[Job]:
    """All jobs of the request that this one belongs to, those that are over as long as they are kept."""
    found = (context.service.job(one) for one in context.tasks.beside(job))
    return [one for one in found if one is not None] or [job]


def progress_of(task: list[Job], job: Job, current_image: str | None) -> Progress:
    """Of a request's jobs, of which `job` is being drawn."""
    at_once = job.order.at_once or 1
    steps = sum(one.steps for one in task)
    done = sum(one.steps if one.over else one.steps * one.share for one in task)
    rounds_before = sum(_rounds(one) for one in task if one.over)
    rounds_done = min(len(job.pictures) // at_once, -(-job.order.request.count // at_once) - 1)
    return Progress(
        progress=max(done / max(steps, 1), 0.001),  # 0 would say that nothing is drawn
        eta_relative=max(one.eta_s or 0.0 for one in task),
        state=State(
            job=f"task({job.id})",
            job_count=sum(_rounds(one) for one in task),
            job_timestamp=time.strftime("%Y%m%d%H%M%S", time.localtime(job.started_s or job.created_s)),
            job_no=rounds_before + rounds_done * _passes(job),
            sampling_step=job.picture_step,
            sampling_steps=job.picture_steps,
        ),
        current_image=current_image,
        current_task=job.id,
    )


def _passes(job: Job) -> int:
    return 2 if job.order.request.hires else 1


def _rounds(job: Job) -> int:
    """Batches as A1111 counts them, each pass of one for itself."""
    return -(-job.order.request.count // (job.order.at_once or 1)) * _passes(job)


def preview_text(job: Job, context: ApiContext) -> str | None:
    """What is in work as a small picture in base64; None when there is none yet."""
    image = job.preview()
    if image is None:
        return None
    format_ = context.options["live_previews_image_format"]
    settings = {
        "samples_format": format_,
        "enable_pnginfo": False,
        "jpeg_quality": _PREVIEW_QUALITY,
        "webp_lossless": False,
    }
    return in_base64(image.convert("RGB"), settings)


def flags_of(context: ApiContext) -> dict[str, Any]:
    """Under A1111's names, for programs that look; what could be a secret is not among them."""
    return {
        "api": True,
        "nowebui": False,
        "share": False,
        "listen": False,
        "ngrok": None,
        "gradio_auth": None,
        "api_auth": None,
        "api_server_stop": context.flags.server_stop,
        "enable_insecure_extension_access": False,
        "disable_safe_unpickle": False,
        "no_half": False,
        "medvram": False,
        "lowvram": False,
        "xformers": False,
        "skip_torch_cuda_test": True,
    }


def memory_of(context: ApiContext) -> dict[str, Any]:
    import psutil
    import torch

    ours, all_of_it = psutil.Process().memory_info().rss, psutil.virtual_memory()
    ram = {"free": all_of_it.total - ours, "used": ours, "total": all_of_it.total}
    if not torch.cuda.is_available():
        return {"ram": ram, "cuda": {"error": "there is no GPU"}}
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()

    def pair(name: str) -> dict[str, int]:
        return {at: stats.get(f"{name}_bytes.all.{at}", 0) for at in ("current", "peak")}

    return {
        "ram": ram,
        "cuda": {
            "system": {"free": free, "used": total - free, "total": total},
            "active": pair("active"),
            "allocated": pair("allocated"),
            "reserved": pair("reserved"),
            "inactive": pair("inactive_split"),
            "events": {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)},
        },
    }
