import hashlib
import json
import zipfile

import pytest

from fastsd_lib.environment import installed, locks, wheelhouse


@pytest.fixture
def archive(project, tmp_path):
    """A wheelhouse of the small project, as `--make-wheelhouse` packs it (uv stays where it is)."""
    folder = tmp_path / "drive"
    text = (project.path / "fastsd_lib/environment/locks/packages.txt").read_text()
    made = wheelhouse.archive_in(folder, "core")
    wheelhouse._pack(made, project.wheels, "core", "cpu", locks.read_pins(text))
    return made


def _install(project, archive):
    for wheel in project.wheels.glob("*.whl"):
        wheel.unlink()
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    return project.run("install", "core", "--wheelhouse", str(archive.parent), **nowhere)


def _rewrite(archive, change) -> None:
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)


def test_a_session_restarts_from_the_wheelhouse_without_any_index(project, archive):
    ran = _install(project, archive)
    assert ran.returncode == 0, ran.stderr
    assert installed.versions(project.venv.packages) == {"alpha": "1.0", "beta": "2.0"}
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]
    assert not list(project.venv.path.glob("tmp*"))


def test_a_wheelhouse_is_made_from_what_pip_downloads_and_is_read_back(project, tmp_path):
    locked = project.path / "fastsd_lib/environment/locks"
    (locked / "uv.txt").write_text(
        (locked / "packages.txt").read_text().splitlines()[0]
    )  # a stand-in: "alpha"
    ran = project.run("install", "core", "--make-wheelhouse", str(tmp_path / "drive"))
    assert ran.returncode == 0, ran.stderr
    with zipfile.ZipFile(tmp_path / "drive" / "fastsd-wheelhouse-core.zip") as made:
        manifest = json.loads(made.read("manifest.json"))
        assert set(manifest["sha256"]) == {"alpha-1.0-py3-none-any.whl", "beta-2.0-py3-none-any.whl"}
        assert "alpha==1.0 --hash=sha256:" in made.read("lock.txt").decode()


def test_a_truncated_archive_is_refused_by_name(project, archive):
    archive.write_bytes(archive.read_bytes()[:-200])
    ran = _install(project, archive)
    assert ran.returncode == 2
    assert str(archive) in ran.stderr and "not a whole wheelhouse" in ran.stderr
    assert "--make-wheelhouse" in ran.stderr and "Traceback" not in ran.stderr


def test_a_bit_that_the_disk_turned_is_refused_by_the_wheels_name(project, archive):
    data = bytearray(archive.read_bytes())
    data[data.find(b"Name: beta")] ^= 1
    archive.write_bytes(bytes(data))
    ran = _install(project, archive)
    assert ran.returncode == 2
    assert "beta-2.0-py3-none-any.whl" in ran.stderr and "is damaged" in ran.stderr
    assert "alpha" not in installed.versions(project.venv.packages)


def test_a_wheel_exchanged_in_the_archive_is_refused_by_its_name(project, archive):
    name = "wheels/alpha-1.0-py3-none-any.whl"
    _rewrite(archive, lambda files: files.update({name: files[name] + b"\0"}))
    ran = _install(project, archive)
    assert ran.returncode == 2 and "alpha-1.0-py3-none-any.whl" in ran.stderr and "is damaged" in ran.stderr


def test_a_wheel_exchanged_together_with_its_manifest_still_fails_the_projects_own_lock(project, archive):
    def exchange(files):
        other = files["wheels/alpha-1.0-py3-none-any.whl"] + b"\0"
        files["wheels/alpha-1.0-py3-none-any.whl"] = other
        manifest = json.loads(files["manifest.json"])
        manifest["sha256"]["alpha-1.0-py3-none-any.whl"] = hashlib.sha256(other).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()

    _rewrite(archive, exchange)
    ran = _install(project, archive)
    assert ran.returncode == 2
    assert "alpha" in ran.stderr and "SHA-256 differs" in ran.stderr


def test_a_wheel_that_the_manifest_does_not_know_is_refused(project, archive):
    _rewrite(archive, lambda files: files.update({"wheels/evil-1.0-py3-none-any.whl": b"x"}))
    ran = _install(project, archive)
    assert ran.returncode == 2 and "evil-1.0-py3-none-any.whl" in ran.stderr


def test_a_wheelhouse_of_another_python_says_for_which_it_was_made(project, archive):
    def elsewhere(files):
        manifest = json.loads(files["manifest.json"])
        manifest["made_for"] = "Python 3.99, linux x86_64"
        files["manifest.json"] = json.dumps(manifest).encode()

    _rewrite(archive, elsewhere)
    ran = _install(project, archive)
    assert ran.returncode == 2 and "was made for Python 3.99, linux x86_64; this is Python" in ran.stderr


def test_a_missing_wheelhouse_names_those_that_are_there(project, archive):
    ran = project.run("install", "train", "--wheelhouse", str(archive.parent))
    assert ran.returncode == 2
    assert (
        "There is no fastsd-wheelhouse-train.zip" in ran.stderr and "fastsd-wheelhouse-core.zip" in ran.stderr
    )
