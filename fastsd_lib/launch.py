"""Which Python runs a command: this one, or that of `.venv/`, which is made first if need be.

| command | before it runs |
|---|---|
| `install`, `doctor` | nothing: they run in whatever Python there is |
| `demo`, `lab`, `test` | `.venv/` is made or completed |
| those of the `core` profile | the same, if this Python lacks the packages (some seconds) |
| the others | one line says what to type: their profiles are large, and that is the user's choice |
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import os
import subprocess
import sys

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import bootstrap, commands, hosts, install, profiles, threads

OWN_COMMANDS = ("install", "doctor", "lab", "demo", "test")
PROFILE_OF = {
    "demo": "train",
    "lab": "train",
    "test": "all",
    "session": "core",
    "train": "train",
    "generate": "train",
    "identify": "core",
    "convert": "train",
    "models": "core",
    "webui": "webui",
    "vit": "vit",
    "benchmark": "train",
}


def main(argv: list[str]) -> int:
    """Run one command line; 2 and two lines on stderr for anything a user can cause."""
    threads.spin_briefly()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file's name may hold what the terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. The same command goes on where this one stopped.\n")
        return 130
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str]) -> int:
    command = next((word for word in argv if not word.startswith("-")), "")
    if not command or (
        command in PROFILE_OF and command not in OWN_COMMANDS and {"-h", "--help"} & set(argv)
    ):
        return _command_line(argv)
    if command not in PROFILE_OF and command not in OWN_COMMANDS:
        known = sorted({*PROFILE_OF, *OWN_COMMANDS})
        close = difflib.get_close_matches(command, known, 1)
        hint = f"did you mean: python3 -m fastsd_lib {close[0]}" if close else f"one of: {', '.join(known)}"
        raise UserError(f"There is no command {command!r}.", fix=hint)
    rest = argv[argv.index(command) + 1 :]
    if command in {"install", "doctor"} or {"-h", "--help"} & set(rest):
        return _here(command, rest)
    return _in_its_environment(command, argv, rest)


def _in_its_environment(command: str, argv: list[str], rest: list[str]) -> int:
    profile = PROFILE_OF[command]
    venv = bootstrap.project_venv()
    own = command in OWN_COMMANDS
    if not venv.is_running and not _runs_here(profile):
        if own or not bootstrap.meets_floors(venv, profile):
            if not own and profile != "core":
                raise UserError(
                    f"`{command}` needs the {profile} packages, which are not installed here.",
                    fix=f"python3 -m fastsd_lib install {profile}",
                )
            bootstrap.ensure(profile, venv, commands.say)
        return hand_over(venv, argv)
    if own and (
        venv.is_running or hosts.which() in hosts.READY_MADE
    ):  # it may need more than is there so far
        install.ensure(profile, _unless_idle)
    return _here(command, rest) if own else _command_line(argv)


def _unless_idle(line: str) -> None:
    if not line.startswith("Nothing to do"):
        commands.say(line)


def _runs_here(profile: str) -> bool:
    """True if the running Python is the one to use: Colab's, or one that a user filled; never beside a `.venv/`."""
    if hosts.which() in hosts.READY_MADE or not bootstrap.is_checkout():
        return True
    if bootstrap.project_venv().python_version:
        return False
    return all(importlib.util.find_spec(module) for module in profiles.SIGN_OF[profile])


def _here(command: str, rest: list[str]) -> int:
    if command == "demo":
        from fastsd_lib.workflows import demo

        return demo.run(rest)
    return commands.main([command, *rest])


def _command_line(argv: list[str]) -> int:
    from fastsd_lib import cli  # light, but not needed to install

    return cli.main(argv)


def hand_over(venv: bootstrap.Venv, argv: list[str]) -> int:
    """Run the same command in the environment's Python, with our stdin, stdout and exit status."""
    if venv.is_running:
        raise UserError(
            f"{venv.path} is running already but lacks packages.", fix=f"delete {venv.path} and try again."
        )
    command = [str(venv.python), "-m", "fastsd_lib", *argv]
    surroundings = dict(os.environ)
    if surroundings.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Without bytecode every process compiles torch and diffusers anew (16 instead of 6 CPU seconds here). Whoever
        # set this wants no __pycache__ folders about: so it goes into the environment, which is ours.
        surroundings["PYTHONPYCACHEPREFIX"] = str(venv.path / "bytecode")
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # there, exec returns to the shell before the command is done
        return subprocess.run(command, env=surroundings, check=False).returncode
    os.execve(command[0], command, surroundings)
