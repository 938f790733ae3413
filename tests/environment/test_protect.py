"""A host in small: a Python of its own that already has "numpy", "torch" and more, all of them tiny wheels."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import installed, profiles, protect
from tests.environment.conftest import REPOSITORY, Project, build_wheel

ENSURE = (
    "import sys; from pathlib import Path; from fastsd_lib.core.errors import UserError\n"
    "from fastsd_lib.environment import protect\n"
    "try: protect.ensure_here('core', python=Path(sys.argv[1]), allow_replace=sys.argv[2:])\n"
    "except UserError as error: sys.exit(str(error))\n"
)


class Host:
    """The host's Python, and the project that wants to add to it."""

    def __init__(self, project: Project, tmp_path: Path) -> None:
        self.project = project
        folder = tmp_path / "host"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"

    def has(self, name: str, version: str) -> None:
        """Put a package there, in place of an older one of that name, as whoever built the image did."""
        packages = installed.site_packages(self.python.parents[1])
        for old in packages.glob(f"{name}*"):
            shutil.rmtree(old)
        wheel = build_wheel(self.project.wheels.parent / "image", name, version)
        zipfile.ZipFile(wheel).extractall(packages)
        (packages / f"{name}-{version}.dist-info" / "INSTALLER").write_text("image")

    def run(self, python: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess:
        surroundings = dict(self.project.surroundings)
        if self.project.venv.uv.exists():
            surroundings["PATH"] = f"{self.project.venv.uv.parent}{os.pathsep}{surroundings['PATH']}"
        return subprocess.run(
            [python, "-c", program, *arguments],
            cwd=self.project.path,
            env=surroundings,
            capture_output=True,
            text=True,
            check=False,
        )

    def ensure(self, *allow: str) -> subprocess.CompletedProcess:
        return self.run(Path(sys.executable), ENSURE, self.python, *allow)

    @property
    def versions(self) -> dict[str, str]:
        return protect.packages_of(self.python)


@pytest.fixture
def host(project, tmp_path) -> Host:
    made = Host(project, tmp_path)
    made.has("numpy", "2.1.3+host")
    made.has("diffusers", "0.39.0")
    return made


def test_only_what_is_missing_is_added_and_nothing_moves_although_newer_is_at_hand(host):
    wheels = host.project.wheels
    build_wheel(wheels, "numpy", "9.0")
    build_wheel(wheels, "diffusers", "0.42.0")
    extra = build_wheel(wheels, "gamma", "1.0", requires=("numpy>=2", "diffusers"))
    host.project.lock(extra, requires=["numpy>=2.1", "diffusers>=0.39", "gamma>=1"])
    ran = host.ensure()
    assert ran.returncode == 0, ran.stderr
    assert host.versions == {"numpy": "2.1.3+host", "diffusers": "0.39.0", "gamma": "1.0"}
    assert "nothing of the host's own was changed" in ran.stdout
    assert "Nothing to do" in host.ensure().stdout


def test_a_package_that_would_move_a_protected_one_is_refused_and_nothing_changes(host):
    host.has("protobuf", "5.0")  # protected, although fastsd itself does not ask for it
    wheels = host.project.wheels
    build_wheel(wheels, "protobuf", "6.0")
    extra = build_wheel(wheels, "gamma", "1.0", requires=("protobuf>=6",))
    host.project.lock(extra, requires=["numpy>=2.1", "gamma>=1"])
    before = host.versions
    ran = host.ensure()
    assert ran.returncode == 1
    assert "does not go together with what this host brings. Nothing was changed." in ran.stderr
    assert "protobuf" in ran.stderr and "--allow-replace NAME" in ran.stderr
    assert host.versions == before
    assert host.ensure("protobuf").returncode == 0  # with the user's word it may
    assert host.versions["protobuf"] == "6.0"


def test_a_protected_package_that_is_too_old_stops_with_the_two_ways_out(host):
    host.project.lock(build_wheel(host.project.wheels, "numpy", "9.0"), requires=["numpy>=3"])
    ran = host.ensure()
    assert ran.returncode == 1
    assert (
        "This host's own numpy is 2.1.3+host, and fastsd needs numpy>=3. Nothing was changed." in ran.stderr
    )
    assert "choose a newer runtime" in ran.stderr and "--allow-replace numpy" in ran.stderr


def test_a_protected_package_that_moved_all_the_same_is_an_error_with_the_undo_command(host):
    before = host.versions
    host.has("numpy", "9.0")
    done = protect.InstallReport(before, host.versions)
    with pytest.raises(UserError, match=r"numpy 2\.1\.3\+host -> 9\.0") as error:
        protect._check_protected(done, host.python, set())
    assert error.value.fix == f"undo it: {host.python} -m pip install --no-deps numpy==2.1.3+host"


def test_what_was_imported_before_it_was_replaced_asks_for_a_restart(host):
    host.has("alpha", "1.0")
    build_wheel(host.project.wheels, "alpha", "2.0")
    host.project.lock(host.project.wheels / "alpha-2.0-py3-none-any.whl", requires=["alpha>=2"])
    program = "import alpha; from fastsd_lib.environment import protect; protect.ensure_here('core')"
    ran = host.run(host.python, program)
    assert ran.returncode == 0, ran.stderr
    assert "alpha 1.0 -> 2.0" in ran.stdout
    assert "Restart the runtime now: alpha had been imported before it was replaced." in ran.stdout


def _freeze() -> dict[str, str]:
    lines = (REPOSITORY / "tests/environment/colab-freeze.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_our_floors_are_met_by_colabs_image_and_leave_two_packages_to_install():
    from packaging.requirements import Requirement

    freeze = _freeze()
    lacking = set()
    for requirement in map(Requirement, profiles.requirements("train") + profiles.requirements("webui")):
        name = requirement.name.lower().replace("_", "-")
        if name in freeze:
            assert requirement.specifier.contains(freeze[name], prereleases=True), (
                f"{requirement} against {freeze[name]}"
            )
        else:
            lacking.add(name)
    assert {"pyngrok", "pillow-heif"} <= lacking
    for heavy in (
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "gradio",
        "numpy",
        "pillow",
        "ipywidgets",
    ):
        assert heavy in freeze and heavy not in lacking


def test_on_colab_none_of_its_own_packages_would_be_asked_for(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    wanted = protect._wanted("train", _freeze(), set())
    assert not [one for one in wanted if protect.PROTECTED.fullmatch(profiles.split(one)[0])]
    assert "jupyterlab" not in json.dumps(wanted)
