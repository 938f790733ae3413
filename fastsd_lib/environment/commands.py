"""The commands that work before anything is installed: install, doctor, lab, demo, test."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import bootstrap, profiles


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and the way out."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}.", fix=f"{self.prog} --help")


def say(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str]) -> int:
    """Parse and run one of these commands; UserError is for the caller to print."""
    parser = Parser(prog="fastsd", allow_abbrev=False)
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser))
    options, rest = parser.parse_known_args(argv)
    if options.takes_rest:
        rest = argv[1:]
    elif rest:
        raise UserError(f"fastsd {argv[0]}: unknown argument {rest[0]!r}.", fix=f"fastsd {argv[0]} --help")
    return options.run(options, rest)


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Add the five commands to a parser; each but `demo` sets `run(options, rest) -> int`."""
    install = subparsers.add_parser("install", help="install only what is missing", allow_abbrev=False)
    install.add_argument("profile", nargs="?", default="train", metavar="|".join(profiles.PROFILES))
    install.add_argument("--venv", type=Path, metavar="DIR", help="another place than .venv in the project")
    install.add_argument(
        "--with", dest="installer", choices=("uv", "pip"), default="uv", help="who installs (uv)"
    )
    install.add_argument(
        "--make-wheelhouse", type=Path, metavar="DIR", help="write one archive of all wheels to DIR"
    )
    install.add_argument(
        "--wheelhouse", type=Path, metavar="DIR", help="install from that archive, without network"
    )
    install.add_argument(
        "--allow-replace", action="append", default=[], metavar="NAME", help="let a host's own package change"
    )
    install.add_argument(
        "--update-locks", action="store_true", help="resolve pyproject.toml anew (maintainers)"
    )
    install.add_argument("--torch", metavar="VERSION", help="with --update-locks: the torch release to lock")
    install.set_defaults(run=_install, takes_rest=False)

    doctor = subparsers.add_parser(
        "doctor",
        help="what this machine has, what is broken, what to type",
        epilog="Exit status: 0 if all is well, 1 if a fault was found.",
        allow_abbrev=False,
    )
    doctor.add_argument("profile", nargs="?", metavar="|".join(profiles.PROFILES))
    doctor.add_argument("--fix", action="store_true", help="do what can be done about the faults")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--deep", action="store_true", help="also import torch and the rest (slow)")
    doctor.set_defaults(run=_doctor, takes_rest=False)

    for name, run, text in (
        ("lab", _lab, "JupyterLab on the notebooks; further arguments go to it"),
        ("test", _test, "the whole test suite; further arguments go to pytest"),
        ("demo", None, "from photos to a trained model and a before/after grid, without network or GPU"),
    ):
        parser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.set_defaults(run=run, takes_rest=True)  # `demo` is a workflow: the launcher knows it


def _install(options: argparse.Namespace, rest: list[str]) -> int:
    profile = profiles.check_profile(options.profile)
    venv = bootstrap.Venv(options.venv.absolute()) if options.venv else bootstrap.project_venv()
    if options.update_locks:
        from fastsd_lib.environment import locks

        bootstrap.make(venv)
        locks.update_locks(venv.uv, bootstrap.REPOSITORY / "pyproject.toml", options.torch)
        say(f"Wrote {profiles.LOCKS}.")
        return 0
    from fastsd_lib.environment import install

    chosen = venv if options.venv else None
    if options.make_wheelhouse:
        install.make_wheelhouse(profile, options.make_wheelhouse.absolute(), say, venv=chosen)
        return 0
    install.ensure(
        profile,
        say,
        venv=chosen,
        installer=options.installer,
        wheels_in=options.wheelhouse and options.wheelhouse.absolute(),
        allow_replace=options.allow_replace,
    )
    return 0


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.environment import doctor

    return doctor.main(options.profile, fix=options.fix, as_json=options.json, deep=options.deep)


def _lab(options: argparse.Namespace, rest: list[str]) -> int:
    notebooks = bootstrap.REPOSITORY / "notebooks"
    say(f"JupyterLab on {notebooks} (Ctrl-C twice to end it)")
    return subprocess.run([sys.executable, "-m", "jupyterlab", *rest], cwd=notebooks, check=False).returncode


# TensorFlow, ONNX, OpenVINO and Ray stay in a process once loaded, and what came later in it has ended inside protobuf:
# the tests that load them have a run of their own.
VIT_TESTS = "tests/vit"


def _test(options: argparse.Namespace, rest: list[str]) -> int:
    own = {"-n", "--numprocesses", "--pdb", "--collect-only", "--co"}
    workers = os.cpu_count() or 1
    spread = (
        []
        if own & {word.split("=")[0] for word in rest}
        else ["-n", str(min(workers, 8)), "--dist", "loadfile"]
    )
    # One thread per worker: torch would start as many as there are cores in each of them.
    surroundings = {"OMP_NUM_THREADS": "1", **os.environ}
    surroundings.pop("PYTHONDONTWRITEBYTECODE", None)  # every worker would compile torch and diffusers anew
    runs = [rest] if rest else [[f"--ignore={VIT_TESTS}"], [VIT_TESTS]]
    say(f"pytest on {bootstrap.REPOSITORY / 'tests'} ({' '.join(spread) or 'one process'})")
    ends = [
        subprocess.run(
            [sys.executable, "-m", "pytest", *spread, *words],
            cwd=bootstrap.REPOSITORY,
            env=surroundings,
            check=False,
        ).returncode
        for words in runs
    ]
    return next((end for end in ends if end), 0)
