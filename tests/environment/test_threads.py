import os
import subprocess
import sys

from fastsd_lib.environment.bootstrap import REPOSITORY

PROGRAM = """
import os, sys
sys.argv[1:] = ["identify", "no such file"]
from fastsd_lib import launch
launch.main(sys.argv[1:])
print(os.environ["OMP_WAIT_POLICY"])
"""


def _policy(**setting):
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=clean | setting, capture_output=True, text=True
    )
    return ran.stdout.strip()


def test_threads_that_wait_sleep_unless_the_user_says_otherwise():
    """Spinning, they would take the core of the thread that they wait for when another program runs."""
    assert _policy() == "PASSIVE"
    assert _policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
