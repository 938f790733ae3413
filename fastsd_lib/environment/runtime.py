"""Giving a rented runtime back, once nothing on it can be lost."""

from __future__ import annotations

from fastsd_lib.environment import drive, hosts
from fastsd_lib.environment.bootstrap import Say


def disconnect(
    workspace: drive.Workspace, wanted: bool = True, report: Say = print, *, places: drive.Places = drive.HERE
) -> bool:
    """End the Colab runtime after Drive has taken everything; True when it was asked to end.

    Never while the storage is temporary or Drive has not confirmed its uploads: then the runtime stays, and why is
    said. Elsewhere there is nothing to end.
    """
    if not wanted:
        return False
    if hosts.which() != "colab":
        report("Only a Colab runtime can be ended from here: stop this machine by hand.")
        return False
    if not workspace.durable:
        report(
            "The runtime stays: its storage is temporary, and would be gone with it. Download your model first."
        )
        return False
    if not drive.flush(workspace, report, places=places):
        return False
    from google.colab import runtime

    report("Everything is on Drive; the runtime ends now.")
    runtime.unassign()
    return True
