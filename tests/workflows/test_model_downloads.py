"""Any model from anywhere into the folder of its kind; the sites are servers on this machine."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, write_tensor_file
from fastsd_lib.formats.ckpt_writing import write_ckpt
from fastsd_lib.models import registry
from fastsd_lib.models.downloading import DownloadRules
from fastsd_lib.workflows import civitai, file_links
from fastsd_lib.workflows.model_downloads import STAGING, download, model_folders
from fastsd_lib.workflows.model_sources import Hosts
from tests.bad_server import PAGE, bad_server, model_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
EXTRAS = registry.EXTRAS_FOLDER
RULES = DownloadRules(
    stall_s=5,
    tries=2,
    wait_s=0.01,
    save_s=0.02,
    segment_bytes=32 << 10,
    http_allowed=True,
    private_allowed=True,
)
UNET = "model.diffusion_model.input_blocks"
CHECKPOINT = {
    f"{UNET}.0.0.weight": (8, 4, 3, 3), f"{UNET}.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3), "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (9, 768),
}  # fmt: skip
VAE = {
    "encoder.conv_in.weight": (8, 3, 3, 3),
    "decoder.conv_in.weight": (8, 4, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
}
UPSCALER = {"conv_first.weight": (8, 3, 3, 3), "body.0.rdb1.conv1.weight": (8, 8, 3, 3)}


def tensors(shapes):
    made = []
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        made.append(NewTensor(name, "F16", shape, lambda size=size: [bytes(size)]))
    return made


def contents(folder):
    """A file of each kind, by the name that it is fetched under -> (its bytes, the folder it goes into)."""
    folder.mkdir()
    for name, shapes in (("dream", CHECKPOINT), ("sharp-vae", VAE)):
        write_tensor_file(folder / f"{name}.safetensors", tensors(shapes), {})
    write_ckpt(folder / "old.ckpt", tensors(CHECKPOINT))
    write_ckpt(folder / "4x.pth", tensors(UPSCALER))
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in EXTRAS.glob("*/*.safetensors"):
        made[path.name] = path.read_bytes()
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return contents(tmp_path_factory.mktemp("made") / "files")


@pytest.fixture
def site(files, monkeypatch, tmp_path):
    """Serves /f/NAME; no token and no cache of the user's is in reach."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HOME",
        "CIVITAI_TOKEN",
        "CIVITAI_API_TOKEN",
        "CIVITAI_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    with bad_server(model_bytes()) as server:
        server.ways["f"] = lambda request: request.give(files[request.path.split("/")[-1]])
        yield server


def hosts(site):
    shop = site.url if hasattr(site, "shop") else civitai.ENDPOINT
    return Hosts(hub=site.url, civitai=shop, rules=RULES)


def take(site, text, root, **more):
    return download(text, root, sites=hosts(site), **more)


def lying(root):
    """Every file below `root` that a user would see."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and STAGING not in path.parts
    )


# ------------------------------------------------------------------ kinds and folders


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("dream.safetensors", "models/Stable-diffusion/dream.safetensors"),
        ("old.ckpt", "models/Stable-diffusion/old.ckpt"),
        ("sharp-vae.safetensors", "models/VAE/sharp-vae.safetensors"),
        ("4x.pth", "models/ESRGAN/4x.pth"),
        ("tiny_night.safetensors", "models/Lora/tiny_night.safetensors"),
        ("tiny_zorp.safetensors", "embeddings/tiny_zorp.safetensors"),
        ("tiny_canny.safetensors", "models/ControlNet/tiny_canny.safetensors"),
    ],
)
def test_every_kind_goes_into_its_own_folder_and_stays_as_it_is(site, files, tmp_path, name, place):
    done = take(site, f"{site.url}/f/{name}", tmp_path / "root")
    assert done.path == tmp_path / "root" / place and not done.there_already
    assert done.path.read_bytes() == files[name] and done.description.path == done.path
    assert lying(tmp_path / "root") == [place]
    assert bool(done.notes) == (name == "old.ckpt")  # an upscaler is usually pickled
    assert all("pickled file" in note and "convert it" in note for note in done.notes)


def test_every_kind_that_is_told_has_a_folder(tmp_path):
    from fastsd_lib.models.kind import KIND_WORDS

    assert set(model_folders(tmp_path)) == set(KIND_WORDS)


class _Command:
    def __reduce__(self):
        return (Path.touch, (Path("it-ran"),))


def _zip(member, data):
    import io

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(member, data)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.safetensors", PAGE, "gives a web page in place of the file"),
        ("a.safetensors", b"Not found, sorry.", "gave no model: a.safetensors"),
        (
            "a.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is a Git LFS pointer",
        ),
        ("a.safetensors", model_bytes()[:9000], "has 9,000 of the"),
        ("a.ckpt", pickle.dumps(_Command()), "gave no model: a.ckpt"),
        ("a.pt", _zip("archive/data.pkl", pickle.dumps(_Command(), 2)), "gave no model: a.pt"),
        ("photos.zip", _zip("a.png", b"\x89PNG"), "gave no model: photos.zip"),
        ("a.yaml", b"model:\n  target: x\n", "gave no model: a.yaml"),
    ],
)
def test_what_is_no_model_is_refused_and_nothing_is_left(site, tmp_path, monkeypatch, name, data, why):
    monkeypatch.chdir(tmp_path)
    site.ways["x"] = lambda request: request.give(data)
    with pytest.raises(UserError, match=re.escape(why)) as caught:
        take(site, f"{site.url}/x/{name}?token=geheim", tmp_path / "root")
    assert caught.value.fix and str(tmp_path) not in str(caught.value) and "geheim" not in str(caught.value)
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "it-ran").exists()


def test_what_is_there_is_not_fetched_again_until_it_is_touched(site, files, tmp_path):
    link, root = f"{site.url}/f/dream.safetensors", tmp_path / "root"
    first, asked = take(site, link, root), len(site.asked)
    again = take(site, link, root)
    assert (again.path, again.there_already, len(site.asked)) == (first.path, True, asked)
    first.path.write_bytes(files["sharp-vae.safetensors"])
    renewed = take(site, link, root)
    assert renewed.path.name == "dream-2.safetensors" and not renewed.there_already
    assert first.path.read_bytes() == files["sharp-vae.safetensors"]  # the user's own change
    assert take(site, f"{site.url}/f/dream.safetensors?again", root).path == renewed.path.with_name(
        "dream-3.safetensors"
    )


def test_the_same_content_under_the_same_name_is_taken_as_there(site, files, tmp_path):
    folder = tmp_path / "root" / "models" / "VAE"
    folder.mkdir(parents=True)
    (folder / "sharp-vae.safetensors").write_bytes(files["sharp-vae.safetensors"])
    done = take(site, f"{site.url}/f/sharp-vae.safetensors", tmp_path / "root")
    assert done.there_already and lying(tmp_path / "root") == ["models/VAE/sharp-vae.safetensors"]


def test_another_kind_than_the_one_that_was_asked_for_is_refused_and_nothing_of_it_is_kept(
    site, files, tmp_path
):
    link = f"{site.url}/f/dream.safetensors"
    with pytest.raises(UserError, match=r"dream\.safetensors is a whole model, not a LoRA") as caught:
        take(site, link, tmp_path, kind="lora")
    assert caught.value.fix.startswith("leave the kind out")
    (tmp_path / "own.safetensors").write_bytes(files["dream.safetensors"])
    with pytest.raises(UserError, match=r"own\.safetensors is a whole model, not a LoRA"):
        take(site, str(tmp_path / "own.safetensors"), tmp_path / "root", kind="lora")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["own.safetensors"]
    there = take(site, link, tmp_path).path
    with pytest.raises(UserError, match="not a LoRA"):  # of what is there already, too
        take(site, link, tmp_path, kind="lora")
    assert there.is_file()
    assert take(site, f"{site.url}/f/tiny_night.safetensors", tmp_path, kind="lora").path.is_file()


def test_a_folder_of_ones_own_is_taken(site, tmp_path):
    mine = {**model_folders(tmp_path / "root"), "lora": tmp_path / "mine"}
    assert (
        take(site, f"{site.url}/f/tiny_night.safetensors", tmp_path / "root", folders=mine).path.parent
        == mine["lora"]
    )


def test_a_path_is_copied_into_its_folder_unless_it_lies_there(site, files, tmp_path):
    (tmp_path / "my dream.safetensors").write_bytes(files["dream.safetensors"])
    done = take(site, str(tmp_path / "my dream.safetensors"), tmp_path / "root")
    assert done.path == tmp_path / "root" / "models" / "Stable-diffusion" / "my dream.safetensors"
    assert (tmp_path / "my dream.safetensors").is_file()
    assert take(site, str(done.path), tmp_path / "root").there_already
    assert take(site, str(tmp_path / "my dream.safetensors"), tmp_path / "root").there_already
    folder = take(site, str(registry.EMBEDDED_FOLDER), tmp_path / "root")
    assert folder.path == registry.EMBEDDED_FOLDER == take(site, "embedded", tmp_path / "root").path
    for text in ("", "  "):
        with pytest.raises(UserError, match="Nothing is named"):
            take(site, text, tmp_path / "root")
    with pytest.raises(UserError, match="no file or folder"):
        take(site, "/no/such.safetensors", tmp_path / "root")


def test_a_field_for_lora_takes_several_links_and_no_pickled_file(site, files, tmp_path):
    links = [f"{site.url}/f/tiny_night.safetensors", f"{site.url}/good/other.safetensors"]
    added = file_links.add_to_library(links, tmp_path / "Lora", sites=hosts(site))
    assert [path.name for path in added] == ["tiny_night.safetensors", "other.safetensors"]
    asked = len(site.asked)
    assert (
        file_links.add_to_library(links, tmp_path / "Lora", sites=hosts(site)) == added
        and len(site.asked) == asked
    )
    with pytest.raises(UserError, match=r"old\.ckpt is no \.safetensors file"):
        file_links.add_to_library([f"{site.url}/f/old.ckpt"], tmp_path / "Lora", sites=hosts(site))
    assert lying(tmp_path / "Lora") == ["other.safetensors", "tiny_night.safetensors"]


PROGRAM = """
import sys
from pathlib import Path
from fastsd_lib.models.downloading import DownloadRules
from fastsd_lib.workflows.model_downloads import download
from fastsd_lib.workflows.model_sources import Hosts
rules = DownloadRules(save_s=0.02, segment_bytes=16 << 10, http_allowed=True, private_allowed=True)
download(sys.argv[1], Path(sys.argv[2]), sites=Hosts(rules=rules))
"""


def test_killed_at_any_moment_no_folder_of_models_holds_half_a_file(site, tmp_path):
    site.data, site.pace, kills = model_bytes(100_000), 0.15, 0
    link, root = f"{site.url}/paced/night.safetensors", tmp_path / "root"
    staging = root / "models" / STAGING
    for number in range(12):  # fewer, unless the disk is so slow that nothing was noted yet
        asked = len(site.asked)
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, link, str(root)], cwd=REPOSITORY)
        until = time.monotonic() + 20
        while len(site.asked) == asked and child.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(0.05 + 0.1 * number)
        child.kill()
        if child.wait() == 0:  # it was quicker
            break
        assert child.returncode == -signal.SIGKILL and len(site.asked) > asked
        kills += 1
        if lying(root):  # killed after the last byte
            assert (root / "models" / "Lora" / "night.safetensors").read_bytes() == site.data
            break
        if kills >= 5 and any(json.loads(path.read_text())["done"] for path in staging.rglob(".*.json")):
            break
    assert kills >= 2
    site.pace, asked = 0.0, len(site.asked)
    done = take(site, link, root)
    assert done.path.read_bytes() == site.data and lying(root) == ["models/Lora/night.safetensors"]
    pairs = [headers["range"].removeprefix("bytes=").split("-") for _, headers in site.asked[asked:]]
    assert sum(min(int(end) + 1, len(site.data)) - int(start) for start, end in pairs) < len(site.data)
    assert {path.name for path in staging.rglob("*")} <= {"fetched.json"}


# ------------------------------------------------------------------ Hugging Face


def test_one_file_of_a_repository_comes_by_link_or_name_and_the_token_goes_to_the_hub_alone(
    site, files, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_geheim")
    sha256 = hashlib.sha256(files["tiny_night.safetensors"]).hexdigest()
    with bad_server(b"") as storage:
        storage.ways["lfs"] = lambda request: request.give(files["tiny_night.safetensors"])

        def resolve(request):
            return (
                request.say(302, location=f"{storage.url}/lfs/abc?sig=1", x_linked_etag=f'"{sha256}"') is None
            )

        site.ways["org"] = site.ways["datasets"] = resolve
        for number, text in enumerate(
            (
                "https://huggingface.co/org/night/blob/main/sub/night.safetensors?download=true",
                "https://huggingface.co/org/night/resolve/refs%2Fpr%2F1/night%20sky.safetensors",
                "https://huggingface.co/datasets/org/night/resolve/main/night.safetensors",
                "org/night/night.safetensors",
            )
        ):
            assert take(site, text, tmp_path / str(number)).path.parent.name == "Lora"
    assert [path for path in dict.fromkeys(site.paths())] == [
        "/org/night/resolve/main/sub/night.safetensors", "/org/night/resolve/refs%2Fpr%2F1/night%20sky.safetensors",
        "/datasets/org/night/resolve/main/night.safetensors", "/org/night/resolve/main/night.safetensors",
    ]  # fmt: skip
    assert {headers.get("authorization") for _, headers in site.asked} == {"Bearer hf_geheim"}
    assert storage.asked and {headers.get("authorization") for _, headers in storage.asked} == {None}


@pytest.mark.parametrize(
    ("status", "why"), [(401, "sign in"), (403, "does not let you"), (404, "no such file")]
)
def test_what_the_hub_refuses_is_one_line_with_the_way_in(site, tmp_path, monkeypatch, status, why):
    monkeypatch.setenv("HF_TOKEN", "hf_geheim")
    site.ways["org"] = lambda request: request.say(status, b"hf_geheim") is None
    with pytest.raises(UserError, match=why) as caught:
        take(site, "org/night/night.safetensors", tmp_path)
    assert "geheim" not in str(caught.value) and lying(tmp_path) == []


def test_the_way_in_is_that_of_the_site():
    from fastsd_lib.models.download_answers import failure_of

    assert "HF_TOKEN" in failure_of(403, "", "https://cdn.huggingface.co/x", 1).fix
    assert "CIVITAI_TOKEN" in failure_of(401, "", "https://civitai.com/x", 1).fix
    assert "browser" in failure_of(401, "", "https://nothuggingface.co/x", 1).fix


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
