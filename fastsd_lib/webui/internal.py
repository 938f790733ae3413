"""/internal: progress of one task, as the page and some programs ask for it, and what the server runs on."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from fastsd_lib.core.progress import duration
from fastsd_lib.generation.jobs import Job
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.a1111_models import Body, Name
from fastsd_lib.webui.a1111_state import flags_of, preview_text
from fastsd_lib.webui.context import ApiContext, owner_of


class TaskQuestion(Body):
    id_task: Name | None = None
    id_live_preview: int = Field(-1, description="the last preview that the client has; none is sent twice")
    live_preview: bool = True


class TaskProgress(Body):
    active: bool = False
    queued: bool = False
    completed: bool = False
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int | None = None
    textinfo: str | None = None


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/internal", tags=["internal"])
    service = context.service

    @routes.post("/progress", response_model=TaskProgress)
    async def progress(question: TaskQuestion, request: Request) -> Any:
        """How far one task is: its place in the queue, then its steps and what the picture looks like."""
        jobs = _jobs_of(context, question.id_task or "", owner_of(request))
        if not jobs:
            return TaskProgress(id_live_preview=question.id_live_preview, textinfo="Waiting...")
        told = _progress(jobs)
        told.id_live_preview = question.id_live_preview
        drawing = next((job for job in jobs if job.state == "drawing"), None)
        if drawing is not None and question.live_preview and context.options["live_previews_enable"]:
            number = _preview_number(jobs, drawing, context)
            if number > question.id_live_preview:
                encoded = await context.aside(preview_text, drawing, context)
                if encoded is not None:
                    format_ = context.options["live_previews_image_format"]
                    told.live_preview = f"data:image/{format_};base64,{encoded}"
                    told.id_live_preview = number
        return told

    @routes.get("/pending-tasks", response_model=dict[str, Any])
    async def pending(request: Request) -> Any:
        """The tasks that wait; the caller's own where users sign in."""
        waiting = [job.id for job in service.jobs(owner_of(request) or None) if job.state == "waiting"]
        return {"size": len(waiting), "tasks": waiting}

    @routes.get("/ping", response_model=dict[str, Any])
    async def ping() -> Any:
        return {}

    @routes.get("/quicksettings-hint", response_model=list[dict[str, str]])
    async def hints() -> Any:
        """The names of the settings."""
        return [{"name": name, "label": name} for name in context.options.values()]

    @routes.get("/profile-startup", response_model=dict[str, Any])
    async def profile() -> Any:
        return {"total": 0.0, "records": {}}

    @routes.get("/sysinfo", response_model=dict[str, Any])
    @routes.get("/sysinfo-download", response_model=dict[str, Any])
    async def sysinfo() -> Any:
        """What the server runs on, without a name, a path, an environment variable or a password in it."""
        return await context.aside(_sysinfo, context)

    return routes


def _jobs_of(context: ApiContext, task_id: str, owner: str) -> list[Job]:
    """The jobs of a task: those noted for it, or the one that has its name."""
    jobs = [context.service.job(one) for one in context.tasks.job_ids(task_id, owner)]
    return [job for job in jobs if job is not None and (not owner or job.order.owner == owner)]


def _progress(jobs: list[Job]) -> TaskProgress:
    steps = sum(job.steps for job in jobs)
    done = sum(job.steps * job.share if not job.over else job.steps for job in jobs)
    if all(job.over for job in jobs):
        return TaskProgress(completed=True, progress=1.0, eta=0.0)
    left = [job.eta_s for job in jobs if not job.over]
    if all(job.state == "waiting" for job in jobs):
        place = min(job.place for job in jobs)
        return TaskProgress(queued=True, progress=0.0, eta=left[-1], textinfo=f"In queue: place {place}")
    told = TaskProgress(active=True, progress=done / max(steps, 1), eta=left[-1])
    if left[-1]:
        told.textinfo = f"{duration(left[-1])} left"
    return told


def _preview_number(jobs: list[Job], drawing: Job, context: ApiContext) -> int:
    """Counts up with the steps: every `show_progress_every_n_steps` there is another picture."""
    every = max(context.options["show_progress_every_n_steps"], 1)
    return (sum(job.steps for job in jobs if job.over) + drawing.step) // every


def _sysinfo(context: ApiContext) -> dict[str, Any]:
    import psutil

    versions = {}
    for package in ("torch", "diffusers", "transformers", "safetensors", "gradio", "fastapi", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    memory = psutil.virtual_memory()
    return {
        "Platform": platform.system(),
        "Python": platform.python_version(),
        "CPU": {"model": platform.machine(), "count logical": psutil.cpu_count()},
        "RAM": {"total": memory.total, "free": memory.available},
        "Packages": versions,
        "Commandline": flags_of(context),
        "Config": a1111_settings.shown(context),
        "Extensions": [],
    }
