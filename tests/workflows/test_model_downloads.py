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

import pytest
from model_site import hosts, lying, take

from fastsd_lib.core.errors import UserError
from fastsd_lib.models import registry
from fastsd_lib.workflows import file_links
from fastsd_lib.workflows.model_downloads import STAGING, model_folders
from tests.bad_server import PAGE, bad_server, model_bytes

REPOSITORY = Path(__file__).resolve().parents[2]

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
