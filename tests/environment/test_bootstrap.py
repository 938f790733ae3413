import ast
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastsd_lib.environment import installed
from tests.environment.conftest import REPOSITORY, Project, build_wheel

NO_PIP = "import sys, runpy; sys.modules['pip'] = None; sys.argv[0] = 'fastsd'; "


def versions(project: Project) -> dict[str, str]:
    return installed.versions(project.venv.packages)


def test_a_bare_python_gets_an_environment_with_exactly_the_locked_versions(project):
    build_wheel(project.wheels, "alpha", "9.0")  # newer, but not in the lock
    ran = project.run("install", "core")
    assert ran.returncode == 0, ran.stderr
    assert versions(project) == {"alpha": "1.0", "beta": "2.0"}
    assert "Installed 2 packages in" in ran.stdout
    command = [project.venv.python.with_name("fastsd"), "install", "core"]
    again = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "Nothing to do" in again.stdout


def test_with_nothing_to_do_no_installer_starts_and_half_a_second_is_enough(project):
    assert project.run("install", "core").returncode == 0
    project.venv.uv.unlink(missing_ok=True)
    project.venv.uv.write_text("#!/bin/sh\nexit 77\n")
    before = os.times()
    ran = project.run("install", "core")
    after = os.times()
    assert ran.returncode == 0 and "Nothing to do" in ran.stdout
    # Processor time, so that a busy machine does not decide; benchmarks/install.py shows the wall clock.
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5


def test_a_tampered_wheel_is_refused_by_name_and_nothing_of_it_is_installed(project):
    wheel = project.wheels / "alpha-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    ran = project.run("install", "core")
    assert ran.returncode == 2
    assert "alpha" in ran.stderr and "SHA-256 differs" in ran.stderr and "->" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "alpha" not in versions(project)


def test_without_network_one_line_says_so_and_names_the_wheelhouse(project):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    ran = project.run("install", "core", UV_HTTP_RETRIES="0", **nowhere)
    assert ran.returncode == 2
    assert "The package index cannot be reached" in ran.stderr
    assert "--wheelhouse DIR" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 2


def test_a_folder_that_cannot_be_written_is_named_with_the_way_round_it(project):
    ran = project.run(
        "install", "core", "--venv", "/proc/fastsd"
    )  # nobody, root included, makes a folder there
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "/proc/fastsd cannot be written.",
        "  -> copy the project to a folder of your own, or: python3 -m fastsd_lib install --venv DIR",
    ]


def _in_own_mounts(project: Project, script: str) -> subprocess.CompletedProcess:
    """Run a shell script where mounts are private; as root, or as root of a user namespace of one's own."""
    maybe_map = [] if os.geteuid() == 0 else ["-r"]
    command = ["unshare", *maybe_map, "-m", "sh", "-ec", script]
    return subprocess.run(
        command, cwd=project.path, env=project.surroundings, capture_output=True, text=True, check=False
    )


def test_a_read_only_mount_is_named_before_anything_is_downloaded(project, tmp_path):
    place = tmp_path / "sealed"
    place.mkdir()
    mount = f"mount -t tmpfs -o ro tmpfs {place}"
    ran = _in_own_mounts(project, f"{mount}; {project.command('install', 'core', '--venv', f'{place}/venv')}")
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith(f"{place}/venv cannot be written.")


def test_a_full_disk_is_named_and_the_next_run_goes_on(project, tmp_path):
    project.lock(
        build_wheel(project.wheels, "alpha", "1.0"), build_wheel(project.wheels, "huge", "1.0", size=12 << 20)
    )
    place = tmp_path / "small"
    place.mkdir()
    links = f"mkdir -p {place}/venv/uv/bin && ln -s $(readlink -f .venv/uv/bin/uv) {place}/venv/uv/bin/uv"
    links = links if project.venv.uv.exists() else ":"
    install = project.command("install", "core", "--venv", f"{place}/venv")
    script = f"mount -t tmpfs -o size=8m tmpfs {place}; {links}; {install} || status=$?; "
    script += f"mount -o remount,size=64m {place}; {install}; exit $status"
    ran = _in_own_mounts(project, script)
    assert ran.returncode == 2, ran.stderr
    assert "The disk is full" in ran.stderr and "run the same command again" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Installed" in ran.stdout.splitlines()[-1]


def test_an_install_that_was_killed_is_completed_by_the_next_one(project):
    assert project.run("install", "core").returncode == 0
    found = {one.name: one for one in installed.read(project.venv.packages)}
    (found["alpha"].folder / "INSTALLER").unlink()  # what a kill leaves: files, but not yet the last of them
    (project.venv.packages / "alpha" / "__init__.py").unlink()
    ran = project.run("install", "core")
    assert ran.returncode == 0, ran.stderr
    assert "Repairing an interrupted install (alpha)" in ran.stdout
    assert (project.venv.packages / "alpha" / "__init__.py").is_file()
    assert project.run("install", "core").stdout.startswith("Nothing to do")


def test_a_kill_at_any_moment_leaves_something_that_the_next_run_repairs(project):
    for delay in (0.05, 0.15, 0.3, 0.6):
        install = subprocess.Popen(
            [sys.executable, "-m", "fastsd_lib", "install", "core"],
            cwd=project.path,
            env=project.surroundings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(delay)
        os.killpg(install.pid, signal.SIGKILL)
        install.wait()
    ran = project.run("install", "core")
    assert ran.returncode == 0, ran.stderr
    assert versions(project) == {"alpha": "1.0", "beta": "2.0"}


def test_ctrl_c_ends_with_one_line_and_status_130(project):
    project.venv.uv.unlink(missing_ok=True)
    project.venv.uv.parent.mkdir(parents=True, exist_ok=True)
    project.venv.uv.write_text('#!/bin/sh\ncase "$*" in *version*) exit 0;; esac\ntouch started\nsleep 30\n')
    project.venv.uv.chmod(0o755)
    install = subprocess.Popen(
        [sys.executable, "-m", "fastsd_lib", "install", "core"],
        cwd=project.path,
        env=project.surroundings,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 20
    while not (project.path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(install.pid, signal.SIGINT)
    assert install.wait(timeout=10) == 130
    assert install.stderr.read().strip() == "Stopped. The same command goes on where this one stopped."


def _serve(pages: dict[str, bytes]):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            self.send_response(200 if page is not None else 404)
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _without_pip(project: Project, index: str, *, ensurepip: bool) -> subprocess.CompletedProcess:
    project.venv.uv.unlink(missing_ok=True)
    hide = "" if ensurepip else "sys.modules['ensurepip'] = None; "
    program = NO_PIP + hide + "import fastsd_lib.__main__ as door; sys.exit(door.main(['install', 'core']))"
    surroundings = {**project.surroundings, "PIP_INDEX_URL": index, "UV_HTTP_RETRIES": "0"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=project.path,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_python_without_pip_and_ensurepip_hears_which_packages_to_install(project):
    server = _serve({"/simple/uv/": b"<html></html>"})  # an index that has no uv for this system
    ran = _without_pip(project, f"http://127.0.0.1:{server.server_port}/simple", ensurepip=False)
    server.shutdown()
    assert ran.returncode == 2
    assert "neither pip nor ensurepip" in ran.stderr
    assert "sudo apt install python3-venv python3-pip" in ran.stderr


def test_a_python_without_pip_fetches_uv_by_itself_and_refuses_a_changed_one(project):
    name = "uv-{}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.macosx_arm64.aarch64.win_amd64.whl"
    version = (REPOSITORY / "fastsd_lib/environment/locks/uv.txt").read_text().split("uv==")[1].split()[0]
    name = name.format(version)
    page = f'<a href="../../{name}#sha256=00">{name}</a>'.encode()
    server = _serve({"/simple/uv/": page, f"/{name}": b"not the uv that the lock names"})
    ran = _without_pip(project, f"http://127.0.0.1:{server.server_port}/simple", ensurepip=True)
    server.shutdown()
    assert ran.returncode == 2
    assert "uv-" in ran.stderr and "SHA-256 differs" in ran.stderr


@pytest.mark.parametrize("file", ["fastsd_lib/__init__.py", "fastsd_lib/__main__.py"])
def test_an_old_python_can_read_the_files_that_turn_it_away(file):
    source = (REPOSITORY / file).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__" not in source


def test_an_old_python_hears_which_python_is_needed():
    program = "import sys; sys.version_info = (3, 8, 18); import fastsd_lib.__main__ as door; sys.exit(door.main([]))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "needs Python 3.10 or newer; this is Python 3.8.18" in ran.stderr
    assert "-> run it with a newer one" in ran.stderr


def test_an_environment_whose_python_is_gone_is_made_again(project):
    assert project.run("install", "core").returncode == 0
    project.venv.python.unlink()
    project.venv.python.symlink_to("/nowhere/python3")
    ran = project.run("install", "core")
    assert ran.returncode == 0, ran.stderr
    assert (
        subprocess.run([project.venv.python, "-c", "import alpha, fastsd_lib"], check=False).returncode == 0
    )


def test_pip_installs_the_same_where_uv_is_not_wanted(project):
    ran = project.run("install", "core", "--with", "pip")
    assert ran.returncode == 0, ran.stderr
    have = versions(project)
    assert (have["alpha"], have["beta"]) == ("1.0", "2.0")


def test_a_torch_that_is_new_enough_is_kept_whatever_its_build(project, monkeypatch, tmp_path):
    from fastsd_lib.environment import bootstrap

    venv = bootstrap.Venv(tmp_path / "own")
    place = venv.path / "lib" / "python3" / "site-packages"
    for name, version in (("torch", "2.11.0+cu128"), ("numpy", "0.1")):
        info = place / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").touch()
        (info / "INSTALLER").touch()
    venv.python.parent.mkdir()
    venv.python.touch()
    (venv.path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    lacking = {pin.name for pin in bootstrap.missing(venv, "train")}
    assert "numpy" in lacking and "diffusers" in lacking
    assert not lacking & {"torch", "triton", "nvidia-cublas"}
    assert "torch" in {pin.name for pin in bootstrap.missing(venv, "train", build="cpu", replace=["torch"])}
