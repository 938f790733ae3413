import importlib
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fastsd_lib.environment import locks, markers, profiles
from tests.environment.conftest import REPOSITORY

LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"}


def _machine(python: str, **changes: str) -> dict[str, str]:
    return {**markers.environment(python), **LINUX, **changes}


def test_every_pin_of_the_locks_carries_a_hash():
    for name in ("packages", "torch-default", "torch-cpu", "uv"):
        pins = locks.read_lock(name)
        assert pins
        for pin in pins:
            assert pin.hashes and all(
                re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in pin.hashes
            ), pin.name


def test_the_generated_profiles_are_those_of_pyproject():
    tomllib = importlib.import_module(
        "tomllib" if sys.version_info >= (3, 11) else "tomli"
    )  # pytest brings tomli
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for profile, requires in locks._requirements(project).items():
        written = profiles._table()[profile]["requires"]
        assert written == requires, "run: python3 -m fastsd_lib install --update-locks"


def test_a_requirement_with_a_marker_is_asked_for_only_where_the_marker_holds():
    linux = {**markers.environment("3.13.1"), "sys_platform": "linux"}
    assert "tensorflow-cpu>=2.18" in profiles.requirements("dev", linux)
    assert "tensorflow-cpu" not in str(profiles.requirements("dev", {**linux, "sys_platform": "darwin"}))
    assert "coremltools" not in str(profiles.requirements("dev", {**linux, "python_version": "3.14"}))


@pytest.mark.parametrize("python", ["3.10.13", "3.11.7", "3.12.1", "3.13.0"])
def test_each_profile_is_locked_once_per_package_and_meets_its_floors(python):
    for profile in profiles.PROFILES:
        pins = locks.pins_for(profile, _machine(python), "default")
        versions = {pin.name: pin.version for pin in pins}
        assert len(versions) == len(pins)
        for requirement in profiles.requirements(profile):
            name, floor = profiles.split(requirement)
            assert versions[name] in SpecifierSet(floor), f"{requirement} on Python {python}"


def test_without_gpu_not_one_cuda_package_is_installed():
    cpu = locks.pins_for("all", _machine("3.11.7"), "cpu")
    assert next(pin.version for pin in cpu if pin.name == "torch").endswith("+cpu")
    assert not [pin.name for pin in cpu if locks.CUDA_ONLY.fullmatch(pin.name)]
    cuda = locks.pins_for("all", _machine("3.11.7"), "default")
    assert [pin.name for pin in cuda if locks.CUDA_ONLY.fullmatch(pin.name)]


def test_both_builds_of_torch_are_the_same_release():
    assert locks.read_lock("torch-cpu")[0].version == locks.read_lock("torch-default")[0].version + "+cpu"


@pytest.mark.parametrize("python", ["3.10.13", "3.11.7", "3.15.0"])
@pytest.mark.parametrize("system", ["linux", "win32", "darwin"])
def test_markers_are_read_as_packaging_reads_them(python, system):
    variables = _machine(python, sys_platform=system)
    seen = {
        pin.marker for name in ("packages", "torch-default") for pin in locks.read_lock(name) if pin.marker
    }
    seen |= {
        "extra == 'x' and (os_name == 'nt' or python_version not in '3.9, 3.10')",
        "python_version != '3.11'",
    }
    for marker in seen:
        assert markers.holds(marker, variables) == Marker(marker).evaluate(variables), marker


numbers = st.lists(st.integers(0, 12), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
endings = st.sampled_from(["", "", "", "a1", "b2", "rc1", ".post1", ".dev3", "+cpu"])
operators = st.sampled_from([">=", "<=", "==", "!=", "<", ">", "~=", "== series"])


@given(version=st.tuples(numbers, endings).map("".join), operator=operators, wanted=numbers)
def test_versions_compare_as_packaging_compares_them(version, operator, wanted):
    if operator == "~=" and "." not in wanted:
        wanted += ".0"
    specifier = f"=={wanted}.*" if operator == "== series" else operator + wanted
    # packaging keeps 1.0a1 and 1.0.post1 out of <1.0 and >1.0 by special rules that no lock of ours relies on.
    if operator in {"<", ">"} and Version(version).release == Version(wanted).release:
        return
    if operator in {"<", ">"} and markers.version_key(version)[0] == markers.version_key(wanted)[0]:
        return
    expected = SpecifierSet(specifier).contains(version, prereleases=True)
    assert markers.satisfies(version, specifier) == expected


def test_a_local_label_counts_only_where_it_is_asked_for():
    assert markers.satisfies("2.11.0+cu128", ">=2.11")
    assert markers.satisfies("2.11.0+cu128", "==2.11")
    assert not markers.satisfies("2.11.0+cu128", "==2.11.0+cpu")
