"""Publish to and import from Hugging Face and Google Drive; both are real HTTP servers on this machine.

The Hub's server speaks the part of its API that is needed, LFS uploads included (not Xet). gdown's requests are led to a
local server below its own code; Google's real pages and TLS are not covered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import yaml

from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.archive import export_session
from fastsd_lib.sessions.session import Session, create_session, sessions_dir
from fastsd_lib.workflows import publishing
from fastsd_lib.workflows.sharing import import_session

SECRET = "hf_verysecrettoken"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"


@dataclass
class Hub:
    """Repositories as {name: {path: bytes}}."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    tokens: set[str | None] = field(default_factory=set)
    refuse: int = 0
    damage: bytes = b""


class Answer(BaseHTTPRequestHandler):
    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(
        self, status: int, body: bytes | dict | list = b"", headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in {**kind, **(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def hub_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(Answer):
        def do_HEAD(self) -> None:
            self.do_GET()

        def allowed(self, name: str) -> bool:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            hub.tokens.add(token)
            if hub.refuse:
                self.send(hub.refuse, {"error": SECRET})
                return False
            if hub.private.get(name, False) and token != SECRET:
                self.send(404, {}, {"X-Error-Code": "RepoNotFound"})
                return False
            return True

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            if found := re.fullmatch(r"api/models/([^/]+/[^/]+)(/revision/.+)?", path):
                name = found[1]
                if not self.allowed(name):
                    return
                if name not in hub.repositories:
                    return self.send(404, {}, {"X-Error-Code": "RepoNotFound"})
                return self.send(200, self.info(name))
            if found := re.fullmatch(r"([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                data = hub.repositories.get(found[1], {}).get(requests.utils.unquote(found[2]))
                if not self.allowed(found[1]):
                    return
                if data is None:
                    return self.send(404, {}, {"X-Error-Code": "EntryNotFound"})
                data = data[: -len(hub.damage)] + hub.damage if hub.damage else data
                tag = hashlib.sha1(data).hexdigest()
                return self.send(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
            self.send(404)

        def info(self, name: str) -> dict:
            siblings = []
            for path, data in hub.repositories[name].items():
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                row = {"rfilename": path, "size": len(data), "blobId": blob}
                if path.endswith(".safetensors"):
                    row["lfs"] = {
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "size": len(data),
                        "pointerSize": 1,
                    }
                siblings.append(row)
            return {"id": name, "sha": COMMIT, "private": hub.private.get(name, False), "siblings": siblings}

        def do_POST(self) -> None:
            path, body = urlsplit(self.path).path.strip("/"), self.body()
            if path == "api/validate-yaml":
                return self.send(200, {"errors": [], "warnings": []})
            if not self.allowed(""):
                return
            if path == "api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if name in hub.repositories:
                    return self.send(409, {"error": "exists", "url": f"{hub.url}/{name}"})
                hub.repositories[name] = {}
                hub.private[name] = asked.get("private", asked.get("visibility") == "private")
                return self.send(200, {"url": f"{hub.url}/{name}", "name": name})
            if path.endswith("/preupload/main"):
                rows = [
                    {"path": row["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if row["path"].endswith(".safetensors") else "regular"}
                    for row in json.loads(body)["files"]
                ]  # fmt: skip
                return self.send(200, {"files": rows})
            if path.endswith(".git/info/lfs/objects/batch"):
                rows = [
                    {**row, "authenticated": True,
                     "actions": {"upload": {"href": f"{hub.url}/upload/{row['oid']}", "header": {}}}}
                    for row in json.loads(body)["objects"]
                ]  # fmt: skip
                return self.send(
                    200,
                    {"transfer": "basic", "objects": rows},
                    {"Content-Type": "application/vnd.git-lfs+json"},
                )
            if found := re.fullmatch(r"api/models/(.+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.repositories[found[1]][value["path"]] = hub.stored[value["oid"]]
                return self.send(
                    200, {"commitUrl": f"{hub.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT}
                )
            self.send(404)

        def do_PUT(self) -> None:
            hub.stored[self.path.split("/")[-1]] = self.body()
            self.send(200)

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()
    server = serve(hub_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    # The library reads these variables once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def session(tmp_path) -> Session:
    made = create_session(tmp_path / "mine", "my cat")
    (made.instance_images / "a.png").write_bytes(PNG)
    (made.captions / "a.txt").write_text("a cat")
    made.model_file.write_bytes(os.urandom(5000))
    (made.path / "token.txt").write_text(SECRET)
    for name in ("step_000500_1.png", "step_001000_1.png", "before_after.png"):
        (made.samples / name).write_bytes(PNG + name.encode())
    made.recipe.write_text('instance_prompt: "photo of sks | cat"\nunet_steps: 800\n')
    sessions.set_facts(made, base_model="1.5")
    sessions.record(made, "exported", file="/home/anna/secret/place.safetensors")
    return made


# ------------------------------------------------------------------ publish


def test_a_published_model_is_private_and_has_a_card_and_none_of_the_photos(hub, session, tmp_path):
    planned = publishing.plan(session, "me/my-cat")
    address = publishing.publish(planned, tmp_path / "mine")
    files = hub.repositories["me/my-cat"]
    assert address.endswith("me/my-cat") and hub.private["me/my-cat"] is True
    assert set(files) == {
        "README.md", "session.json", "recipe.yaml", "my cat.safetensors", "samples/step_001000_1.png",
    }  # fmt: skip
    assert files["my cat.safetensors"] == session.model_file.read_bytes()
    assert dict(planned.rows()) == {name: len(data) for name, data in files.items()}
    everything = b"".join(files.values())
    assert (
        SECRET.encode() not in everything
        and b"/home/anna" not in everything
        and PNG + b"before" not in everything
    )
    _, front, text = files["README.md"].decode().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert front["license"] == "creativeml-openrail-m" and front["pipeline_tag"] == "text-to-image"
    assert {"text-to-image", "dreambooth", "stable-diffusion"} <= set(front["tags"])
    assert front["instance_prompt"] == front["widget"][0]["text"] == "photo of sks | cat"
    assert front["widget"][0]["output"]["url"] == "samples/step_001000_1.png"
    assert "| unet_steps | 800 |" in text and r"photo of sks \| cat" in text
    assert "![photo of sks \\| cat](samples/step_001000_1.png)" in text


def test_photos_go_and_everybody_sees_only_when_that_is_asked_for(hub, session, tmp_path):
    publishing.publish(publishing.plan(session, "me/cat", public=True, with_photos=True), tmp_path)
    assert hub.private["me/cat"] is False
    assert hub.repositories["me/cat"]["instance_images/a.png"] == PNG


def test_what_was_published_can_be_imported(hub, session, tmp_path):
    publishing.publish(publishing.plan(session, "me/my-cat", with_photos=True), tmp_path)
    for number, source in enumerate(["me/my-cat", f"{hub.url}/me/my-cat/tree/main"]):
        made = import_session(source, f"n{number}", tmp_path / "theirs")
        assert made.verified and made.session.model_file.read_bytes() == session.model_file.read_bytes()
        assert (made.session.instance_images / "a.png").read_bytes() == PNG
        assert (
            sessions.read_manifest(made.session)["base_model"]
            == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    assert sorted(path.name for path in sessions_dir(tmp_path / "theirs").iterdir()) == ["n0", "n1"]


def test_a_private_repository_is_not_published_into_a_public_one(hub, session, tmp_path):
    hub.repositories["me/my-cat"], hub.private["me/my-cat"] = {"README.md": b"mine"}, False
    with pytest.raises(UserError, match="me/my-cat is there already, and it is public") as error:
        publishing.publish(publishing.plan(session, "me/my-cat"), tmp_path)
    assert "--public" in error.value.fix and hub.repositories["me/my-cat"] == {"README.md": b"mine"}


def test_a_base_model_of_this_machine_stays_unnamed(session, tmp_path):
    (tmp_path / "private-model").mkdir()
    for base in (str(tmp_path / "private-model"), "/home/anna/x.safetensors", None):
        sessions.set_facts(session, base_model=base)
        planned = publishing.plan(session, "me/cat")
        assert (
            "base_model" not in planned.texts["README.md"]
            and str(base) not in "".join(planned.texts.values())
        ) or base is None
        assert "license: other" in planned.texts["README.md"]


@pytest.mark.parametrize(
    "name",
    ["", "a/b/c", "../x", "me/my cat", "me/cat.git", "me/-", "me/a--b", "https://huggingface.co/me/cat"],
)
def test_a_name_that_no_repository_can_have_is_refused_with_one_that_can(session, name):
    with pytest.raises(UserError, match="cannot be the name") as error:
        publishing.plan(session, name)
    publishing.plan(session, error.value.fix.rpartition(" ")[2])


def test_without_a_model_or_a_token_nothing_is_sent(hub, session, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no Hugging Face token here"):
        publishing.publish(publishing.plan(session, "me/cat"), tmp_path)
    session.model_file.unlink()
    with pytest.raises(UserError, match="no exported model yet"):
        publishing.plan(session, "me/cat")
    assert hub.repositories == {} and hub.tokens == set()


def test_the_token_file_of_the_older_notebooks_counts(hub, session, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "mine" / "Fast-Dreambooth" / "token.txt").write_text(SECRET + "\n")
    publishing.publish(publishing.plan(session, "me/cat"), tmp_path / "mine")
    assert hub.tokens == {SECRET}


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refused the token"), (403, "lacks the right"), (418, "answered 418")]
)
def test_what_the_hub_refuses_is_one_line_without_the_token(hub, session, tmp_path, status, words):
    hub.refuse = status
    with pytest.raises(UserError, match=words) as error:
        publishing.publish(publishing.plan(session, "me/cat"), tmp_path)
    assert SECRET not in str(error.value) and "\n" not in error.value.message


# ------------------------------------------------------------------ import from Hugging Face


def test_a_private_repository_opens_with_a_token_and_is_unknown_without(hub, tmp_path, monkeypatch):
    hub.repositories["you/cat"], hub.private["you/cat"] = {"recipe.yaml": b"unet_steps: 1\n"}, True
    import_session("you/cat", root=tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no repository you/cat on Hugging Face that is open to everybody"):
        import_session("you/cat", "again", tmp_path)
    assert [path.name for path in sessions_dir(tmp_path).iterdir()] == ["cat"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"x"}, "is no session"),
        ({"session.json": b"{}", "a/../../x": b"x"}, "points out of the archive"),
        ({"session.json": b'{"schema": 9, "history": []}'}, "newer fastsd"),
    ],
)
def test_a_repository_that_is_no_session_or_hostile_is_refused(hub, tmp_path, files, words):
    hub.repositories["you/cat"] = files
    with pytest.raises(UserError, match=words):
        import_session("you/cat", root=tmp_path)
    assert list(sessions_dir(tmp_path).iterdir()) == []


def test_a_file_that_arrives_damaged_is_noticed(hub, tmp_path):
    hub.repositories["you/cat"] = {"recipe.yaml": b"unet_steps: 1\n", "cat.safetensors": b"w" * 99}
    hub.damage = b"?"
    with pytest.raises(UserError, match="arrived damaged from Hugging Face"):
        import_session("you/cat", root=tmp_path)
    assert list(sessions_dir(tmp_path).iterdir()) == []


def test_no_network_is_one_line(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="No connection to Hugging Face"):
        import_session("you/cat", root=tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no file or folder"),
        ("nothing.zip", "no file or folder"),
        ("file:///etc/passwd", "begin with file"),
        ("ftp://x/y", "begin with ftp"),
        ("https://example.org/a.zip", "neither Google Drive nor Hugging Face"),
        (
            "https://drive.google.com.evil.org/drive/folders/1234567890123",
            "neither Google Drive nor Hugging Face",
        ),
        ("http://[::1", "is no link"),
        ("https://drive.google.com/drive/my-drive", "neither of a folder nor of a file"),
        ("https://huggingface.co/models", "names no repository"),
        ("/dev/null", "neither a file nor a folder"),
        ("a\x1b[31m/../b c", "no file or folder"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(tmp_path, source, words):
    with pytest.raises(UserError, match=words) as error:
        import_session(source, root=tmp_path)
    assert "\n" not in error.value.message and "\x1b" not in str(error.value) and error.value.fix


def test_a_typo_in_a_path_gets_the_file_that_is_there(session, tmp_path):
    export_session(session, tmp_path / "cats.zip")
    with pytest.raises(UserError) as error:
        import_session(tmp_path / "cat.zip", root=tmp_path)
    assert "did you mean" in error.value.fix and "cats.zip" in error.value.fix


# ------------------------------------------------------------------ import from Google Drive


@dataclass
class Drive:
    """Folders as {id: [(id, name, is a folder)]}, files as {id: bytes}."""

    folders: dict[str, list[tuple[str, str, bool]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def drive(monkeypatch, tmp_path) -> Iterator[Drive]:
    drive = Drive()

    class Handler(Answer):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            identity = parse_qs(parts.query).get("id", [""])[0]
            drive.asked.append(self.path)
            if parts.path == "/embeddedfolderview" and identity in drive.folders:
                rows = "".join(
                    f'<a href="https://drive.google.com/{"drive/folders/" if is_folder else "file/d/"}{one}'
                    f'{"" if is_folder else "/view"}">{name}</a>'
                    for one, name, is_folder in drive.folders[identity]
                )
                names = {one: name for row in drive.folders.values() for one, name, _ in row}
                page = f"<html><title>{names.get(identity, 'cat')}</title>{rows}</html>"
                return self.send(200, page.encode(), {"Content-Type": "text/html"})
            if parts.path == "/uc" and identity in drive.files:
                return self.send(
                    200, drive.files[identity],
                    {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="../../x"'},
                )  # fmt: skip
            self.send(404, b"<html><title>Page not found</title></html>", {"Content-Type": "text/html"})

    server = serve(Handler)
    place = f"http://127.0.0.1:{server.server_address[1]}"
    send = requests.adapters.HTTPAdapter.send

    def to_this_machine(adapter, request, **settings):
        request.url = re.sub(r"^https://(drive|docs)\.google\.com", place, request.url)
        return send(adapter, request, **settings)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", to_this_machine)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield drive
    server.shutdown()
    server.server_close()


def fill(drive: Drive, **files: bytes) -> str:
    """A shared folder: cat/{session.json, instance_images/a.png} and more; its link."""
    top, inner = "T" * 33, "I" * 33
    drive.folders = {top: [(inner, "instance_images", True)], inner: []}
    manifest = json.dumps({"schema": 1, "name": "cat", "history": []}).encode()
    for number, (name, data) in enumerate({"session.json": manifest, "a.png": PNG, **files}.items()):
        identity = f"file{number}".ljust(33, "x")
        drive.folders[inner if name.endswith("png") else top].append((identity, name, False))
        drive.files[identity] = data
    return f"https://drive.google.com/drive/folders/{top}?usp=sharing"


def test_a_shared_drive_folder_becomes_a_session(drive, tmp_path):
    made = import_session(fill(drive, **{"token.txt": b"hf_theirs"}), "shared", tmp_path)
    assert (made.session.instance_images / "a.png").read_bytes() == PNG and not made.verified
    assert not list(made.session.path.rglob("token.txt"))
    assert [path.name for path in sessions_dir(tmp_path).iterdir()] == ["shared"]


def test_an_archive_on_drive_is_fetched_and_verified(drive, session, tmp_path):
    archive = export_session(session, tmp_path / "a.zip").path
    drive.files["Z" * 33] = archive.read_bytes()
    for number, form in enumerate(("file/d/{}/view?usp=sharing", "uc?id={}", "open?id={}")):
        made = import_session(
            "https://drive.google.com/" + form.format("Z" * 33), f"n{number}", tmp_path / "theirs"
        )
        assert made.verified and made.session.model_file.read_bytes() == session.model_file.read_bytes()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"my-cat.safetensors": b"<!DOCTYPE html><title>Quota exceeded</title>"},
            "gave a web page in place of my-cat",
        ),
        ({"session.json": b'{"schema": 7, "history": []}'}, "newer fastsd"),
    ],
)
def test_what_drive_gives_wrongly_leaves_nothing(drive, tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        import_session(fill(drive, **files), root=tmp_path)
    assert list(sessions_dir(tmp_path).iterdir()) == []


def test_hostile_names_on_drive_touch_nothing_outside(drive, tmp_path):
    link = fill(drive, **{"..": b"x", "../../evil.txt": b"x"})
    try:
        import_session(link, "n", tmp_path / "root")
    except UserError as error:
        assert "\n" not in error.message
    assert not list(tmp_path.glob("evil*")) and not list(tmp_path.rglob("Sessions/evil*"))


def test_a_folder_that_is_not_shared_is_said_with_what_to_click(drive, tmp_path):
    with pytest.raises(UserError, match="not shared with everybody") as error:
        import_session("https://drive.google.com/drive/folders/" + "N" * 33, root=tmp_path)
    assert "Anyone with the link" in error.value.fix
    assert list(sessions_dir(tmp_path).iterdir()) == []


def test_a_drive_link_is_not_opened_when_the_name_is_taken(drive, session, tmp_path):
    with pytest.raises(UserError, match="There is a session 'my cat' already"):
        import_session(fill(drive), "my cat", tmp_path / "mine")
    assert drive.asked == []
