import subprocess
import sys

from tests.environment.conftest import REPOSITORY


def _fastsd(*arguments: str, cwd=REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastsd_lib", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def test_a_typing_mistake_gets_the_command_that_was_meant():
    ran = _fastsd("instal")
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "There is no command 'instal'.",
        "  -> did you mean: python3 -m fastsd_lib install",
    ]


def test_an_unknown_profile_lists_those_that_exist():
    ran = _fastsd("install", "trian")
    assert ran.returncode == 2
    assert "No profile 'trian' (there: core, train, webui, vit, dev, all)." in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_unknown_option_is_two_lines_and_status_2():
    ran = _fastsd("doctor", "--jsno")
    assert ran.returncode == 2
    assert "--jsno" in ran.stderr and "Traceback" not in ran.stderr


def test_help_shows_every_command_before_anything_is_installed(project):
    ran = project.run("install", "--help")
    assert ran.returncode == 0 and "--make-wheelhouse DIR" in ran.stdout
    assert not list(project.venv.path.glob("pyvenv.cfg"))


def test_a_large_profile_is_not_downloaded_unasked(project):
    ran = project.run("webui", python=_bare_python(project))
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "`webui` needs the webui packages, which are not installed here.",
        "  -> python3 -m fastsd_lib install webui",
    ]


def _bare_python(project):
    """A Python with nothing in it."""
    folder = project.path.parent / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    locks = project.path / "fastsd_lib/environment/locks/profiles.json"
    locks.write_text(locks.read_text().replace('"webui": {"requires": [], "packages": []}', _WEBUI))
    return folder / "bin" / "python"


_WEBUI = '"webui": {"requires": ["alpha"], "packages": ["alpha"]}'


def test_who_wants_no_bytecode_about_gets_it_inside_the_environment(project):
    (project.path / "fastsd_lib" / "cli.py").write_text(
        "import sys\ndef main(argv): print(sys.dont_write_bytecode, sys.pycache_prefix)\n"
    )
    ran = project.run("identify", "x", python=_bare_python(project), PYTHONDONTWRITEBYTECODE="1")
    assert ran.stdout.splitlines()[-1] == f"False {project.venv.path / 'bytecode'}"
    assert not list((project.path / "fastsd_lib").rglob("__pycache__"))


def test_a_command_runs_in_the_environment_with_its_exit_status_and_its_input(project):
    (project.path / "fastsd_lib" / "cli.py").write_text(
        "import sys\n"
        "def main(argv):\n"
        "    import alpha\n"
        "    print(argv, sys.stdin.read(), alpha.__version__)\n"
        "    return 7\n"
    )
    ran = subprocess.run(
        [_bare_python(project), "-m", "fastsd_lib", "identify", "a file.ckpt"],
        cwd=project.path,
        env=project.surroundings,
        input="hello",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 7, ran.stderr
    assert ran.stdout.splitlines()[-1] == "['identify', 'a file.ckpt'] hello 1.0"


def test_a_package_that_pip_installed_makes_no_environment_beside_itself(project):
    (project.path / "pyproject.toml").unlink()
    project.lock(*sorted(project.wheels.glob("*.whl")), requires=["pytest"])
    ran = project.run("install", "core")
    assert ran.stdout == "Nothing to do: core is installed here.\n", ran.stderr
    assert not project.venv.python_version
