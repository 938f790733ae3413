"""Models from CivitAI and Google Drive; the sites are servers on this machine."""

from __future__ import annotations

import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import requests
from model_site import lying, take

from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows import civitai
from tests.bad_server import PAGE, bad_server

# ------------------------------------------------------------------ CivitAI

KEY = "c1v1ta1geheim"


@pytest.fixture
def shop(site, files):
    """CivitAI's API with one model of one version; downloads redirect to a signed address, and want the key."""
    night = files["tiny_night.safetensors"]
    file = {
        "id": 5, "name": "night sky.safetensors", "type": "Model", "sizeKB": len(night) / 1024, "primary": False,
        "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"},
        "hashes": {"SHA256": hashlib.sha256(night).hexdigest().upper(), "AutoV2": "ABC"},
        "downloadUrl": f"{site.url}/api/download/models/77",
    }  # fmt: skip
    pickled = {**file, "id": 6, "name": "night.pt", "primary": True, "metadata": {"format": "PickleTensor"}}
    images = {**file, "id": 7, "name": "photos.zip", "type": "Training Data", "primary": False}
    version = {
        "id": 77, "modelId": 7, "name": "v2", "baseModel": "SD 1.5", "trainedWords": ["night sky", "st\x1b[31mars"],
        "files": [images, pickled, file],
    }  # fmt: skip
    about = {"name": "Night\u202e Sky", "type": "LORA"}
    site.shop = {
        "version": {**version, "model": about},
        "model": {**about, "id": 7, "modelVersions": [version]},
        "open": True,
    }

    def api(request):
        path = request.path
        answers = {"/api/v1/model-versions/77": site.shop["version"], "/api/v1/models/7": site.shop["model"]}
        if path in answers:
            return (
                request.say(200, json.dumps(answers[path]).encode(), content_type="application/json") is None
            )
        if path != "/api/download/models/77":
            return request.say(404, b'{"error":"No model"}') is None
        if not site.shop["open"] and request.headers.get("authorization") != f"Bearer {KEY}":
            return request.say(302, location="/login?reason=download-auth") is None
        return (
            request.say(
                307, location=f"http://localhost:{site.url.rpartition(':')[2]}/signed/x?X-Amz-Signature=1"
            )
            is None
        )

    site.ways["api"], site.ways["signed"] = api, lambda request: request.give(night)
    site.ways["login"] = lambda request: request.say(200, PAGE) is None
    return site


@pytest.mark.parametrize(
    "link",
    [
        "{}/models/7/night-sky?modelVersionId=77", "{}/models/7", "{}/api/download/models/77?type=Model&format=SafeTensor",
        "{}/api/v1/model-versions/77", "{}/model-versions/77", "https://civitai.com/models/7/x?modelVersionId=77",
        "https://civitai.red/models/7", "urn:air:sd1:lora:civitai:7@77", "urn:air:sd1:lora:civitai:7",
    ],
)  # fmt: skip
def test_every_form_of_a_civitai_link_gives_the_safetensors_file_with_its_name_and_hash(
    shop, files, tmp_path, link
):
    done = take(shop, link.format(shop.url), tmp_path)
    assert done.path == tmp_path / "models" / "Lora" / "night sky.safetensors"
    assert done.path.read_bytes() == files["tiny_night.safetensors"]
    assert done.notes == ("CivitAI: Night Sky v2", "for: SD 1.5", "trigger words: night sky, stars")


def test_the_key_is_for_civitai_alone_and_shown_nowhere(shop, tmp_path, monkeypatch):
    shop.shop["open"], events = False, []
    with pytest.raises(UserError, match="gives a web page in place of the file") as caught:
        take(shop, f"{shop.url}/models/7", tmp_path)
    assert lying(tmp_path) == []
    monkeypatch.setenv("CIVITAI_TOKEN", KEY)
    take(shop, f"{shop.url}/models/7", tmp_path / "a", report=events.append)
    monkeypatch.delenv("CIVITAI_TOKEN")
    take(shop, f"{shop.url}/api/download/models/77?token={KEY}", tmp_path / "b", report=events.append)
    asked = [
        (path, headers["host"].split(":")[0], headers.get("authorization")) for path, headers in shop.asked
    ]
    assert {key for _, host, key in asked if host == "localhost"} == {None}
    assert KEY not in " ".join(
        path for path, _, _ in asked
    )  # the header, not the address: addresses are logged
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    assert KEY not in written + repr(events) + str(caught.value)


def test_a_kind_that_civitai_rules_out_is_refused_before_the_first_byte(shop, tmp_path):
    with pytest.raises(UserError, match="Night Sky is a LoRA, not a VAE: nothing was fetched"):
        take(shop, f"{shop.url}/models/7", tmp_path, kind="vae")
    assert shop.paths() == ["/api/v1/models/7"] and not list(tmp_path.rglob("*.safetensors"))
    shop.shop["model"]["type"] = "Checkpoint"  # such a one can turn out to be a U-Net alone
    with pytest.raises(UserError, match="is a LoRA, not a U-Net alone: it was not taken"):
        take(shop, f"{shop.url}/models/7", tmp_path, kind="unet")


def test_an_address_elsewhere_that_civitai_tells_does_not_get_the_key(shop, files, tmp_path, monkeypatch):
    monkeypatch.setenv("CIVITAI_TOKEN", KEY)
    with bad_server(files["tiny_night.safetensors"]) as elsewhere:
        shop.shop["version"]["files"][2]["downloadUrl"] = f"{elsewhere.url}/good/x"
        take(shop, f"{shop.url}/model-versions/77", tmp_path)
        assert {headers.get("authorization") for _, headers in elsewhere.asked} == {None}
    assert {headers.get("authorization") for _, headers in shop.asked} == {f"Bearer {KEY}"}


def test_a_wrong_hash_and_an_address_that_is_gone_are_not_the_end_before_the_second_address(shop, tmp_path):
    shop.shop["version"]["files"][2]["downloadUrl"] = f"{shop.url}/api/download/models/78"
    take(shop, f"{shop.url}/model-versions/77", tmp_path / "a")
    assert "/api/download/models/77?fileId=5" in shop.paths()
    shop.shop["version"]["files"][2]["hashes"]["SHA256"] = "0" * 64
    with pytest.raises(UserError, match=r"has no such file \(404\); .* gives another file than expected"):
        take(shop, f"{shop.url}/model-versions/77", tmp_path / "b")
    assert lying(tmp_path / "b") == []


def test_the_file_that_the_link_chooses_is_taken(shop, tmp_path):
    chosen = civitai.release(
        f"{shop.url}/api/download/models/77?format=PickleTensor", None, shop.url, reach_of(shop)
    )
    assert chosen.sources[0].name == "night.pt" and chosen.kind == "lora"
    assert (
        civitai.release(f"{shop.url}/models/7?fileId=7", None, shop.url, reach_of(shop)).sources[0].name
        == "photos.zip"
    )


def reach_of(site):
    from fastsd_lib.core.https_client import Reach

    return Reach(http_allowed=True, private_allowed=True)


def test_without_a_network_civitai_is_not_asked_and_says_so():
    with pytest.raises(UserError, match="CivitAI could not be asked: no connection") as caught:
        civitai.release("https://civitai.com/models/7", endpoint="https://no-such-host.invalid")
    assert caught.value.fix == "check your network."


@pytest.mark.parametrize(
    ("link", "told", "why"),
    [
        ("{}/models/8", None, "CivitAI has no model 8"),
        ("{}/model-versions/9", None, "CivitAI has no version 9"),
        ("{}/user/somebody", None, "names no model"),
        ("{}/models/7?modelVersionId=../../x", None, "names no model"),
        ("{}/models/7", {"modelVersions": []}, "has no file to fetch"),
        ("{}/models/7", {"modelVersions": [{"files": "many"}]}, "has no file to fetch"),
        ("{}/models/7", ["nothing"], "gave no answer that can be read"),
        (
            "{}/models/7",
            {"modelVersions": [{"files": [{"name": 5, "hashes": 7, "metadata": []}]}]},
            "no address to fetch",
        ),
        (
            "{}/models/7",
            {"modelVersions": [{"files": [{"downloadUrl": "file:///etc/passwd"}]}]},
            "not a plain https",
        ),
    ],
)
def test_what_civitai_has_not_or_tells_wrongly_is_one_line(shop, tmp_path, link, told, why):
    shop.shop["model"] = told if told is not None else shop.shop["model"]
    with pytest.raises(UserError, match=why) as caught:
        take(shop, link.format(shop.url), tmp_path)
    assert caught.value.fix and lying(tmp_path) == []


def test_a_hostile_name_stays_inside_its_folder(shop, tmp_path):
    shop.shop["version"]["files"][2]["name"] = "../../../.bashrc"
    done = take(shop, f"{shop.url}/model-versions/77", tmp_path)
    assert done.path == tmp_path / "models" / "Lora" / "bashrc.safetensors"


# ------------------------------------------------------------------ Google Drive


@pytest.fixture
def drive(site, monkeypatch):
    """gdown's requests for Google's hosts come here: /uc and, after the confirm page, /download."""
    send = requests.adapters.HTTPAdapter.send

    def to_this_machine(adapter, request, **settings):
        request.url = re.sub(
            r"^https://(drive|docs)\.(google|usercontent\.google)\.com", site.url, request.url
        )
        return send(adapter, request, **settings)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", to_this_machine)
    return site


LINK = "https://drive.google.com/file/d/1abcdefghijklmnopqrstuvwx/view?usp=sharing"


def test_a_file_on_drive_is_confirmed_and_gets_the_name_that_drive_tells(drive, files, tmp_path):
    form = (
        b'<html><form id="download-form" action="https://drive.usercontent.google.com/download">'
        b'<input type="hidden" name="id" value="1abc"><input type="hidden" name="confirm" value="t"></form></html>'
    )
    drive.ways["uc"] = lambda request: request.say(200, form, content_type="text/html") is None
    drive.ways["download"] = lambda request: request.give(
        files["tiny_night.safetensors"], content_disposition='attachment; filename="../my night.safetensors"',
        content_type="application/octet-stream",
    )  # fmt: skip
    done = take(drive, LINK, tmp_path)
    assert done.path.parent == tmp_path / "models" / "Lora" and done.path.name.endswith(
        "my night.safetensors"
    )
    assert any("confirm=t" in path for path in drive.paths())


def test_drive_is_not_asked_when_the_disk_is_full(drive, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1 << 20))
    with pytest.raises(UserError, match="has 1 MB free, and a model needs more") as caught:
        take(drive, LINK, tmp_path)
    assert caught.value.fix.startswith("free some space") and drive.asked == []


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (
            b'<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>',
            "quota is used up",
        ),
        (b"<html><title>Sign in</title></html>", "not shared with everybody"),
    ],
)
def test_drives_quota_and_closed_doors_are_told_apart(drive, tmp_path, page, why):
    drive.ways["uc"] = lambda request: request.say(200, page, content_type="text/html; charset=utf-8") is None
    with pytest.raises(UserError, match=why):
        take(drive, LINK, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(UserError, match="of a folder"):
        take(drive, "https://drive.google.com/drive/folders/1abcdefghijklmnopqrstuvwx", tmp_path)
