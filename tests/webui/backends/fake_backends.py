"""A small git repository that behaves like each back end, well or badly; with nothing but Python's library."""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

PROGRAM = '''
"""Stands for a web UI: answers its API on --port. FAKE and behaviour.txt say how it behaves."""
import http.server, json, os, signal, subprocess, sys, threading, time
from pathlib import Path

here = Path(__file__).parent
version = (here / "version.txt").read_text().strip()
modes = (os.environ.get("FAKE") or (here / "behaviour.txt").read_text()).split()
sys.argv += os.environ.get("COMMANDLINE_ARGS", "").split()
print(f"Launching version {version} with arguments: {' '.join(sys.argv[1:])}", flush=True)
Path(os.environ["FAKE_NOTE"]).write_text(json.dumps(
    {"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid(), "executable": sys.executable, "cwd": os.getcwd()}
)) if "FAKE_NOTE" in os.environ else None
port = int(sys.argv[sys.argv.index("--port") + 1])
begun = time.monotonic()
if "children" in modes:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", deaf])
if "crash" in modes:
    for number in range(60):
        print(f"line {number}", flush=True)
    import module_that_is_not_there
if "fails" in modes:
    sys.exit(3)
if "oom" in modes:
    print("loading the model", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if "cuda" in modes:
    print("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
    sys.exit(1)
if "hang" in modes:
    time.sleep(600)
if "slow" in modes:
    time.sleep(2)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        late = "early-port" in modes and time.monotonic() < begun + 2.5
        known = {"/sdapi/v1/progress", "/system_stats", "/version", "/end"}
        if "controlnet" in modes:
            known.add("/controlnet/version")
        self.send_response(200 if self.path in known and not late else 404)
        self.end_headers()
        self.wfile.write(version.encode())
        if self.path == "/end":
            os.kill(os.getpid(), signal.SIGKILL)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
'''


def make_venv(folder: Path) -> None:
    """An environment with pip, in a moment: unpacked, where ensurepip would install it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (wheel,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)


def git(folder: Path, *arguments: str) -> str:
    names = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env={**os.environ, **names},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    """Version 1, which behaves well, tagged v1."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "master")
    for name in ("launch.py", "main.py"):
        (folder / name).write_text(PROGRAM)
    (folder / "requirements.txt").write_text("# nothing\n")
    add_version(folder, "1", "well")
    return folder


def add_version(folder: Path, version: str, behaviour: str) -> str:
    """One more commit, tagged; its id."""
    (folder / "version.txt").write_text(version)
    (folder / "behaviour.txt").write_text(behaviour)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", f"version {version}")
    git(folder, "tag", f"v{version}")
    return git(folder, "rev-parse", "HEAD")


def make_extension(folder: Path) -> str:
    """Stands for the ControlNet extension; its commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / "preload.py").write_text("")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    return git(folder, "rev-parse", "HEAD")


def processes_with(word: str) -> list[int]:
    """The running processes with this word among their arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if word.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass
    return found


def none_left(word: str, patience_s: float = 6.0) -> bool:
    end = time.monotonic() + patience_s
    while processes_with(word):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
