"""What a job that failed says to whoever ordered it."""

from __future__ import annotations

import logging

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.jobs import Job, OwnFault

LOG = logging.getLogger(__name__)


def for_the_user(job: Job, error: Exception) -> UserError:
    """A fault of ours goes to the log, and only a sentence to the user."""
    if isinstance(error, UserError):
        return error
    LOG.error("Job %s failed", job.id, exc_info=error)
    return OwnFault()


def took_too_long(most_seconds: float) -> UserError:
    return UserError(
        f"The drawing took more than {most_seconds:g} s.",
        fix="ask for fewer pictures or steps, or smaller ones.",
    )
