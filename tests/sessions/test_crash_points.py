"""No way that we know of loses a checkpoint, and each safeguard is needed: without it the same probe finds a loss.

What is tried, and what is only simulated, stands in crash_survey.py and docs/checkpoints.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash import ERRNOS
from crash_survey import SAFEGUARDS

SURVEY = Path(__file__).with_name("crash_survey.py")
#: The probe that must miss each safeguard.
SEEN_BY = {
    "file fsync": "posix",
    "folder fsync": "posix",
    "seal": "flips",
    "seal of the text": "flips",
    "hashes": "cloud",
    "read-back": "lies",
    "new folder per save": "kill",
    "manifest last": "kill",
    "delete rule": "upload",
    "manifest deleted first": "kill",
    "begun.json deleted last": "kill",
}


def _survey(*words: str, inside: tuple[str, ...] = ()) -> dict:
    ran = subprocess.run(
        [*inside, sys.executable, SURVEY, *words], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_killed_at_any_change_of_the_disk_no_announced_checkpoint_is_lost_and_work_goes_on():
    found = _survey("kill")
    assert found["faults"] == []
    assert found["tried"] >= 200 and min(found["before"], found["torn"], found["after"]) >= 60


def test_after_a_power_cut_anywhere_the_announced_checkpoint_is_there():
    found = _survey("posix")
    assert found["faults"] == [] and found["tried"] >= 250


def test_whatever_drive_shows_of_three_saves_is_loaded_whole_or_refused():
    found = _survey("cloud")
    assert found["faults"] == [] and found["tried"] >= 10_000
    assert 500 <= found["nothing to load"] <= found["tried"] - 500  # both happen
    assert found["also on disk"] >= 200


def test_what_drive_has_confirmed_stays_loadable_however_late_the_other_uploads_are():
    found = _survey("upload")
    assert found["faults"] == [] and found["tried"] >= 3000


def test_any_error_at_any_call_names_its_file_costs_nothing_announced_and_the_next_save_works():
    names = list(ERRNOS)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda some: _survey("errors", "--errors", *some), (names[:4], names[4:])))
    assert [fault for half in halves for fault in half["faults"]] == []
    calls = halves[0]["calls"]
    assert calls >= 150 and sum(half["tried"] for half in halves) == calls * len(ERRNOS) * 2


def test_a_real_disk_that_is_full_at_any_byte_keeps_what_was_announced():
    # A small tmpfs in a mount namespace of its own, as root or as root of a user namespace: it vanishes with the program.
    ways = (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount"))
    possible = [way for way in ways if shutil.which("unshare") and not _fails([*way, "true"])]
    if not possible:
        pytest.skip("this system mounts no tmpfs for us; ENOSPC is injected at every call all the same")
    found = _survey("full", inside=possible[0])
    assert found["faults"] == [] and found["tried"] >= 30 and found["full disks"] >= 20


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found_on_open():
    found = _survey("flips")
    assert found["faults"] == [] and found["tried"] >= 400


def test_a_disk_that_stores_something_else_is_found_out_before_the_save_is_announced():
    found = _survey("lies")
    assert found["faults"] == [] and found["tried"] >= 50


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_without_any_one_safeguard_something_is_lost(safeguard):
    assert _survey(SEEN_BY[safeguard], "--without", safeguard)["faults"]


def _fails(command: list[str]) -> bool:
    return bool(subprocess.run(command, capture_output=True, check=False).returncode)
