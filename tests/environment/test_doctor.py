import json
import os
import subprocess
from pathlib import Path

import pytest

from fastsd_lib.environment import doctor


@pytest.fixture
def healthy(project):
    """The small project, installed; doctor has nothing to say against it."""
    assert project.run("install", "core").returncode == 0
    return project


def _examine(project, *arguments):
    """(exit status, findings) of `doctor --json`."""
    ran = project.run("doctor", "--json", *arguments)
    assert not ran.stderr, ran.stderr
    said = json.loads(ran.stdout)
    return ran.returncode, said["findings"]


def _faults(findings) -> list[str]:
    return [one["text"] for one in findings if one["fault"] and one["topic"] == "packages"]


def test_a_healthy_environment_has_no_fault_and_the_facts_are_there(healthy):
    status, findings = _examine(healthy)
    assert _faults(findings) == []
    topics = {one["topic"] for one in findings}
    assert topics >= {"python", "place", "memory", "disk", "gpu", "packages", "sessions", "programs"}
    assert status == (1 if any(one["fault"] for one in findings) else 0)


def test_nothing_installed_is_a_fault_with_the_line_to_type(project):
    ran = project.run("doctor")
    assert ran.returncode == 1
    assert "nothing is installed yet" in ran.stdout and "-> python3 -m fastsd_lib install train" in ran.stdout


def test_every_kind_of_damage_is_named_and_fix_mends_it(healthy):
    packages = healthy.venv.packages
    (packages / "alpha" / "__init__.py").unlink()
    (packages / "beta-2.0.dist-info" / "INSTALLER").unlink()
    status, findings = _examine(healthy)
    faults = " | ".join(_faults(findings))
    assert status == 1
    assert "alpha 1.0 has lost 1 files, alpha/__init__.py among them" in faults
    assert "beta 2.0 is half installed" in faults
    assert {one["fix"] for one in findings if one["fault"]} >= {"python3 -m fastsd_lib doctor --fix"}
    healthy.run("doctor", "--fix")
    assert _faults(_examine(healthy)[1]) == []
    assert (packages / "alpha" / "__init__.py").is_file()


def test_one_package_in_two_versions_is_named(healthy):
    old = healthy.venv.packages / "alpha-0.5.dist-info"
    old.mkdir()
    for name, text in (("METADATA", "Name: alpha\nVersion: 0.5\n"), ("INSTALLER", "pip"), ("RECORD", "")):
        (old / name).write_text(text)
    findings = _examine(healthy)[1]
    fault = next(one for one in findings if "alpha is there twice" in one["text"])
    assert "0.5 and 1.0" in fault["text"] and str(old) in fault["fix"]
    healthy.run("doctor", "--fix")
    assert _faults(_examine(healthy)[1]) == []


def test_two_opencv_wheels_and_an_unmet_requirement_are_named(healthy):
    packages = healthy.venv.packages
    for name in ("opencv-python", "opencv-python-headless"):
        info = packages / f"{name.replace('-', '_')}-4.10.dist-info"
        info.mkdir()
        for file, text in (
            ("METADATA", f"Name: {name}\nVersion: 4.10\n"),
            ("INSTALLER", "pip"),
            ("RECORD", ""),
        ):
            (info / file).write_text(text)
    metadata = packages / "beta-2.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: alpha>=3\nRequires-Dist: zeta; extra == 'x'\n")
    faults = " | ".join(_faults(_examine(healthy)[1]))
    assert "opencv-python and opencv-python-headless overwrite each other's cv2" in faults
    assert "beta 2.0 needs alpha>=3, but 1.0 is there" in faults
    assert "zeta" not in faults


def test_a_requirement_that_was_taken_away_is_a_fault_of_its_profile(healthy):
    subprocess.run(["rm", "-r", *map(str, healthy.venv.packages.glob("alpha*"))], check=True)
    status, findings = _examine(healthy)
    assert status == 1 and "core: lacks alpha" in _faults(findings)


@pytest.mark.parametrize(
    ("built_for", "driver", "gpu", "trouble"),
    [
        ("13.0", (12, 8), True, "newer than the driver's CUDA 12.8"),
        ("12.8", (13, 0), True, ""),
        ("12.8", (12, 2), True, ""),  # the same major version: NVIDIA promises that it runs
        ("", (12, 8), True, "although a GPU is here"),
        ("", None, False, ""),
    ],
)
def test_torch_is_held_against_the_driver(built_for, driver, gpu, trouble):
    text, fix = doctor.torch_against_driver(built_for, driver, gpu)
    assert trouble in text and bool(text) == bool(trouble) == bool(fix)


def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 570.124.06'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor.gpus_and_driver()[0] == ["NVIDIA H200, 143771 MiB, driver 570.124.06"]


def test_the_cuda_of_torch_is_read_without_importing_it(tmp_path):
    (tmp_path / "torch").mkdir()
    version = tmp_path / "torch" / "version.py"
    version.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    assert doctor.torch_cuda([tmp_path]) == "13.0"
    version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert doctor.torch_cuda([tmp_path]) == ""


def test_a_folder_that_cannot_keep_files_says_why(tmp_path):
    assert doctor.write_trouble(tmp_path) == ""
    assert doctor.write_trouble(tmp_path / "not" / "yet" / "there") == ""
    assert list(tmp_path.iterdir()) == []
    assert doctor.write_trouble(Path("/proc")).startswith("/proc cannot be written")
