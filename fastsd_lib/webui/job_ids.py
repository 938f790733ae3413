"""Ids that clients choose for their jobs."""

from __future__ import annotations

from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext


def check_job_id(job_id: str, owner: str, context: ApiContext) -> None:
    """An id names one job at a time, and never another user's: it would take that one's place, also in the history.

    Refused (409) when it does; "" is none and always right. Reads the history: not for the thread that answers all.
    """
    if not job_id:
        return
    job, history = context.service.job(job_id), context.service.history
    entry = history.get(job_id) if history else None
    taken = job is not None and (not job.over or job.order.owner != owner)
    if taken or (entry is not None and entry["owner"] != owner):
        raise Refused(409, f"There is a job {job_id[:100]!r} already.", "take another id, or none.")
