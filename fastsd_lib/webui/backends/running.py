"""A back end as it runs: started in a group of its own, awaited by its API, watched, restarted or reported, ended."""

from __future__ import annotations

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment.hosts import has_nvidia_gpu
from fastsd_lib.webui.backends.checkout import Checkout, prepare, rollback
from fastsd_lib.webui.backends.config import Backend, BackendConfig
from fastsd_lib.webui.backends.ending import last_lines, log_size, why_it_ended
from fastsd_lib.webui.backends.flags import model_folders, plan_start
from fastsd_lib.webui.backends.python_env import clean_variables
from fastsd_lib.webui.proxy_page import Trouble
from fastsd_lib.webui.tunnels.child import MINDER

ASK_EACH_S = 0.5
STOPPING_S = 8.0
RESTART_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 30.0)
LONGEST_LOG_BYTES = 32 * 2**20
Say = Callable[[str], None]


class Running:
    """One back end. `url` answers on loopback once `wait_until_ready()` has returned; `stop()` ends it and all that
    it started, and so does the end of this program, however it ends. Made by `launch`.
    """

    def __init__(self, checkout: Checkout, port: int, restarts: int, say: Say) -> None:
        self.checkout, self.port, self._restarts_left, self._say = checkout, port, restarts, say
        self.url = f"http://127.0.0.1:{port}"
        self.log: Path = checkout.places.log
        self.is_ready = False
        self._stopping, self._turn = threading.Event(), threading.Lock()
        config = checkout.config
        cpu = not has_nvidia_gpu() if config.cpu is None else config.cpu
        models = model_folders(config.models_dir)
        self._plan = plan_start(checkout.backend, config, checkout.places, port, cpu, models)
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        atexit.register(self.stop)
        threading.Thread(target=self._watch, name=f"watches {checkout.backend.name}", daemon=True).start()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_until_ready(self, limit_s: float | None = None) -> None:
        """Return when the API answers. UserError, after the log's last 40 lines were said, when the program ends
        before that or `limit_s` (default: `config.ready_s`) is over; it is stopped then.
        """
        limit_s = self.checkout.config.ready_s if limit_s is None else limit_s
        backend, end = self.checkout.backend, time.monotonic() + limit_s
        while not self._answers(backend.ready_path):
            code = self._process.poll()
            if code is not None:
                self.stop()
                raise self._failure(*why_it_ended(backend.title, code, self.last_lines()))
            if self._stopping.is_set() or time.monotonic() > end:
                self.stop()
                raise self._failure(
                    f"{backend.title} was not ready within {limit_s:g} s.",
                    "give it longer (ready_s=...), or rollback() to the version that worked last.",
                )
            time.sleep(ASK_EACH_S)
        self.is_ready = True
        self.checkout.worked()
        if backend.name == "a1111" and self.checkout.config.controlnet:
            self._check_controlnet()

    def stop(self) -> None:
        """End the program and everything that it started; the port is free afterwards."""
        self._stopping.set()
        atexit.unregister(self.stop)
        with self._turn:
            self._end()

    def last_lines(self) -> list[str]:
        """The last 40 lines of the log since this start, without secrets."""
        config = self.checkout.config
        return last_lines(
            self.log, config.credentials[1:] if config.credentials else (), since=self._log_from
        )

    def trouble(self) -> Trouble:
        """Why it does not answer now: for `serve_proxy(running.url, door, trouble=running.trouble)`."""
        title = self.checkout.backend.title
        if self._stopping.is_set():
            return Trouble(f"{title} was stopped.")
        if self.is_running:
            again = "starting again" if self.is_ready else "still starting; a first start installs gigabytes"
            return Trouble(f"{title} is {again}.", self.last_lines())
        code = self._process.poll() or 0
        return Trouble(why_it_ended(title, code, self.last_lines())[0], self.last_lines())

    # ------------------------------------------------------------------ inside

    def _start(self) -> None:
        checkout, plan = self.checkout, self._plan
        places = checkout.places
        for path, text in plan.files.items():
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
        if log_size(self.log) > LONGEST_LOG_BYTES:
            self.log.unlink()
            self.log.touch(mode=0o600)
        self._log_from = log_size(self.log)
        variables = {"PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(MINDER)),  # ends the group when this program is gone
                    *(str(checkout.python), checkout.backend.script, *plan.arguments),
                ],
                cwd=places.code,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_variables() | variables | plan.variables,
                start_new_session=True,
            )

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()  # the minder ends its group
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()

    def _watch(self) -> None:
        """Say when the program ends by itself after it had been ready, and start it again as often as was asked."""
        tries = 0
        while not self._stopping.is_set():
            code = self._process.wait()
            if self._stopping.is_set() or not self.is_ready:
                return  # `wait_until_ready` tells
            sentence, fix = why_it_ended(self.checkout.backend.title, code, self.last_lines())
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what it left behind
            if not self._restarts_left:
                for line in [*self.last_lines(), sentence, f"  -> {fix}"]:
                    self._say(line)
                return
            pause_s = RESTART_PAUSES_S[min(tries, len(RESTART_PAUSES_S) - 1)]
            self._say(f"{sentence} It is started again in {pause_s:g} s.")
            self._restarts_left, tries = self._restarts_left - 1, tries + 1
            if self._stopping.wait(pause_s):
                return
            with self._turn:
                if not self._stopping.is_set():
                    self._start()

    def _answers(self, path: str) -> bool:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        headers = {}
        if self.checkout.config.credentials:
            headers["Authorization"] = (
                "Basic " + b64encode(":".join(self.checkout.config.credentials).encode()).decode()
            )
        try:
            line.request("GET", path, headers=headers)
            return line.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            line.close()

    def _check_controlnet(self) -> None:
        if self._answers("/controlnet/version"):
            return
        lines = [
            line
            for line in last_lines(self.log, since=self._log_from, count=2000)
            if "No module named" in line
        ]
        reason = f": {lines[-1].strip()}" if lines else ""
        self._say(
            f"The ControlNet extension was not loaded{reason}. {self.checkout.backend.title} runs without it."
        )

    def _failure(self, sentence: str, fix: str) -> UserError:
        for line in self.last_lines():
            self._say(line)
        return UserError(sentence, fix=f"{fix} The whole log: {self.log}")


def launch(checkout: Checkout, port: int | None = None, restarts: int = 3, say: Say = print) -> Running:
    """Start a back end on loopback and return at once; `wait_until_ready()` next. `port` None takes a free one.

    After it was ready and ended by itself it is started again, `restarts` times. UserError for a port that is taken
    and for arguments that would open it past our door.
    """
    if os.name != "posix":
        raise UserError(
            "Other web UIs are started on Linux and macOS only.", fix="use the built-in one here."
        )
    return Running(checkout, _free_port(port), restarts, say)


def start(
    backend: Backend, config: BackendConfig, port: int | None = None, restarts: int = 3, say: Say = print
) -> Running:
    """Prepare, launch and await; when a version that never worked here fails, go back to the last that did."""
    running = launch(prepare(backend, config, say), port, restarts, say)
    try:
        running.wait_until_ready()
        return running
    except UserError as error:
        running.stop()
        if running.checkout.has_worked:
            raise  # it is not the version
        try:
            earlier = rollback(backend, config, say)
        except UserError:
            raise error from None
        say(error.message)
    except BaseException:
        running.stop()
        raise
    running = launch(earlier, port, restarts, say)
    try:
        running.wait_until_ready()
    except BaseException:
        running.stop()
        raise
    return running


def _free_port(port: int | None) -> int:
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port or 0))
        except OSError:
            raise UserError(f"Port {port} is taken.", fix="name another one, or none for any.") from None
        return bound.getsockname()[1]
