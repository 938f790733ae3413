"""The house keeps its shape: imports run down, the light rooms are light, notebooks are clean."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastsd_lib.environment import profiles

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "fastsd_lib"

FLOOR = {
    "widgets": 6,
    "cli": 6,
    "__main__": 6,
    "launch": 6,
    "workflows": 5,
    "webui": 4,
    "training": 3,
    "generation": 3,
    "vit": 3,
    "environment": 2,
    "sessions": 2,
    "images": 2,
    "models": 2,
    "formats": 2,
    "core": 1,
}
FRONT = {"cli", "__main__", "launch"}  # one front door in several files
#: Heavy packages that a room may import at the top of its files; every other room imports them where it needs them.
HEAVY = {
    "webui": {"gradio", "fastapi", "starlette", "uvicorn", "pydantic", "anyio", "httpx", "websockets"},
    "training": {"torch", "diffusers", "numpy", "PIL", "safetensors"},
    "generation": {"torch", "diffusers", "numpy", "PIL", "safetensors"},
    "vit": {"torch", "transformers", "numpy", "PIL", "safetensors"},
    "images": {"numpy", "PIL", "skimage", "pillow_heif"},
    "formats": {"torch", "safetensors", "numpy"},
}
LIGHT = (
    "torch",
    "numpy",
    "diffusers",
    "transformers",
    "gradio",
    "IPython",
    "ipywidgets",
    "PIL",
    "cv2",
    "skimage",
)


def _room(path: Path) -> str:
    return _named(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))


def _named(part: str) -> str:
    return "cli" if part.startswith("cli_") else part  # cli_draw.py and its like are one room


def _sources() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py"
    )


def _imports(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in a file, in functions too: "fastsd_lib.core.errors", "torch"."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _at_import(tree: ast.Module) -> set[str]:
    """Top-level packages that importing the file loads: not those in functions, nor those for type checkers only."""
    pending, found = list(tree.body), set()
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {name.split(".")[0] for name in _imports(node)}
        pending += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_and_rooms_of_one_floor_do_not_know_each_other(path):
    room = _room(path)
    for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] != "fastsd_lib" or len(parts) < 2:
            continue
        other = _named(parts[1])
        allowed = other == room or FLOOR[other] < FLOOR[room] or {room, other} <= FRONT
        assert allowed, f"{room} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_the_work_is(path):
    top = _at_import(ast.parse(path.read_text(encoding="utf-8")))
    foreign = {name for name in top if name not in sys.stdlib_module_names and name != "fastsd_lib"}
    extra = foreign - HEAVY.get(_room(path), set()) - {"__future__"}
    assert not extra, f"{path.name} imports {', '.join(sorted(extra))} at its top"


def test_every_package_has_a_docstring_and_nothing_more():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    for folder in folders:
        body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value.value, str), (
            folder
        )


def _light_modules() -> list[str]:
    rooms = ("core", "environment", "sessions", "models", "workflows", "widgets")
    files = [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]
    names = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    return ["fastsd_lib", *names, "fastsd_lib.cli", "fastsd_lib.launch", "fastsd_lib.__main__"]


def test_importing_the_light_rooms_loads_nothing_heavy():
    program = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [one for one in sys.argv[1].split(',') if one in sys.modules]\n"
        "    if heavy: loaded[name] = heavy; break\n"
        "print(json.dumps(loaded))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, ",".join(LIGHT), *_light_modules()],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {}


def test_import_fastsd_lib_loads_no_other_module():
    program = (
        "import sys; before = set(sys.modules); import fastsd_lib; print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["fastsd_lib"]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda path: path.name
)
def test_notebooks_are_committed_without_outputs_and_counts(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, (
                f"{path.name}: run it through `nbstripout`"
            )


def test_no_path_in_any_file_contains_a_python_minor_version():
    versioned = re.compile(r"(?:lib|bin|dist-packages|site-packages)[/\\]+python3\.\d+|python3\.\d+[/\\]")
    for path in _tracked():
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".ipynb", ".yaml", ".yml", ".sh", ""}
            and path.is_file()
        ):
            found = versioned.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert found is None or path == Path(__file__), f"{path}: {found[0]}"


def _tracked() -> list[Path]:
    """The files of the project: no environments, caches or session data of whoever runs the tests."""
    skipped = {
        ".git",
        ".venv",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        "node_modules",
        "build",
        "dist",
    }
    return [path for path in REPOSITORY.rglob("*") if not skipped & set(path.relative_to(REPOSITORY).parts)]


def test_every_package_that_is_imported_is_named_in_pyproject():
    provides = {
        "PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "google": "google-colab",
        "sklearn": "scikit-learn", "faiss": "faiss-cpu", "tensorflow": "tensorflow-cpu",
    }  # fmt: skip
    promised = {
        profiles.split(one)[0] for profile in profiles.PROFILES for one in profiles.requirements(profile)
    }
    # Parts of what is promised: gradio is built on starlette, IPython is ipywidgets' other half, tomli is pytest's,
    # rich is NNCF's.
    promised |= {
        "google-colab",
        "ipython",
        "starlette",
        "anyio",
        "jupyter-server",
        "tokenizers",
        "tornado",
        "rich",
    }
    for path in [*_sources(), *(REPOSITORY / "benchmarks").rglob("*.py")]:
        for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in {"fastsd_lib", "benchmarks", "tests", "__future__"}:
                continue
            package = provides.get(top, top).lower().replace("_", "-")
            assert package in promised, f"{path.relative_to(REPOSITORY)} imports {top}"


def test_what_the_profiles_are_recognised_by_is_really_importable_here():
    for modules in profiles.SIGN_OF.values():
        for module in modules:
            assert importlib.util.find_spec(module) is not None, module
