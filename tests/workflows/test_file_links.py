"""Models and LoRA files by name, path and link; the Hub is a real HTTP server on this machine."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.models import registry
from fastsd_lib.workflows import dreambooth, file_links

LORA = next((registry.EXTRAS_FOLDER / "Lora").glob("*.safetensors"))
REPOSITORY = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """org/night on a Hub of our own; yields its address and what was asked of it."""
    asked: list[str] = []
    content = LORA.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            asked.append(self.path)
            found = self.path == "/org/night/resolve/main/night.safetensors"
            self.send_response(200 if found else 404)
            body = content if found else b"{}"
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_a_lora_behind_a_hugging_face_link_lands_in_the_library_once(hub, tmp_path):
    """In a process of its own: huggingface_hub reads where the Hub is when it is imported."""
    address, asked = hub
    program = (
        "import sys; from pathlib import Path; from fastsd_lib.workflows import file_links\n"
        "for _ in range(2): print(file_links.add_to_library([sys.argv[1]], Path(sys.argv[2])))\n"
    )
    variables = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    link = f"{address}/org/night/blob/main/night.safetensors"
    ran = subprocess.run(
        [sys.executable, "-c", program, link, str(tmp_path / "Lora")],
        cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "Lora" / "night.safetensors").read_bytes() == LORA.read_bytes()
    assert sum(path.endswith("night.safetensors") for path in asked) <= 2  # one HEAD, one GET


def test_a_path_is_copied_and_what_is_no_safetensors_file_is_refused(tmp_path):
    folder = tmp_path / "Lora"
    mine = shutil.copyfile(LORA, tmp_path / "mine.safetensors")
    assert file_links.add_to_library([str(mine)], folder) == [folder / "mine.safetensors"]
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "old.safetensors").write_bytes(b"\x80\x02}q\x00.")
    for name in ("page", "old"):
        with pytest.raises(UserError, match=r"is no \.safetensors file") as caught:
            file_links.add_to_library([str(tmp_path / f"{name}.safetensors")], folder)
        assert "pickled files are not opened" in caught.value.fix
    with pytest.raises(UserError, match="no file"):
        file_links.add_to_library(["/no/such.safetensors"], folder)
    assert [file.name for file in folder.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize(
    "link",
    [
        "http://example.org/a.safetensors",
        "ftp://a/b.safetensors",
        "file:///etc/passwd",
        "https://127.0.0.1/a",
    ],
)
def test_links_that_are_no_public_https_ones_are_refused(link, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for find in (
        file_links.find_model,
        file_links.fetch,
        lambda one: file_links.add_to_library([one], tmp_path),
    ):
        with pytest.raises(UserError, match=r"is not a plain https address|leads to this machine") as caught:
            find(link)
        assert "download the file yourself" in caught.value.fix
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_links_that_name_no_file_or_leave_the_folder_are_refused():
    with pytest.raises(UserError, match="no file of it"):
        file_links.fetch("https://huggingface.co/org/name")
    with pytest.raises(UserError, match="cannot be followed"):
        file_links.fetch("https://huggingface.co/org/name/resolve/main/..%2f..%2fx.safetensors")
    with pytest.raises(UserError, match="of a folder"):
        file_links.fetch("https://drive.google.com/drive/folders/1abcdefghijklmnopqrstuvwx")


def test_several_links_stand_in_one_field():
    assert (
        file_links.split_links(" a, b\nc  d,") == ["a", "b", "c", "d"] and file_links.split_links("  ") == []
    )


def test_a_model_is_found_by_session_by_file_and_by_path(tmp_path):
    from fastsd_lib.formats.single_file import export_single_file

    session = dreambooth.open_session("cat", tmp_path)
    dreambooth.open_session("untrained", tmp_path)
    export_single_file(registry.base_model(), session.model_file, dtype=None)
    checkpoints = tmp_path / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    file = shutil.copyfile(session.model_file, checkpoints / "dream.safetensors")
    found = {
        name: file_links.find_model(name, tmp_path, checkpoints).path for name in ("cat", "dream", str(file))
    }
    assert found == {"cat": session.model_file, "dream": file, str(file): file}
    assert file_links.find_model("", tmp_path).path == registry.EMBEDDED_FOLDER
    for name in ("untrained", "nothing"):
        with pytest.raises(UserError, match="No model"):
            file_links.find_model(name, tmp_path, checkpoints)
