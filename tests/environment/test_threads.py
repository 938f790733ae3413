import os
import subprocess
import sys

from fastsd_lib.environment.bootstrap import REPOSITORY

PROGRAM = """
import os
from fastsd_lib import launch
launch.main(["identify", "no such file"])
print(os.environ.get("GOMP_SPINCOUNT", "as it was"))
"""


def _spins(**setting):
    clean = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=clean | setting, capture_output=True, text=True
    )
    return ran.stdout.strip()


def test_threads_that_wait_spin_briefly_unless_the_user_says_otherwise():
    """Spinning for ever they would take the core of the thread that they wait for when another program runs."""
    assert _spins() == "1000"
    assert _spins(GOMP_SPINCOUNT="5") == "5"
    assert _spins(OMP_WAIT_POLICY="ACTIVE") == "as it was"
