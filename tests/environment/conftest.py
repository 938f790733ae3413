"""A small project with real wheels: the installer runs in it as it does in the repository, without the network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastsd_lib.environment import bootstrap

REPOSITORY = Path(__file__).resolve().parents[2]


def build_wheel(
    folder: Path, name: str, version: str, *, requires: tuple[str, ...] = (), size: int = 0
) -> Path:
    """A real wheel of one module; `size` bytes of incompressible ballast make it as big as a test wants."""
    folder.mkdir(parents=True, exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    files = {f"{module}/__init__.py": f'__version__ = "{version}"\n'.encode()}
    if size:
        files[f"{module}/ballast.bin"] = os.urandom(size)
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = ""
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        for path, data in files.items():
            out.writestr(path, data)
    return wheel


@dataclass
class Project:
    """A copy of the package with a lock of its own over local wheels."""

    path: Path
    wheels: Path
    surroundings: dict[str, str] = field(default_factory=dict)

    @property
    def venv(self) -> bootstrap.Venv:
        return bootstrap.Venv(self.path / ".venv")

    def lock(self, *wheels: Path, requires: list[str] | None = None) -> None:
        """Make `wheels` the core profile."""
        locks = self.path / "fastsd_lib" / "environment" / "locks"
        pins = [wheel.name.split("-")[:2] for wheel in wheels]
        lines = [
            f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
            for (name, version), wheel in zip(pins, wheels, strict=True)
        ]
        (locks / "packages.txt").write_text("\n".join(lines) + "\n")
        names = [name for name, _ in pins]
        own = {"requires": names if requires is None else requires, "packages": names}
        none = {"requires": [], "packages": []}
        (locks / "profiles.json").write_text(
            json.dumps(
                {
                    name: own if name == "core" else none
                    for name in ("core", "train", "webui", "vit", "dev", "all")
                }
            )
        )

    def run(self, *arguments: str, python: Path | str = sys.executable, **surroundings: str):
        """`python -m fastsd_lib ...` as a user types it; stdout and stderr as text."""
        return subprocess.run(
            [str(python), "-m", "fastsd_lib", *arguments],
            cwd=self.path,
            env={**self.surroundings, **surroundings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def command(self, *arguments: str) -> str:
        """The same as a line for a shell."""
        return " ".join([sys.executable, "-m", "fastsd_lib", *arguments])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two packages, alpha and beta, locked and at hand; uv as the project's own environment has it."""
    path = tmp_path / "project"
    package = path / "fastsd_lib"
    ignore = shutil.ignore_patterns("__pycache__")
    for room in ("core", "environment"):
        shutil.copytree(REPOSITORY / "fastsd_lib" / room, package / room, ignore=ignore)
    for file in ("__init__.py", "__main__.py", "launch.py"):
        shutil.copy(REPOSITORY / "fastsd_lib" / file, package / file)
    (path / "pyproject.toml").touch()  # the sign of a checkout
    wheels = tmp_path / "wheels"
    surroundings = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    made = Project(path, wheels, surroundings)
    made.lock(build_wheel(wheels, "alpha", "1.0"), build_wheel(wheels, "beta", "2.0", requires=("alpha>=1",)))
    give_uv(made.venv)
    return made


def give_uv(venv: bootstrap.Venv) -> None:
    """Spare each test the download of uv, where this machine has one; pip does the work where it has none."""
    uv = bootstrap.project_venv().uv if bootstrap.project_venv().uv.exists() else shutil.which("uv")
    if uv:
        venv.uv.parent.mkdir(parents=True)
        venv.uv.symlink_to(uv)
