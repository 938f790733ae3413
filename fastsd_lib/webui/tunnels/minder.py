"""Runs one client program and ends it, with all that it started, as soon as the program that asked for it is gone.

Started as a file, `python -I -S minder.py CLIENT ARGUMENTS ...`, with the standard library only. It leads a process
group of its own. Its standard input is a pipe that nobody writes to: the end of that pipe, or another parent than at
the start, means that whoever asked was closed or killed. Exit status: the client's; 128 + n after signal n.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PATIENCE_S = 2.0
LOOK_S = 1.0  # a forked helper of ours may hold the pipe open: then the parent's number tells


def main() -> int:
    parent = os.getppid()
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # select returns at once when the client ends
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: end_the_group())
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_the_minder() -> None:  # the minder has one thread: safe between fork and exec
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    # its standard input stays open and silent: some hosts hang up when it ends
    client = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, preexec_fn=die_with_the_minder)
    while client.poll() is None:
        readable, _, _ = select.select([0, ended], [], [], LOOK_S)
        if (0 in readable and not os.read(0, 4096)) or os.getppid() != parent:
            end_the_group()
        if ended in readable:
            os.read(ended, 4096)
    return client.returncode if client.returncode >= 0 else 128 - client.returncode


def end_the_group() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.02)
        except ChildProcessError:
            break
    os.killpg(0, signal.SIGKILL)  # what the client started and left, and this program itself


if __name__ == "__main__":
    raise SystemExit(main())
